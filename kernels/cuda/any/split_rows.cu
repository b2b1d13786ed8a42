// f32 rows as sums of two bf16 numbers, three times as wide, so that a bf16 product with f32 sums comes within 2^-16 of
// the f32 product: (high, low, high) of A times (high, high, low) of B leaves out only low times low.
#include "rows.cuh"

// x: [rows, columns] f32 -> y: [rows, 3 columns] bf16; `second`: as operand B. Grid: rows; 256 threads.
extern "C" __global__ void __launch_bounds__(256) split_rows(
    const float* x, int64_t x_stride, __nv_bfloat16* y, int64_t y_stride, int second, int columns) {
    const float* from = x + blockIdx.x * x_stride;
    __nv_bfloat16* to = y + blockIdx.x * y_stride;
    for (int column = threadIdx.x * rows::kVector; column < columns; column += 256 * rows::kVector) {
        float whole[rows::kVector], high[rows::kVector], low[rows::kVector];
        rows::load(whole, from + column);
#pragma unroll
        for (int i = 0; i < rows::kVector; i++) {
            high[i] = __bfloat162float(__float2bfloat16_rn(whole[i]));
            low[i] = whole[i] - high[i];
        }
        rows::store(to + column, high);
        rows::store(to + columns + column, second ? high : low);
        rows::store(to + 2 * columns + column, second ? low : high);
    }
}
