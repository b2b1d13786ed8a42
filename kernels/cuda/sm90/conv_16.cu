// Convolutions to a few channels: to pixels, or to latents. Reading the input limits their speed, not the arithmetic.
#include "conv.cuh"

using Few = gemm::Shape<2, 16, 2>;
CONV_KERNEL(conv_16, Few, kPlain, __nv_bfloat16)
CONV_KERNEL(conv_16_f32, Few, kPlain, float)
