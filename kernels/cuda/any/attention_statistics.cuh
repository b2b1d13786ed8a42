// First half of the column statistics that the 8-bit attention needs, over chunks of rows: sums of K, sums and extremes
// of V. attention_statistics_final.cu adds them up. No atomics: the same input gives the same bits.
#pragma once

#include "attention_rows.cuh"

namespace eight_bit {

// Computes the statistics of one chunk. `Keys` has
//   bool counts(int row)                                  whether this key is one of those that are summed up
//   void load(float (&key)[kColumns], int row, int column)  loads its columns from `column` on
template <class Keys>
__device__ __forceinline__ void statistics(
    const Keys keys, const __nv_bfloat16* v, int64_t value_stride, float* partial, int rows, int chunk) {
    constexpr int kWidth = kHeadDim;  // columns of a block
    __shared__ float shared[4][kStep][kWidth];
    const int lane = threadIdx.x % kLanes, row_lane = threadIdx.x / kLanes;
    const int column = blockIdx.x * kWidth + lane * kColumns;
    const int columns = gridDim.x * kWidth;
    float total[4][kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; i++) {
        total[0][i] = total[1][i] = 0.f;
        total[2][i] = INFINITY;
        total[3][i] = -INFINITY;
    }
    const int end = min(rows, (int(blockIdx.y) + 1) * chunk);
#pragma unroll 4
    for (int row = blockIdx.y * chunk + row_lane; row < end; row += kStep) {
        float key[kColumns], value[kColumns];
        const bool counts = keys.counts(row);
        if (counts) keys.load(key, row, column);
        unpack(value, load_row(v + column, value_stride, row, rows));
#pragma unroll
        for (int i = 0; i < kColumns; i++) {
            if (counts) total[0][i] += key[i];
            total[1][i] += value[i];
            total[2][i] = fminf(total[2][i], value[i]);
            total[3][i] = fmaxf(total[3][i], value[i]);
        }
    }
#pragma unroll
    for (int which = 0; which < 4; which++)
#pragma unroll
        for (int i = 0; i < kColumns; i++) shared[which][row_lane][lane * kColumns + i] = total[which][i];
    __syncthreads();
    for (int i = threadIdx.x; i < 4 * kWidth; i += kThreads) {
        const int which = i / kWidth, x = i % kWidth;
        float sum = shared[which][0][x];
#pragma unroll
        for (int r = 1; r < kStep; r++) {
            const float next = shared[which][r][x];
            sum = which < 2 ? sum + next : which == 2 ? fminf(sum, next) : fmaxf(sum, next);
        }
        partial[(int64_t(blockIdx.y) * 4 + which) * columns + blockIdx.x * kWidth + x] = sum;
    }
}

}  // namespace eight_bit
