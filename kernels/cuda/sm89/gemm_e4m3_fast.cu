// e4m3 matrix products by mma.sync with a scale for each row of A and of B, summed up in the tensor cores.
#include "../sm80/gemm.cuh"

GEMM_KERNELS(gemm_e4m3_fast, false, false)
