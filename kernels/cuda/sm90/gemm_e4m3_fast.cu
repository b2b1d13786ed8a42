// e4m3 matrix products for Hopper with a scale for each row of A and of B, summed up in the tensor cores.
#include "gemm_problem.cuh"

using Wide = gemm::Shape<1, 256, 2>;
GEMM_KERNELS(gemm_e4m3_fast, Wide, kE4m3, false)
GEMM_KERNEL(gemm_e4m3_fast_squared, Wide, kE4m3, false, kSquared, __nv_bfloat16)
