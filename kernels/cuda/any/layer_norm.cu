// Layer norm over rows, learned or modulated by the time. The instances that write e4m3 or int8 quantise what the next
// product reads, for int8 after a rotation.
#include "rows.cuh"

namespace {

// Returns the block's row of x, normed.
template <class Input>
__device__ __forceinline__ rows::Row layer_norm(
    const Input* x, int64_t x_stride, const float* factor, const float* summand, float one, int columns, float eps) {
    __shared__ float sums[32], squares[32];
    rows::Row row(x + blockIdx.x * x_stride, columns);
    const float mean = rows::reduce<rows::Sum>(row.sum(), sums) / columns;
    const float inverse = rsqrtf(rows::reduce<rows::Sum>(row.squares(mean), squares) / columns + eps);
#pragma unroll
    for (int i = 0; i < rows::kPieces; i++) {
        if (row.piece(i) >= row.pieces) continue;
        float f[rows::kVector], s[rows::kVector];
        rows::load(f, factor + row.piece(i) * rows::kVector);
        rows::load(s, summand + row.piece(i) * rows::kVector);
#pragma unroll
        for (int j = 0; j < rows::kVector; j++) row.x[i][j] = fmaf((row.x[i][j] - mean) * inverse, one + f[j], s[j]);
    }
    return row;
}

}  // namespace

// y = (x - mean) / sqrt(variance + eps) * (one + factor) + summand over each row. x: [rows, columns], factor, summand:
// [columns] f32; y: like x; scale: [rows] f32, of e4m3. Grid: rows; threads: columns / 16 in whole warps.
#define LAYER_NORM(NAME, INPUT, OUTPUT)                                                                            \
    extern "C" __global__ void __launch_bounds__(1024)                                                             \
        NAME(const INPUT* x, int64_t x_stride, const float* factor, const float* summand, float one, OUTPUT* y,    \
             int64_t y_stride, float* scale, int columns, float eps) {                                             \
        rows::Row row = layer_norm(x, x_stride, factor, summand, one, columns, eps);                               \
        row.write(y + blockIdx.x * y_stride, scale + blockIdx.x);                                                  \
    }
ROW_KERNELS(LAYER_NORM, layer_norm)

// Layer norm to int8, rotated by `group`; norm: 1 / sqrt(group).
#define LAYER_NORM_INT8(NAME, INPUT)                                                                               \
    extern "C" __global__ void __launch_bounds__(1024)                                                             \
        NAME(const INPUT* x, int64_t x_stride, const float* factor, const float* summand, float one, int8_t* y,    \
             int64_t y_stride, float* scale, int columns, float eps, int group, float norm) {                      \
        rows::Row row = layer_norm(x, x_stride, factor, summand, one, columns, eps);                               \
        row.write_int8(y + blockIdx.x * y_stride, scale + blockIdx.x, group, norm);                                \
    }
LAYER_NORM_INT8(layer_norm_bf16_int8, __nv_bfloat16)
LAYER_NORM_INT8(layer_norm_f32_int8, float)
