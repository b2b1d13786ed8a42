// Splits f32 rows into sums of two bf16 numbers, three times as wide, so that a bf16 product with f32 sums comes within
// 2^-16 of the f32 product: (high, low, high) of A times (high, high, low) of B leaves out only low times low.
#include "rows.cuh"

// x: [rows, columns] f32 -> y: [rows, 3 columns] bf16; `second`: whether y is operand B. Grid: rows * columns / 2048;
// 256 threads.
extern "C" __global__ void __launch_bounds__(256) split_rows(
    const float* x, int64_t x_stride, __nv_bfloat16* y, int64_t y_stride, int second, int columns, int count) {
    const int pieces = columns / rows::kVector;
    const int64_t at = int64_t(blockIdx.x) * 256 + threadIdx.x;
    const int row = int(at / pieces), column = int(at - int64_t(row) * pieces) * rows::kVector;
    if (row >= count) return;
    const float* from = x + row * x_stride + column;
    __nv_bfloat16* to = y + row * y_stride + column;
    float whole[rows::kVector], high[rows::kVector], low[rows::kVector];
    rows::load(whole, from);
#pragma unroll
    for (int i = 0; i < rows::kVector; i++) {
        high[i] = __bfloat162float(__float2bfloat16_rn(whole[i]));
        low[i] = whole[i] - high[i];
    }
    rows::store(to, high);
    rows::store(to + columns, second ? high : low);
    rows::store(to + 2 * columns, second ? low : high);
}
