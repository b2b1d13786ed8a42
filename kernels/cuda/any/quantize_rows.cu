// Quantises rows to e4m3, each with the scale that makes its greatest magnitude e4m3's greatest number, 448; or, after
// an activation and a rotation, to int8 and 127. The activation is here and not behind the product that made the rows,
// because this kernel waits for memory, where arithmetic costs nothing, and nothing hides what follows a product.
#include "activation.cuh"
#include "rows.cuh"

namespace {

// Applies an activation to a row. All activations keep the zeros of a thread that has fewer pieces.
__device__ __forceinline__ void activate(rows::Row& row, int activation) {
#pragma unroll
    for (int i = 0; i < rows::kPieces; i++)
        gemm::activate(reinterpret_cast<float(&)[rows::kVector / 4][4]>(row.x[i]), activation);
}

}  // namespace

// x: [rows, columns] -> y: like x, e4m3; scale: [rows] f32. Grid: rows; threads: columns / 16 in whole warps.
#define QUANTIZE_ROWS(NAME, INPUT)                                                                            \
    extern "C" __global__ void __launch_bounds__(1024)                                                        \
        NAME(const INPUT* x, int64_t x_stride, uint8_t* y, int64_t y_stride, float* scale, int columns) {     \
        rows::Row row(x + blockIdx.x * x_stride, columns);                                                    \
        row.write(y + blockIdx.x * y_stride, scale + blockIdx.x);                                             \
    }
QUANTIZE_ROWS(quantize_rows_bf16, __nv_bfloat16)
QUANTIZE_ROWS(quantize_rows_f32, float)

// Quantisation to int8, activated and then rotated by `group`; norm: 1 / sqrt(group).
#define QUANTIZE_ROWS_INT8(NAME, INPUT)                                                                       \
    extern "C" __global__ void __launch_bounds__(1024)                                                        \
        NAME(const INPUT* x, int64_t x_stride, int8_t* y, int64_t y_stride, float* scale, int columns,        \
             int activation, int group, float norm) {                                                         \
        rows::Row row(x + blockIdx.x * x_stride, columns);                                                    \
        activate(row, activation);                                                                            \
        row.write_int8(y + blockIdx.x * y_stride, scale + blockIdx.x, group, norm);                           \
    }
QUANTIZE_ROWS_INT8(quantize_rows_bf16_int8, __nv_bfloat16)
QUANTIZE_ROWS_INT8(quantize_rows_f32_int8, float)
