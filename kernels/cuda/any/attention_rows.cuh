// Functions that the kernels that prepare the operands of 8-bit attention share on all cards: rows of Q and K are
// rotated and quantised to int8 with a scale, and statistics of K and V are computed.
#pragma once

#include <cuda_bf16.h>

#include <instructions/base.cuh>

namespace eight_bit {

constexpr int kHeadDim = 128;
constexpr int kThreads = 256;  // of a preparing block
constexpr int kColumns = 8;    // channels of one of its threads: 16 bytes of bf16
constexpr int kLanes = kHeadDim / kColumns;
constexpr int kStep = kThreads / kLanes;  // rows that a block reads at once
constexpr float kLeast = 1e-20f;          // greatest magnitude assumed of zeros, so that they have a scale

// The factor that makes a score of rotated rows an exponent of 2: log2(e) / sqrt(128), divided by the 128 by which the
// rotation multiplies scores.
constexpr float kLogit = 1.4426950408889634f * 0.08838834764831845f / 128.f;

__device__ __forceinline__ void unpack(float (&x)[kColumns], uint4 bits) {
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

// Loads eight columns of a row, or zeros beyond the last row.
__device__ __forceinline__ uint4 load_row(const __nv_bfloat16* from, int64_t stride, int row, int rows) {
    return row < rows ? __ldg(reinterpret_cast<const uint4*>(from + row * stride)) : make_uint4(0, 0, 0, 0);
}

// ---- Rows of Q and K: four threads share a row; thread l has the columns 32i + 8l + 0..7 for i in 0..4

constexpr int kShare = kHeadDim / 4;

__device__ __forceinline__ void load_share(float (&x)[kShare], const __nv_bfloat16* from, int64_t stride, int row, int rows) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float part[kColumns];
        unpack(part, load_row(from + 32 * i, stride, row, rows));
#pragma unroll
        for (int j = 0; j < kColumns; j++) x[kColumns * i + j] = part[j];
    }
}

// Applies a Hadamard transform to the row without normalising it: it multiplies all products of rows by 128. The
// transform spreads channels that are much greater than others over all channels, because all of them get one scale.
__device__ __forceinline__ void rotate(float (&x)[kShare]) {
#pragma unroll
    for (int step = 1; step < kShare; step *= 2) {
#pragma unroll
        for (int i = 0; i < kShare; i++) {
            if (i & step) continue;
            const float a = x[i], b = x[i + step];
            x[i] = a + b;
            x[i + step] = a - b;
        }
    }
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2) {
        const float sign = threadIdx.x & lane ? -1.f : 1.f;
#pragma unroll
        for (int i = 0; i < kShare; i++) x[i] = fmaf(x[i], sign, __shfl_xor_sync(0xffffffffu, x[i], lane));
    }
}

__device__ __forceinline__ float greatest(const float (&x)[kShare]) {
    float top = kLeast;
#pragma unroll
    for (int i = 0; i < kShare; i++) top = fmaxf(top, fabsf(x[i]));
    return top;
}

// Writes the thread's columns as int8.
__device__ __forceinline__ void store_s8(uint8_t* to, const float (&x)[kShare], float inverse) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t words[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < kColumns; j++)
            words[j / 4] |= (uint32_t(__float2int_rn(x[kColumns * i + j] * inverse)) & 0xff) << (8 * (j % 4));
        *reinterpret_cast<uint2*>(to + 32 * i) = make_uint2(words[0], words[1]);
    }
}

}  // namespace eight_bit
