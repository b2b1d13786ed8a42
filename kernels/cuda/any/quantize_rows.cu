// Rows to e4m3, each with the scale that makes its greatest magnitude e4m3's greatest number, 448.
#include "rows.cuh"

// x: [rows, columns] -> y: like x, e4m3; scale: [rows] f32. Grid: rows; threads: columns / 16 in whole warps.
#define QUANTIZE_ROWS(NAME, INPUT)                                                                            \
    extern "C" __global__ void __launch_bounds__(1024)                                                        \
        NAME(const INPUT* x, int64_t x_stride, uint8_t* y, int64_t y_stride, float* scale, int columns) {     \
        rows::Row row(x + blockIdx.x * x_stride, columns);                                                    \
        row.write(y + blockIdx.x * y_stride, scale + blockIdx.x);                                             \
    }
QUANTIZE_ROWS(quantize_rows_bf16, __nv_bfloat16)
QUANTIZE_ROWS(quantize_rows_f32, float)
