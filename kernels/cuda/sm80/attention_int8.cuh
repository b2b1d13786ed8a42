// softmax(Q K^T) V for heads of 128 with all operands in 8 bits, by mma.sync: s8 Q K^T, u8 P, s8 V, s32 sums.
//
// A block takes 192 queries, 16 for each of twelve warps, and walks over tiles of 128 keys, two of which are in shared memory.
// K and V lie there as the preparing kernels have written each tile, so copies need no bounds and no arithmetic.
//
// - Sums begin at the bits of 12582912 = 3 * 2^22, so that they are floats as they come: 128 * 127 * 127 < 2^21 for scores, and
//   128 * 255 * 127 < 2^22 for a tile's part of the output. The first product of each sum has them as its summand.
// - Exponents are one fma of such a float: the scaled bias is part of the summand, which is rounded down, so that P is at most
//   255. That moves all exponents of a tile by less than two units of the scores.
// - The output takes up the bias of its parts with them, so that a part costs one fma, too. Every other tile of V is negated and
//   weighted negatively, which is right for its part and gives the bias the other sign: in the output biases cancel as far as two
//   tiles weigh alike, and what is left of them is taken out at times and in the end.
// - P is rounded to whole numbers below 255 at the greatest of its own tile: relative to the greatest so far, as a float
//   would be, tiles of small scores would lose their bits. The tile's part of the output is weighted when it is added to
//   the sum, in f32 by one fma. The sums of P are those of the rounded numbers.
// - Registers of scores are, packed in place, those of P as the left operand of P V if V has its keys in another order, which
//   is how attention_quantize_value writes it.
// - Each scheduler has three warps, and at any time one of them computes scores, one turns its scores into P, and one
//   multiplies P by V: thirds of the block go through these three phases, one phase apart, with a barrier after each
//   phase. So the tensor cores have the products of two warps to choose from, while the third warp's arithmetic lasts as
//   long as these products.
#pragma once

#include <cuda_bf16.h>

#include <instructions/base.cuh>

namespace int8_attention {

using namespace gpu;

constexpr int kHeadDim = 128;
constexpr int kKeys = 128;  // of a tile: one scale of K, one image of V
constexpr int kWarps = 12;
constexpr int kFlush = 16;  // tiles after which what is left of their bias is taken out of the output
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = 16 * kWarps;  // queries of a block
constexpr uint32_t kRowBytes = 128;
constexpr uint32_t kQueryBytes = kRows * kRowBytes;
constexpr uint32_t kTileBytes = 128 * kRowBytes;  // of K and V alike
constexpr uint32_t kSharedBytes = kQueryBytes + 4 * kTileBytes;

constexpr int kBiasBits = 0x4b400000;
constexpr float kBias = 12582912.f;
constexpr float kLog2Most = 7.9943534f;  // log2(255)
// The least scale of scores, so that its product with minus infinity is minus infinity; scores of such a scale are 0
// beside the others.
constexpr float kLeastScale = 1e-30f;

struct Arguments {
    const uint8_t* query;      // [rows, heads * 128] s8
    const uint8_t* key;        // [heads, tiles, 128 keys, 128 channels] s8, zero beyond the last key
    const uint8_t* value;      // [heads, tiles, 128 channels, 128 keys] s8, zero beyond the last key
    const float* query_scale;  // [heads, rows], log2(e) / sqrt(128) included
    const float* key_scale;    // [heads, tiles]
    const float* value_scale;  // [heads * 128]
    const float* value_mean;   // [heads * 128], of what V is less
    __nv_bfloat16* output;     // [rows, heads * 128]
    int64_t stride;            // of its rows
    int rows, keys;
};

// Returns where 16 bytes of a row of a tile lie.
__device__ __forceinline__ uint32_t unit(uint32_t tile, int row, int unit) {
    return tile + row * kRowBytes + ((unit ^ (row & 7)) << 4);
}

__device__ __forceinline__ void run(const Arguments& a) {
    const uint32_t queries = dynamic_shared(), keys = queries + kQueryBytes, values = keys + 2 * kTileBytes;
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;
    const int head = blockIdx.y, first_row = blockIdx.x * kRows;
    const int tiles = (a.keys + kKeys - 1) / kKeys;
    const float* key_scales = a.key_scale + int64_t(head) * tiles;

    // The first third copies tiles of K, the second one tiles of V; a thread copies 16 bytes of every 16th row.
    const int third = warp / 4, thread = threadIdx.x % 128;
    constexpr int kEvery = 128 / 8;
    const uint8_t* from = (third == 0 ? a.key : a.value) + int64_t(head) * tiles * kTileBytes + thread * 16;
    const uint32_t to = unit(third == 0 ? keys : values, thread / 8, thread % 8);
    auto copy_tile = [&](int tile) {
        if (third < 2 && tile < tiles) {
#pragma unroll
            for (int i = 0; i < 128 / kEvery; i++)
                copy_async(to + tile % 2 * kTileBytes + i * kEvery * kRowBytes,
                           from + int64_t(tile) * kTileBytes + i * kEvery * kRowBytes, true);
        }
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < kRows * 8 / kThreads; i++) {
        const int row = threadIdx.x / 8 + i * (kThreads / 8);
        const bool there = first_row + row < a.rows;
        const int64_t at = (int64_t(there ? first_row + row : 0) * gridDim.y + head) * kHeadDim + threadIdx.x % 8 * 16;
        copy_async(unit(queries, row, threadIdx.x % 8), a.query + at, there);
    }
    copy_tile(0);

    // Accumulators 0, 1 of a product are columns 2 (lane % 4) and the next of row lane / 4; 2, 3 those of the row 8 below.
    const int row = first_row + warp * 16 + lane / 4;
    float query_scale[2];
#pragma unroll
    for (int r = 0; r < 2; r++) query_scale[r] = a.query_scale[int64_t(head) * a.rows + min(row + 8 * r, a.rows - 1)];
    float key_scale = key_scales[0];
    // ldmatrix: lanes 0 to 7 and 8 to 15 give eight keys, or channels, at two neighbouring units, the others the next eight.
    const int matrix_row = lane / 16 * 8 + lane % 8, matrix_unit = lane / 8 % 2;
    const int bias[4] = {kBiasBits, kBiasBits, kBiasBits, kBiasBits};

    int s[kKeys / 8][4];                  // scores, on the bits of kBias
    uint32_t p[kKeys / 32][4];            // P, as the left operand
    float o[kHeadDim / 8][4] = {};        // in units of 2^maximum, with `surplus` times kBias
    float weight[2];                      // of the tile's part in o, negative for every other tile
    float surplus[2] = {0.f, 0.f};
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};

    // Computes s = Q K^T of a tile.
    auto score = [&](uint32_t tile) {
        uint32_t q[4][4];
#pragma unroll
        for (int k = 0; k < 4; k++) load_matrices(q[k], unit(queries, warp * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < kKeys / 8; n += 4)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                uint32_t low[4], high[4];
                load_matrices(low, unit(tile, n * 8 + matrix_row, 2 * k + matrix_unit));
                load_matrices(high, unit(tile, n * 8 + 16 + matrix_row, 2 * k + matrix_unit));
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int(&d)[4] = s[n + i];
                    const uint32_t(&right)[4] = i < 2 ? low : high;
                    if (k == 0) {
                        multiply_s8(d, q[k], right[i % 2 * 2], right[i % 2 * 2 + 1], bias);
                    } else {
                        const int c[4] = {d[0], d[1], d[2], d[3]};
                        multiply_s8(d, q[k], right[i % 2 * 2], right[i % 2 * 2 + 1], c);
                    }
                }
            }
    };

    // Adds weight * P V of a tile to o.
    auto add = [&](uint32_t tile) {
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; n += 4) {
            int part[4][4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                uint32_t low[4], high[4];
                load_matrices(low, unit(tile, n * 8 + matrix_row, 2 * k + matrix_unit));
                load_matrices(high, unit(tile, n * 8 + 16 + matrix_row, 2 * k + matrix_unit));
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int(&d)[4] = part[i];
                    const uint32_t(&right)[4] = i < 2 ? low : high;
                    if (k == 0) {
                        multiply_u8(d, p[k], right[i % 2 * 2], right[i % 2 * 2 + 1], bias);
                    } else {
                        const int c[4] = {d[0], d[1], d[2], d[3]};
                        multiply_u8(d, p[k], right[i % 2 * 2], right[i % 2 * 2 + 1], c);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    o[n + i][j] = fmaf(__int_as_float(part[i][j]), weight[j / 2], o[n + i][j]);
        }
    };

    // Takes the bias of the parts out of o.
    auto flush = [&] {
#pragma unroll
        for (int r = 0; r < 2; r++) {
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; n++)
#pragma unroll
                for (int j = 2 * r; j < 2 * r + 2; j++) o[n][j] = fmaf(-kBias, surplus[r], o[n][j]);
            surplus[r] = 0.f;
        }
    };

    // Turns s into p, weight and sum.
    auto soften = [&](int tile) {
        float scale[2];
#pragma unroll
        for (int r = 0; r < 2; r++) scale[r] = fmaxf(query_scale[r] * key_scale, kLeastScale);
        if (tile + 1 < tiles) key_scale = __ldg(key_scales + tile + 1);
        const int there = a.keys - tile * kKeys - lane % 4 * 2;
        if (tile + 1 == tiles && a.keys % kKeys != 0) {
#pragma unroll
            for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (8 * n + j % 2 >= there) s[n][j] = __float_as_int(-INFINITY);
        }
        float top[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float two[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                two[j] = __int_as_float(s[0][2 * r + j]);
#pragma unroll
                for (int n = 1; n < kKeys / 8; n++) two[j] = fmaxf(two[j], __int_as_float(s[n][2 * r + j]));
            }
            top[r] = fmaxf(two[0], two[1]);
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
        }
        float shift[2];
#pragma unroll
        for (int r = 0; r < 2; r++) shift[r] = fma_down(-top[r], scale[r], kLog2Most);
        uint32_t count[2] = {0, 0};
#pragma unroll
        for (int k = 0; k < kKeys / 32; k++)
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float x[4];
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        const float score = __int_as_float(s[4 * k + 2 * half + j / 2][2 * r + j % 2]);
                        x[j] = exp2_fast(fmaf(score, scale[r], shift[r]));
                    }
                    p[k][2 * half + r] = pack_u8(x[0], x[1], x[2], x[3]);
                    count[r] = sum_bytes(p[k][2 * half + r], count[r]);
                }
        float exponent[2];
#pragma unroll
        for (int r = 0; r < 2; r++) exponent[r] = (top[r] - kBias) * scale[r];
        if (__any_sync(0xffffffffu, exponent[0] > maximum[0] || exponent[1] > maximum[1])) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float next = fmaxf(maximum[r], exponent[r]), rescale = exp2_fast(maximum[r] - next);
                maximum[r] = next;
                sum[r] *= rescale;
                surplus[r] *= rescale;
#pragma unroll
                for (int n = 0; n < kHeadDim / 8; n++) {
                    o[n][2 * r] *= rescale;
                    o[n][2 * r + 1] *= rescale;
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            weight[r] = exp2_fast(exponent[r] - maximum[r]);
            sum[r] = fmaf(__int2float_rn(int(count[r])), weight[r], sum[r]);
            if (tile % 2 != 0) weight[r] = -weight[r];
            surplus[r] += weight[r];
        }
        // All of P must be computed in this phase.
        hold_until_known(count[0] | count[1], queries);
    };

    copy_wait<0>();
    __syncthreads();
    // Each third is a phase behind the one before, so the thirds meet at different places of this loop.
    auto meet = [] { named_sync(1, kThreads); };
    for (int i = 0; i < third; i++) meet();
    for (int tile = 0; tile < tiles; tile++) {
        score(keys + tile % 2 * kTileBytes);
        meet();
        // When the first third is here, all warps have finished with K of the tile before the last; when the second
        // third is here, with V of it. The copies that replace them are first read two and three phases later.
        copy_tile(tile + 1);
        soften(tile);
        // This barrier only keeps the phases apart.
        meet();
        add(values + tile % 2 * kTileBytes);
        if (tile % kFlush == kFlush - 1) flush();
        copy_wait<0>();
        meet();
    }
    for (int i = third; i < 2; i++) meet();
    flush();

#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        const float inverse = 1.f / sum[r];
        if (row + 8 * r >= a.rows) continue;
        auto* to = a.output + (row + 8 * r) * a.stride + head * kHeadDim;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; n++) {
            const int channel = 8 * n + lane % 4 * 2;
            const float2 factor = __ldg(reinterpret_cast<const float2*>(a.value_scale + head * kHeadDim + channel));
            const float2 mean = __ldg(reinterpret_cast<const float2*>(a.value_mean + head * kHeadDim + channel));
            *reinterpret_cast<uint32_t*>(to + channel) = pack_bf16(fmaf(o[n][2 * r] * inverse, factor.x, mean.x),
                                                                   fmaf(o[n][2 * r + 1] * inverse, factor.y, mean.y));
        }
    }
}

}  // namespace int8_attention
