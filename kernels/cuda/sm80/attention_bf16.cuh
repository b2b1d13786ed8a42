// residual + softmax(Q K^T) V for heads of 128 with bf16 operands, by mma.sync, to few keys and to many. P is rounded to bf16,
// and nothing else is.
//
// A block takes 128 queries, 16 for each of eight warps, and walks over tiles of 64 keys, two of which are in shared memory.
//
// - Two warps on each scheduler: while one turns its scores into P, the other one's products are under way.
// - Queries stay in registers: 32, beside 64 of sums and 32 of scores. Every warp reads a tile's K and V from shared memory
//   once, 32 KB for 128 products, which is 2,048 clocks of a multiprocessor for eight warps. Those products take 8,192 clocks on
//   GeForce cards, where two warps of 32 rows would gain nothing, and 2,048 on an A100, where both are then equally long.
// - 16-byte units of a row trade places by the row's number, so that neither copies nor ldmatrix meet a bank twice.
// - Sums are rescaled only where a maximum has grown. Bounds of keys, and the weight of the last one, are looked at in the last tile only.
#pragma once

#include <cuda_bf16.h>

#include <instructions/base.cuh>

namespace attention_bf16 {

using namespace gpu;

constexpr int kHeadDim = 128;
constexpr int kKeys = 64;  // of a tile
constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;  // queries of a block
constexpr uint32_t kRowBytes = 2 * kHeadDim;
constexpr int kUnits = kRowBytes / 16;  // of a row
constexpr uint32_t kQueryBytes = kRows * kRowBytes;
constexpr uint32_t kTileBytes = kKeys * kRowBytes;  // of K and V alike
constexpr uint32_t kSharedBytes = kQueryBytes + 4 * kTileBytes;

struct Arguments {
    const __nv_bfloat16 *q, *k, *v;  // [rows or keys, heads * 128]
    const __nv_bfloat16* residual;   // like q, or null
    __nv_bfloat16* output;           // like q
    int64_t q_stride, k_stride, v_stride, residual_stride, output_stride;  // of rows
    int rows, keys;
    float scale;  // log2(e) / sqrt(128)
    float extra;  // log2 of how many times the last key counts, over scale
};

// Returns where 16 bytes of a row of a tile lie.
__device__ __forceinline__ uint32_t unit(uint32_t tile, int row, int unit) {
    return tile + row * kRowBytes + ((unit ^ (row & 7)) << 4);
}

// Copies kCount rows from row `first` on, and zeros beyond the last row.
template <int kCount>
__device__ __forceinline__ void load_rows(uint32_t to, const __nv_bfloat16* from, int64_t stride, int first, int rows) {
    constexpr int kEvery = kThreads / kUnits;
    const int column = threadIdx.x % kUnits;
#pragma unroll
    for (int i = 0; i < kCount / kEvery; i++) {
        const int row = threadIdx.x / kUnits + i * kEvery;
        const bool there = first + row < rows;
        copy_async(unit(to, row, column), from + (there ? (first + row) * stride : 0) + column * 8, there);
    }
}

__device__ __forceinline__ void run(const Arguments& a) {
    const uint32_t queries = dynamic_shared(), keys = queries + kQueryBytes, values = keys + 2 * kTileBytes;
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const int head = blockIdx.y * kHeadDim, first_row = blockIdx.x * kRows;
    const int tiles = (a.keys + kKeys - 1) / kKeys;
    auto load_tile = [&](int tile) {
        load_rows<kKeys>(keys + tile % 2 * kTileBytes, a.k + head, a.k_stride, tile * kKeys, a.keys);
        load_rows<kKeys>(values + tile % 2 * kTileBytes, a.v + head, a.v_stride, tile * kKeys, a.keys);
        copy_commit();
    };
    load_rows<kRows>(queries, a.q + head, a.q_stride, first_row, a.rows);
    load_tile(0);

    // Accumulators 0, 1 of a product are columns 2 (lane % 4) and the next of row lane / 4; 2, 3 those of the row 8 below.
    const int row = first_row + warp * 16 + lane / 4;
    uint32_t q[kHeadDim / 16][4];
    float o[kHeadDim / 8][4] = {};  // relative to 2^(scale * maximum)
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};

    for (int tile = 0; tile < tiles; tile++) {
        copy_wait<0>();
        // Now everybody's copies are there, and everybody has finished with the tile before, which the next copies replace.
        __syncthreads();
        if (tile == 0) {
#pragma unroll
            for (int c = 0; c < kHeadDim / 16; c++)
                load_matrices(q[c], unit(queries, warp * 16 + lane % 16, 2 * c + lane / 16));
        }
        if (tile + 1 < tiles) load_tile(tile + 1);

        // K as it lies is the right operand: lanes 0 to 7 and 8 to 15 give eight keys at two neighbouring units, the others the
        // next eight keys.
        const uint32_t key_tile = keys + tile % 2 * kTileBytes;
        float s[kKeys / 8][4] = {};
#pragma unroll
        for (int c = 0; c < kHeadDim / 16; c++)
#pragma unroll
            for (int n = 0; n < kKeys / 8; n += 2) {
                uint32_t right[4];
                load_matrices(right, unit(key_tile, n * 8 + lane / 16 * 8 + lane % 8, 2 * c + lane / 8 % 2));
                multiply_bf16(s[n], q[c], right[0], right[1]);
                multiply_bf16(s[n + 1], q[c], right[2], right[3]);
            }

        if (tile + 1 == tiles) {
            const int there = a.keys - tile * kKeys - lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int column = 8 * n + i % 2;
                    if (column + 1 == there) s[n][i] += a.extra;
                    if (column >= there) s[n][i] = -INFINITY;
                }
        }
        float top[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float two[2] = {s[0][2 * r], s[0][2 * r + 1]};
#pragma unroll
            for (int n = 1; n < kKeys / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) two[i] = fmaxf(two[i], s[n][2 * r + i]);
            top[r] = fmaxf(two[0], two[1]);
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
        }
        if (__any_sync(0xffffffffu, top[0] > maximum[0] || top[1] > maximum[1])) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float next = fmaxf(maximum[r], top[r]), rescale = exp2_fast((maximum[r] - next) * a.scale);
                maximum[r] = next;
                sum[r] *= rescale;
#pragma unroll
                for (int n = 0; n < kHeadDim / 8; n++) {
                    o[n][2 * r] *= rescale;
                    o[n][2 * r + 1] *= rescale;
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float below = -maximum[r] * a.scale;
            float two[2] = {0.f, 0.f};
#pragma unroll
            for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& x = s[n][2 * r + i];
                    x = exp2_fast(fmaf(x, a.scale, below));
                    two[i] += x;
                }
            sum[r] += two[0] + two[1];
        }

        // V as it lies is the right operand transposed: lanes 0 to 15 give 16 keys, the others the same at the next unit.
        const uint32_t value_tile = values + tile % 2 * kTileBytes;
#pragma unroll
        for (int n = 0; n < kKeys / 8; n += 2) {
            const uint32_t p[4] = {pack_bf16(s[n][0], s[n][1]), pack_bf16(s[n][2], s[n][3]),
                                   pack_bf16(s[n + 1][0], s[n + 1][1]), pack_bf16(s[n + 1][2], s[n + 1][3])};
#pragma unroll
            for (int c = 0; c < kHeadDim / 16; c++) {
                uint32_t right[4];
                load_matrices_transposed(right, unit(value_tile, n * 8 + lane % 16, 2 * c + lane / 16));
                multiply_bf16(o[2 * c], p, right[0], right[1]);
                multiply_bf16(o[2 * c + 1], p, right[2], right[3]);
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        const float inverse = 1.f / sum[r];
        if (row + 8 * r >= a.rows) continue;
        const int64_t at = row + 8 * r;
        auto* to = a.output + at * a.output_stride + head;
        const auto* more = a.residual == nullptr ? nullptr : a.residual + at * a.residual_stride + head;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; n++) {
            const int channel = 8 * n + lane % 4 * 2;
            float x = o[n][2 * r] * inverse, y = o[n][2 * r + 1] * inverse;
            if (more != nullptr) {
                const uint32_t pair = *reinterpret_cast<const uint32_t*>(more + channel);
                x += __uint_as_float(pair << 16);
                y += __uint_as_float(pair & 0xffff0000u);
            }
            *reinterpret_cast<uint32_t*>(to + channel) = pack_bf16(x, y);
        }
    }
}

}  // namespace attention_bf16
