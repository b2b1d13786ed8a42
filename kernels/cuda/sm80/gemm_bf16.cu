// bf16 matrix products by mma.sync: tiles of 128 x 128.
#include "gemm.cuh"

GEMM_KERNELS(gemm_bf16, true, false)
