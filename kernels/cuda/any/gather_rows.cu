// Rows of a table by their numbers: an embedding.
#include "rows.cuh"

// table: [numbers, columns] -> y: [rows, columns] with y[i] = table[index[i]]; the caller has checked the numbers.
// Grid: rows; 256 threads.
#define GATHER_ROWS(NAME, INPUT, OUTPUT)                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        NAME(const INPUT* table, int64_t table_stride, const int* index, OUTPUT* y, int64_t y_stride, int columns) { \
        const INPUT* from = table + int64_t(index[blockIdx.x]) * table_stride;                                      \
        OUTPUT* to = y + blockIdx.x * y_stride;                                                                     \
        for (int column = threadIdx.x * rows::kVector; column < columns; column += 256 * rows::kVector) {           \
            float x[rows::kVector];                                                                                 \
            rows::load(x, from + column);                                                                           \
            rows::store(to + column, x);                                                                            \
        }                                                                                                           \
    }
GATHER_ROWS(gather_rows_bf16_bf16, __nv_bfloat16, __nv_bfloat16)
GATHER_ROWS(gather_rows_bf16_f32, __nv_bfloat16, float)
