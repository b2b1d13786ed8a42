// e4m3 matrix products for Hopper with a scale for each row of A and of B; every 128 products along K are added to a sum
// in f32. Sums take twice the registers, so tiles are narrower than those of gemm_e4m3_fast.cu.
#include "gemm_problem.cuh"

using Narrow = gemm::Shape<1, 128, 2, 0>;
GEMM_KERNELS(gemm_e4m3, Narrow, kE4m3, true)
