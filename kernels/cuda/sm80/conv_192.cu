// Convolutions to 192 channels, or any number of them in tiles of 192, by mma.sync; with a norm only to 192.
#include "conv.cuh"

using Wide = sm80::Shape<1, 192>;
CONV_KERNEL(conv_192, Wide, kPlain, __nv_bfloat16)
CONV_KERNEL(conv_192_normed, Wide, kNormed, __nv_bfloat16)
CONV_KERNEL(conv_192_f32, Wide, kPlain, float)
