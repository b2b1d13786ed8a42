// Corrects the means of V by what rounding to e4m3 has taken from each channel on average, so that attention that
// spreads over many keys, and so averages V, has no such error: bf16 numbers round to e4m3 with a bias of some 3e-4 of
// their deviation, while the average of L independent numbers is only 1 / sqrt(L).
#include "attention_8bit.cuh"

using namespace eight_bit;

// residual: [tiles, heads * 128], scale: [heads * 128] f32; value_mean: [heads * 128] f32, changed in place.
// Grid: heads * 4, 256 threads.
extern "C" __global__ void __launch_bounds__(kThreads) attention_value_mean(
    const float* residual, const float* scale, float* value_mean, int keys, int tiles) {
    constexpr int kWidth = kHeadDim / 4, kParts = kThreads / kWidth;
    __shared__ float shared[kParts][kWidth];
    const int x = threadIdx.x % kWidth, part = threadIdx.x / kWidth;
    const int column = blockIdx.x * kWidth + x, columns = gridDim.x * kWidth;
    float sum = 0.f;
#pragma unroll 8
    for (int tile = part; tile < tiles; tile += kParts) sum += residual[int64_t(tile) * columns + column];
    shared[part][x] = sum;
    __syncthreads();
    if (part != 0) return;
#pragma unroll
    for (int p = 1; p < kParts; p++) sum += shared[p][x];
    value_mean[column] += sum * scale[column] / keys;
}
