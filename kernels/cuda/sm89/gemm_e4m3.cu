// e4m3 matrix products by mma.sync with a scale for each row of A and of B; every 128 products along K are added to a sum
// in f32.
#include "../sm80/gemm.cuh"

GEMM_KERNELS(gemm_e4m3, false, true)
