// RMS norm over rows, then, with tables, the rotary embedding of adjacent pairs within each head. The queries and the
// keys of a layer are two matrices of one launch.
#include "rows.cuh"

namespace {

struct Matrix {
    const void* x;
    const float* weight;
    void* y;
};

template <class Input, class Output>
__device__ __forceinline__ void rms_norm(
    Matrix m, int64_t x_stride, int64_t y_stride, float* scale, const float* cosines, const float* sines, int pairs,
    int columns, float eps) {
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
    row.write(static_cast<Output*>(m.y) + blockIdx.x * y_stride, scale + blockIdx.x);
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
        rms_norm<INPUT, OUTPUT>(blockIdx.y == 0 ? first : second, x_stride, y_stride, scale, cosines, sines, pairs, \
                                columns, eps);                                                                      \
    }
ROW_KERNELS(RMS_NORM, rms_norm)
