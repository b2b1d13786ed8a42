// int8 matrix products by mma.sync with a scale for each row of A and of B.
#include "gemm_int8.cuh"

using Tile = int8::Tile<2, 4, 4>;
GEMM_INT8_KERNELS(gemm_int8, Tile)
