// Attention for heads of up to 64, 128 and 384 channels: umT5, CLIP, the VAE.
#include "attention_any.cuh"

// q: [batches][rows, heads * width], k, v: [batches][keys, heads * width], bf16; width a multiple of 8, addresses and
// strides of 16 bytes. Grid: (blocks of 64 rows, heads, batches).
#define ATTENTION(NAME, WIDTH, KEYS, SPLIT)                                                             \
    extern "C" __global__ void __launch_bounds__(attention_any::Shape<WIDTH, KEYS, SPLIT>::kThreads)    \
        NAME(const __grid_constant__ attention_any::Arguments arguments) {                              \
        attention_any::run<attention_any::Shape<WIDTH, KEYS, SPLIT>>(arguments);                        \
    }
ATTENTION(attention_any_64, 64, 64, 1)
ATTENTION(attention_any_128, 128, 64, 1)
ATTENTION(attention_any_384, 384, 32, 3)
// The instance for cards where a block has only 99 KiB of shared memory.
ATTENTION(attention_any_384_narrow, 384, 16, 3)
