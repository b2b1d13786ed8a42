// Queries and keys of the 8-bit attention as their product leaves them: the RMS norm over all heads, its weight and the
// rotary embedding are applied where rows are quantised, so that normed rows never exist in memory. The product has
// left the sums of squares of each row's parts.
#pragma once

#include "attention_8bit.cuh"

namespace eight_bit {

constexpr int kPairs = kHeadDim / 2;

// What becomes of a matrix of raw rows, [rows, heads * 128].
struct RawNorm {
    const float* squares;  // [rows, stride]: the first `parts` of a row add up to the sum of its squares
    const float* weight;   // [heads * 128]
    const float* cosines;  // [rows, 64]
    const float* sines;    // [rows, 64]
    int parts;
    int stride;
    float eps;

    // Returns one over the root mean square of a row.
    __device__ __forceinline__ float inverse(int row, int columns) const {
        const float* from = squares + int64_t(row) * stride;
        float sum = 0.f;
#pragma unroll 4
        for (int i = 0; i < parts; i++) sum += __ldg(from + i);
        return rsqrtf(sum / columns + eps);
    }
};

__device__ __forceinline__ void load_four(float* to, const float* from) {
    const float4 x = __ldg(reinterpret_cast<const float4*>(from));
    to[0] = x.x;
    to[1] = x.y;
    to[2] = x.z;
    to[3] = x.w;
}

// Applies the norm and the rotary embedding to eight columns of a row, of which `column` is the first and whose four
// pairs have these cosines and sines.
__device__ __forceinline__ void norm_and_rotate_pairs(
    float* x, float inverse, const float* weight, float4 cosines, float4 sines) {
    const float cosine[4] = {cosines.x, cosines.y, cosines.z, cosines.w};
    const float sine[4] = {sines.x, sines.y, sines.z, sines.w};
    float w[kColumns];
    load_four(w, weight);
    load_four(w + 4, weight + 4);
#pragma unroll
    for (int i = 0; i < kColumns; i++) x[i] = x[i] * inverse * w[i];
#pragma unroll
    for (int i = 0; i < kColumns / 2; i++) {
        const float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine[i] - b * sine[i];
        x[2 * i + 1] = fmaf(a, sine[i], b * cosine[i]);
    }
}

}  // namespace eight_bit
