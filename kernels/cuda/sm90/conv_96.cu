// Convolutions to up to 96 channels: tiles of 256 voxels, because those of 128 would need more from the L2 cache than it
// gives.
#include "conv.cuh"

using Tall = gemm::Shape<2, 96, 2>;
CONV_KERNEL(conv_96, Tall, kPlain, __nv_bfloat16)
CONV_KERNEL(conv_96_normed, Tall, kNormed, __nv_bfloat16)
CONV_KERNEL(conv_96_f32, Tall, kPlain, float)
