// The kernel of 8-bit attention for heads of 128 by mma.sync; see attention_int8.cuh.
#include "attention_int8.cuh"

// Grid: (blocks of 192 rows, heads).
extern "C" __global__ void __launch_bounds__(int8_attention::kThreads)
    attention_int8(const __grid_constant__ int8_attention::Arguments arguments) {
    int8_attention::run(arguments);
}
