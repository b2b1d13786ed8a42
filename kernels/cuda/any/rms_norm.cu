// RMS norm over rows, then, with tables, the rotary embedding of adjacent pairs within each head. The queries and the
// keys of a layer are two matrices of one launch. The instances that write e4m3 or int8 quantise what the next product
// reads, for int8 after a rotation.
#include "rows.cuh"

namespace {

struct Matrix {
    const void* x;
    const float* weight;
    void* y;
};

// Returns the block's row of a matrix, normed and, with tables, rotated.
template <class Input>
__device__ __forceinline__ rows::Row rms_norm(
    Matrix m, int64_t x_stride, const float* cosines, const float* sines, int pairs, int columns, float eps) {
    __shared__ float squares[32];
    rows::Row row(static_cast<const Input*>(m.x) + blockIdx.x * x_stride, columns);
    const float inverse = rsqrtf(rows::reduce<rows::Sum>(row.squares(0.f), squares) / columns + eps);
#pragma unroll
    for (int i = 0; i < rows::kPieces; i++) {
        if (row.piece(i) >= row.pieces) continue;
        float(&x)[rows::kVector] = row.x[i];
        float weight[rows::kVector];
        const int column = row.piece(i) * rows::kVector;
        rows::load(weight, m.weight + column);
#pragma unroll
        for (int j = 0; j < rows::kVector; j++) x[j] = x[j] * inverse * weight[j];
        if (cosines != nullptr) {
            const int64_t at = int64_t(blockIdx.x) * pairs + column / 2 % pairs;
            const float4 cosine = __ldg(reinterpret_cast<const float4*>(cosines + at));
            const float4 sine = __ldg(reinterpret_cast<const float4*>(sines + at));
            const float c[4] = {cosine.x, cosine.y, cosine.z, cosine.w}, s[4] = {sine.x, sine.y, sine.z, sine.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float a = x[2 * j], b = x[2 * j + 1];
                x[2 * j] = a * c[j] - b * s[j];
                x[2 * j + 1] = fmaf(a, s[j], b * c[j]);
            }
        }
    }
    return row;
}

}  // namespace

// y = x / sqrt(mean of squares + eps) * weight over each row. x: [rows, columns], weight: [columns] f32, y: like x, may be
// x; cosines, sines: [rows, pairs] f32, a head is 2 pairs wide, or null; scale: [rows] f32, of e4m3.
// Grid: (rows, matrices); threads: columns / 16 in whole warps.
#define RMS_NORM(NAME, INPUT, OUTPUT)                                                                               \
    extern "C" __global__ void __launch_bounds__(1024)                                                              \
        NAME(const __grid_constant__ Matrix first, const __grid_constant__ Matrix second, int64_t x_stride,         \
             int64_t y_stride, float* scale, const float* cosines, const float* sines, int pairs, int columns,      \
             float eps) {                                                                                           \
        const Matrix m = blockIdx.y == 0 ? first : second;                                                          \
        rows::Row row = rms_norm<INPUT>(m, x_stride, cosines, sines, pairs, columns, eps);                          \
        row.write(static_cast<OUTPUT*>(m.y) + blockIdx.x * y_stride, scale + blockIdx.x);                           \
    }
ROW_KERNELS(RMS_NORM, rms_norm)

// RMS norm of one matrix to int8, rotated by `group`; norm: 1 / sqrt(group).
#define RMS_NORM_INT8(NAME, INPUT)                                                                                  \
    extern "C" __global__ void __launch_bounds__(1024)                                                              \
        NAME(const INPUT* x, int64_t x_stride, const float* weight, int8_t* y, int64_t y_stride, float* scale,      \
             int columns, float eps, int group, float norm) {                                                       \
        rows::Row row = rms_norm<INPUT>({x, weight, y}, x_stride, nullptr, nullptr, 4, columns, eps);               \
        row.write_int8(y + blockIdx.x * y_stride, scale + blockIdx.x, group, norm);                                 \
    }
RMS_NORM_INT8(rms_norm_bf16_int8, __nv_bfloat16)
RMS_NORM_INT8(rms_norm_f32_int8, float)
