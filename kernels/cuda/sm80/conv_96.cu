// Convolutions to up to 96 channels, by mma.sync.
#include "conv.cuh"

using Middle = sm80::Shape<1, 96>;
CONV_KERNEL(conv_96, Middle, kPlain, __nv_bfloat16)
CONV_KERNEL(conv_96_normed, Middle, kNormed, __nv_bfloat16)
CONV_KERNEL(conv_96_f32, Middle, kPlain, float)
