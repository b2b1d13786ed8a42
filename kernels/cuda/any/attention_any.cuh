// Attention for any head width, with an optional bias by distance, by mma.sync: the plain kernel for attention
// that is small, narrow or wide. The schedule follows FlashAttention-2 (arXiv 2307.08691). Nothing here needs more than
// compute capability 8.0.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include <instructions/base.cuh>

namespace attention_any {

using namespace gpu;

constexpr int kRows = 64;  // queries of a block, 16 for each of four warps

// kWidth is the channels of a head, filled up with zeros, kKeys the keys of a tile. kSplit is the number of parts that
// the channels of V are split into, with four warps for each part; all warps compute the same scores.
template <int kWidth_, int kKeys_, int kSplit_>
struct Shape {
    static constexpr int kWidth = kWidth_, kKeys = kKeys_, kSplit = kSplit_;
    static constexpr int kThreads = 128 * kSplit;
    static constexpr int kPart = kWidth / kSplit;
    static constexpr int kStride = kWidth + 8;  // of rows in shared memory: 8 rows at one column meet different banks
    static constexpr int kTile = kKeys * kStride;
    static constexpr int kSharedBytes = (kRows * kStride + 4 * kTile) * 2;
    static_assert(kWidth % 16 == 0 && kPart % 16 == 0 && kKeys % 16 == 0);
};

struct Arguments {
    const __nv_bfloat16 *q, *k, *v, *residual;
    __nv_bfloat16* output;
    const float* bias;  // [heads, rows + keys - 1]
    int64_t q_stride, k_stride, v_stride, output_stride, residual_stride;  // of rows
    int64_t q_step, k_step, v_step, output_step, residual_step;            // of batches
    int rows, keys, width;
    float scale;
    float extra;  // log2 of how many times the last key counts
};

// Copies `count` rows of a matrix from row `first` on to shared memory, with zeros beyond its rows and columns.
template <class Shape>
__device__ __forceinline__ void load_rows(
    uint32_t to, const __nv_bfloat16* from, int64_t stride, int first, int count, int rows, int width) {
    constexpr int kPieces = Shape::kWidth / 8;
    for (int i = threadIdx.x; i < count * kPieces; i += Shape::kThreads) {
        const int row = i / kPieces, column = i % kPieces * 8;
        const bool there = first + row < rows && column < width;
        copy_async(to + (row * Shape::kStride + column) * 2, from + (there ? (first + row) * stride + column : 0), there);
    }
}

template <class Shape>
__device__ __forceinline__ void run(const Arguments& a) {
    constexpr int kKeys = Shape::kKeys, kStride = Shape::kStride, kPart = Shape::kPart;
    constexpr float kLog2E = 1.4426950408889634f;
    const uint32_t queries = dynamic_shared(), tiles_at = queries + kRows * kStride * 2;
    const auto key_tile = [&](int stage) { return tiles_at + 2 * stage * Shape::kTile * 2; };
    const auto value_tile = [&](int stage) { return tiles_at + (2 * stage + 1) * Shape::kTile * 2; };

    const int head = blockIdx.y, first_row = blockIdx.x * kRows;
    const int warp = threadIdx.x / 32 % 4, part = threadIdx.x / 128, lane = threadIdx.x % 32;
    const auto* q = a.q + blockIdx.z * a.q_step + head * a.width;
    const auto* k = a.k + blockIdx.z * a.k_step + head * a.width;
    const auto* v = a.v + blockIdx.z * a.v_step + head * a.width;
    const int tiles = (a.keys + kKeys - 1) / kKeys;

    load_rows<Shape>(queries, q, a.q_stride, first_row, kRows, a.rows, a.width);
    load_rows<Shape>(key_tile(0), k, a.k_stride, 0, kKeys, a.keys, a.width);
    load_rows<Shape>(value_tile(0), v, a.v_stride, 0, kKeys, a.keys, a.width);
    copy_commit();

    // Accumulators 0, 1 of a product are columns 2 (lane % 4) and the next of row lane / 4; 2, 3 those of the row 8 below.
    float o[kPart / 8][4] = {};
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
    const int row = first_row + warp * 16 + lane / 4;
    // ldmatrix: lanes 0 to 15 give rows, 16 to 31 the same rows 8 columns on.
    const uint32_t query = queries + ((warp * 16 + lane % 16) * kStride + lane / 16 * 8) * 2;

    for (int tile = 0; tile < tiles; tile++) {
        const int stage = tile % 2;
        if (tile + 1 < tiles) {
            load_rows<Shape>(key_tile(stage ^ 1), k, a.k_stride, (tile + 1) * kKeys, kKeys, a.keys, a.width);
            load_rows<Shape>(value_tile(stage ^ 1), v, a.v_stride, (tile + 1) * kKeys, kKeys, a.keys, a.width);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();

        float s[kKeys / 8][4] = {};
        // K as it lies is the right operand: lanes 0 to 7 and 8 to 15 give 8 keys at two neighbouring columns, the others
        // the next 8 keys.
        const uint32_t key = key_tile(stage) + ((lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8) * 2;
#pragma unroll 4
        for (int c = 0; c < Shape::kWidth; c += 16) {
            uint32_t left[4];
            load_matrices(left, query + c * 2);
#pragma unroll
            for (int n = 0; n < kKeys; n += 16) {
                uint32_t right[4];
                load_matrices(right, key + (n * kStride + c) * 2);
                multiply_bf16(s[n / 8], left, right[0], right[1]);
                multiply_bf16(s[n / 8 + 1], left, right[2], right[3]);
            }
        }

        const int first_key = tile * kKeys + lane % 4 * 2;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = maximum[r];
            const bool biased = a.bias != nullptr && row + 8 * r < a.rows;
            const float* bias = biased ? a.bias + int64_t(head) * (a.rows + a.keys - 1) + a.rows - 1 - (row + 8 * r) : nullptr;
#pragma unroll
            for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& x = s[n][2 * r + i];
                    const int number = first_key + 8 * n + i;
                    x *= a.scale * kLog2E;
                    if (biased && number < a.keys) x = fmaf(__ldg(bias + number), kLog2E, x);
                    if (number + 1 == a.keys) x += a.extra;
                    if (number >= a.keys) x = -INFINITY;
                    top = fmaxf(top, x);
                }
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            const float rescale = exp2_fast(maximum[r] - top);
            maximum[r] = top;
            sum[r] *= rescale;
#pragma unroll
            for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    s[n][2 * r + i] = exp2_fast(s[n][2 * r + i] - top);
                    sum[r] += s[n][2 * r + i];
                }
#pragma unroll
            for (int n = 0; n < kPart / 8; n++) {
                o[n][2 * r] *= rescale;
                o[n][2 * r + 1] *= rescale;
            }
        }

        // V as it lies is the right operand transposed: lanes 0 to 15 give 16 keys, the others the same 8 columns on.
        const uint32_t value = value_tile(stage) + (lane % 16 * kStride + part * kPart + lane / 16 * 8) * 2;
#pragma unroll
        for (int n = 0; n < kKeys; n += 16) {
            const uint32_t left[4] = {pack_bf16(s[n / 8][0], s[n / 8][1]), pack_bf16(s[n / 8][2], s[n / 8][3]),
                                      pack_bf16(s[n / 8 + 1][0], s[n / 8 + 1][1]), pack_bf16(s[n / 8 + 1][2], s[n / 8 + 1][3])};
#pragma unroll
            for (int c = 0; c < kPart; c += 16) {
                uint32_t right[4];
                load_matrices_transposed(right, value + (n * kStride + c) * 2);
                multiply_bf16(o[c / 8], left, right[0], right[1]);
                multiply_bf16(o[c / 8 + 1], left, right[2], right[3]);
            }
        }
        // The next round overwrites this tile.
        __syncthreads();
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        const float inverse = 1.f / sum[r];
        if (row + 8 * r >= a.rows) continue;
        const int64_t at = int64_t(row + 8 * r);
        auto* to = a.output + blockIdx.z * a.output_step + at * a.output_stride + head * a.width;
        const auto* more = a.residual == nullptr
                               ? nullptr
                               : a.residual + blockIdx.z * a.residual_step + at * a.residual_stride + head * a.width;
#pragma unroll
        for (int n = 0; n < kPart / 8; n++) {
            const int column = part * kPart + 8 * n + lane % 4 * 2;
            if (column >= a.width) continue;
            float x = o[n][2 * r] * inverse, y = o[n][2 * r + 1] * inverse;
            if (more != nullptr) {
                const uint32_t pair = *reinterpret_cast<const uint32_t*>(more + column);
                x += __uint_as_float(pair << 16);
                y += __uint_as_float(pair & 0xffff0000u);
            }
            *reinterpret_cast<uint32_t*>(to + column) = pack_bf16(x, y);
        }
    }
}

}  // namespace attention_any
