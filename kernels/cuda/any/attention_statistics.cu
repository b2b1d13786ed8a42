// First half of the column statistics that the 8-bit attention needs: sums of K, sums and extremes of V over chunks of
// rows. attention_statistics_final.cu adds them up. No atomics: the same input gives the same bits.
#include "attention_rows.cuh"

using namespace eight_bit;

namespace {

constexpr int kWidth = kHeadDim;  // columns of a block

}  // namespace

// k, v: [rows, heads * 128] bf16 -> partial: [chunks, 4, heads * 128] f32: the sum of k, then sum, least and greatest of
// v, over `chunk` rows. Grid: (heads, chunks), 256 threads.
extern "C" __global__ void __launch_bounds__(kThreads) attention_statistics(
    const __nv_bfloat16* k, int64_t key_stride, const __nv_bfloat16* v, int64_t value_stride, float* partial, int rows,
    int chunk) {
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
        unpack(key, load_row(k + column, key_stride, row, rows));
        unpack(value, load_row(v + column, value_stride, row, rows));
#pragma unroll
        for (int i = 0; i < kColumns; i++) {
            total[0][i] += key[i];
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
