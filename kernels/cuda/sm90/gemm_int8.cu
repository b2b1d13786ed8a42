// int8 matrix products for Hopper with a scale for each row of A and of B. Sums are exact, and converted once at the end.
#include "gemm_problem.cuh"

using Wide = gemm::Shape<1, 256, 2>;
GEMM_KERNELS(gemm_int8, Wide, kS8, false)
GEMM_KERNEL(gemm_int8_squared, Wide, kS8, false, kSquared, __nv_bfloat16)
