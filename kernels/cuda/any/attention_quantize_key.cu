// Prepares K of the 8-bit attention: subtracts the mean of each channel from the bf16 values, rotates them, and
// quantises them to int8 with a scale for each tile and head. The mean adds the same to all scores of a query, so
// softmax does not see it.
#include "attention_rows.cuh"

using namespace eight_bit;

namespace {

// With kImages the tiles of a head follow each other, and the last one has zeros beyond the last key; otherwise keys
// lie as in the input.
template <int kKeys, bool kImages>
__device__ __forceinline__ void quantize(
    const __nv_bfloat16* k, int64_t stride, const float* mean, uint8_t* quantized, float* scale, int keys) {
    constexpr int kRowThreads = 4 * kKeys;
    __shared__ float tops[kRowThreads / 32];
    const int lane = threadIdx.x % 4, head = blockIdx.y;
    const int row = blockIdx.x * kKeys + threadIdx.x / 4;
    const int column = head * kHeadDim + lane * kColumns;
    float x[kShare];
    load_share(x, k + column, stride, row, keys);
#pragma unroll
    for (int i = 0; i < kShare; i++) x[i] -= mean[column + i / kColumns * 32 + i % kColumns];
    rotate(x);
    float top = row < keys ? greatest(x) : kLeast;
#pragma unroll
    for (int i = 1; i < 32; i *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, i));
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRowThreads / 32; i++) top = fmaxf(top, tops[i]);
    if constexpr (kImages) {
        if (row >= keys) {
#pragma unroll
            for (int i = 0; i < kShare; i++) x[i] = 0.f;
        }
        uint8_t* image = quantized + (head * int64_t(gridDim.x) + blockIdx.x) * (kKeys * kHeadDim);
        store_s8(image + (threadIdx.x / 4) * kHeadDim + lane * kColumns, x, 127.f / top);
    } else if (row < keys) {
        store_s8(quantized + row * int64_t(gridDim.y) * kHeadDim + column, x, 127.f / top);
    }
    if (threadIdx.x == 0) scale[head * gridDim.x + blockIdx.x] = top / 127.f;
}

}  // namespace

// k: [keys, heads * 128], mean: [heads * 128] f32 -> quantized: k's shape, dense, or [heads, tiles, keys of a tile, 128];
// scale: [heads, tiles] f32. Grid: (tiles, heads); four threads a key.
#define QUANTIZE_KEY(NAME, KEYS, IMAGES)                                                                                          \
    extern "C" __global__ void __launch_bounds__(4 * KEYS)                                                                \
        NAME(const __nv_bfloat16* k, int64_t stride, const float* mean, uint8_t* quantized, float* scale, int keys) {     \
        quantize<KEYS, IMAGES>(k, stride, mean, quantized, scale, keys);                                                          \
    }
QUANTIZE_KEY(attention_quantize_key_96, 96, false)
QUANTIZE_KEY(attention_quantize_key_128, 128, true)
