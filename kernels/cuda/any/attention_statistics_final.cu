// Second half of the column statistics: turns the chunks of attention_statistics.cu into means and scales.
#include "attention_rows.cuh"

using namespace eight_bit;

// partial: [chunks, 4, heads * 128] -> key_mean, value_mean, value_scale: [heads * 128] f32, the last the greatest
// |v - mean| of a channel over `most`, the greatest number of the type that V gets. The sums of K are of `summed` keys.
// Grid: heads * 2, 256 threads.
extern "C" __global__ void __launch_bounds__(kThreads) attention_statistics_final(
    const float* partial, float* key_mean, float* value_mean, float* value_scale, int rows, int summed,
    int chunks, float most) {
    constexpr int kWidth = kHeadDim / 2, kParts = kThreads / kWidth;
    __shared__ float shared[4][kParts][kWidth];
    const int x = threadIdx.x % kWidth, part = threadIdx.x / kWidth;
    const int column = blockIdx.x * kWidth + x, columns = gridDim.x * kWidth;
    float total[4] = {0.f, 0.f, INFINITY, -INFINITY};
    for (int c = part; c < chunks; c += kParts) {
        const float* from = partial + int64_t(c) * 4 * columns + column;
        total[0] += from[0];
        total[1] += from[columns];
        total[2] = fminf(total[2], from[2 * columns]);
        total[3] = fmaxf(total[3], from[3 * columns]);
    }
#pragma unroll
    for (int which = 0; which < 4; which++) shared[which][part][x] = total[which];
    __syncthreads();
    if (part != 0) return;
#pragma unroll
    for (int p = 1; p < kParts; p++) {
        total[0] += shared[0][p][x];
        total[1] += shared[1][p][x];
        total[2] = fminf(total[2], shared[2][p][x]);
        total[3] = fmaxf(total[3], shared[3][p][x]);
    }
    const float mean = total[1] / rows;
    key_mean[column] = total[0] / summed;
    value_mean[column] = mean;
    value_scale[column] = fmaxf(fmaxf(total[3] - mean, mean - total[2]), kLeast) / most;
}
