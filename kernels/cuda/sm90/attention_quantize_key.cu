// K of the 8-bit attention: bf16, less the mean of each channel, rotated, to int8 with a scale a tile and head. The mean
// adds the same to all scores of a query, so that softmax does not see it.
#include "attention_8bit.cuh"

using namespace eight_bit;

// k: [keys, heads * 128], mean: [heads * 128] f32 -> quantized: k's shape, dense; scale: [heads, tiles] f32.
// Grid: (tiles, heads), 384 threads.
extern "C" __global__ void __launch_bounds__(kRowThreads) attention_quantize_key(
    const __nv_bfloat16* k, int64_t stride, const float* mean, uint8_t* quantized, float* scale, int keys) {
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
    if (row < keys) store_s8(quantized + row * int64_t(gridDim.y) * kHeadDim + column, x, 127.f / top);
    if (threadIdx.x == 0) scale[head * gridDim.x + blockIdx.x] = top / 127.f;
}
