#include "attention_bf16.cuh"

// Addresses and strides are multiples of 16 bytes. Grid: (blocks of 128 queries, heads).
extern "C" __global__ void __launch_bounds__(attention_bf16::kThreads, 1)
    attention_bf16_sync(const __grid_constant__ attention_bf16::Arguments arguments) {
    attention_bf16::run(arguments);
}
