// Convolutions to a few channels, by mma.sync: to pixels, or to latents.
#include "conv.cuh"

using Few = sm80::Shape<1, 16>;
CONV_KERNEL(conv_16, Few, kPlain, __nv_bfloat16)
CONV_KERNEL(conv_16_f32, Few, kPlain, float)
