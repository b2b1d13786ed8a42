// bf16 matrix products for Hopper: 128 x 256 tiles, pairs of blocks that share tiles of B.
#include "gemm_problem.cuh"

using Wide = gemm::Shape<1, 256, 2>;
GEMM_KERNELS(gemm_bf16, Wide, kBf16, false)
GEMM_KERNEL(gemm_bf16_squared, Wide, kBf16, false, kSquared, __nv_bfloat16)
