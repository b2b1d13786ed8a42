// What follows a product: scales, bias, activation, gate, residual, conversion. See sm90/gemm.cuh and sm80/product.cuh.
#pragma once

#include <cuda_bf16.h>

#include "activation.cuh"

namespace gemm {

using namespace gpu;

// How a product ends; in all of them y = row_scale * column_scale * product + bias.
//   kPlain      residual + gate * y
//   kActivated  gate * activation(y)
//   kSquared    y, and the sum of its squares over a tile's columns of each row; whole tiles only
//   kNormed     silu(gamma * sqrt(columns) * y / max(|y|, 1e-12)), |y| over a row, all of which is in one tile; no scales
enum EpilogueKind { kPlain, kActivated, kNormed, kSquared };

// The arguments of an epilogue; absent parts are null. If the output is narrower than the product (`width` < columns),
// each further `width` columns go `half_step` rows further down.
struct Epilogue {
    const float* row_scale;            // [rows]
    const float* column_scale;         // [columns]
    const float* bias;                 // [columns]
    const float* gate;                 // [columns]
    const __nv_bfloat16* element_gate; // [rows, columns], gate_stride apart
    const float* gamma;                // [columns]
    const void* residual;              // of the output's type and shape
    void* output;
    float* squares;                    // [rows, squared], of kSquared
    int64_t gate_stride;
    int64_t residual_stride;
    int64_t output_stride;
    int width;
    int half_step;
    int activation;
    int squared;  // tiles of columns, from the first on, whose squares are summed up
};

__device__ __forceinline__ void widen(float (&x)[4], float4 bits) {
    x[0] = bits.x;
    x[1] = bits.y;
    x[2] = bits.z;
    x[3] = bits.w;
}
__device__ __forceinline__ void widen(float (&x)[4], uint2 bits) {
    x[0] = __uint_as_float(bits.x << 16);
    x[1] = __uint_as_float(bits.x & 0xffff0000u);
    x[2] = __uint_as_float(bits.y << 16);
    x[3] = __uint_as_float(bits.y & 0xffff0000u);
}

__device__ __forceinline__ void store_four(float* to, const float (&x)[4]) {
    store_global(to, make_float4(x[0], x[1], x[2], x[3]));
}
__device__ __forceinline__ void store_four(__nv_bfloat16* to, const float (&x)[4]) {
    store_global(to, make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])));
}

template <class Output>
struct Raw;  // four elements as they are loaded
template <>
struct Raw<float> {
    using Four = float4;
};
template <>
struct Raw<__nv_bfloat16> {
    using Four = uint2;
};

__device__ __forceinline__ float in_f32(float sum) { return sum; }
__device__ __forceinline__ float in_f32(int sum) { return __int2float_rn(sum); }

// Applies the channel norm to the two rows that a thread shares with three others: x becomes (x + bias) * factor of the
// row.
template <int kSums>
__device__ __forceinline__ void normalize(float (&sum)[kSums], const float* bias, int columns, int lane) {
    float square[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < kSums; i += 2) {
        const float2 b = bias == nullptr ? make_float2(0.f, 0.f)
                                         : __ldg(reinterpret_cast<const float2*>(bias + i / 4 * 8 + lane % 4 * 2));
        if ((i / 2) % 2 == 0) {
            sum[i] += b.x;
            sum[i + 1] += b.y;
            sum[i + 2] += b.x;
            sum[i + 3] += b.y;
        }
        square[(i / 2) % 2] = fmaf(sum[i], sum[i], fmaf(sum[i + 1], sum[i + 1], square[(i / 2) % 2]));
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        square[r] += __shfl_xor_sync(0xffffffffu, square[r], 1);
        square[r] += __shfl_xor_sync(0xffffffffu, square[r], 2);
        square[r] = sqrtf(float(columns)) / fmaxf(sqrtf(square[r]), 1e-12f);
    }
#pragma unroll
    for (int i = 0; i < kSums; i++) sum[i] *= square[(i / 2) % 2];
}

// Asks the L2 cache for the residual's part of a tile, before it is computed.
template <class Shape, class Output, class Problem, class Place>
__device__ __forceinline__ void prefetch_residual(
    const Problem& problem, const Place& place, const Epilogue& e, int first, int lane) {
    constexpr int kLine = 128 / sizeof(Output);
    const int column0 = problem.column(place);
    for (int i = lane; i < 16 * ((Shape::kColumns + kLine - 1) / kLine); i += 32) {
        const int row = problem.row(place, first + i % 16), column = column0 + i / 16 * kLine;
        if (row < 0 || column >= problem.columns()) continue;
        const int half = column / e.width;
        const auto* from = static_cast<const Output*>(e.residual) +
                           (row + half * e.half_step) * e.residual_stride + column - half * e.width;
        prefetch_global(from);
    }
}

// Writes 16 rows of a tile, from row `first` on, that a warp has as accumulators: 4j, 4j + 1 are columns 8j + 2 (lane % 4)
// and the next of row lane / 4, and 4j + 2, 4j + 3 are these columns of the row 8 below.
template <class Shape, EpilogueKind kKind, class Output, class Problem, class Place, class Sum>
__device__ __forceinline__ void finish(
    const Problem& problem, const Place& place, const Epilogue& e, Sum (&sum)[Shape::kSums], int first,
    uint32_t chunk, int lane) {
    constexpr int kChunk = Shape::kChunk;
    constexpr int kLanes = kChunk / 4;          // threads of a row
    constexpr int kStep = 32 / kLanes;          // rows at once
    constexpr int kPasses = 16 / kStep;
    constexpr int kChunks = Shape::kColumns / kChunk;

    // Passes at once, so that their latencies overlap; with a residual in f32 there are registers for two.
    constexpr int kMost = kKind == kPlain && sizeof(Output) == 4 ? 2 : 4;
    constexpr int kGroup = kPasses < kMost ? kPasses : kMost;
    constexpr bool kFactors = kKind == kNormed || Problem::kScaled;

    const int column0 = problem.column(place), columns = problem.columns();
    const int mine = lane % kLanes * 4;  // first of this thread's columns in a chunk
    const auto* residual = static_cast<const Output*>(e.residual);
    auto* output = static_cast<Output*>(e.output);
    if constexpr (kKind == kNormed) normalize(sum, e.bias, columns, lane);

    // What a chunk needs of the columns is loaded while the one before is worked on. There are not
    // enough registers to do so for the residual, too.
    float4 factor, bias, gate;
    typename Raw<Output>::Four added[kKind == kPlain ? kPasses : 1];
    auto load_columns = [&](int c) {
        factor = gate = make_float4(1.f, 1.f, 1.f, 1.f);
        bias = make_float4(0.f, 0.f, 0.f, 0.f);
        const int column = column0 + c * kChunk + mine;
        if (column >= columns) return;
        if constexpr (kFactors) factor = load_global((kKind == kNormed ? e.gamma : e.column_scale) + column);
        if constexpr (kKind != kNormed) {
            if (e.bias != nullptr) bias = load_global(e.bias + column);
            if (e.gate != nullptr) gate = load_global(e.gate + column);
        }
    };
    auto load_residual = [&](int c) {
        const int column = column0 + c * kChunk + mine;
        if (residual == nullptr || column >= columns) return;
        const int half = column / e.width;
        const auto* from = residual + (half * e.half_step) * e.residual_stride + (column - half * e.width);
#pragma unroll
        for (int p = 0; p < kPasses; p++) {
            const int row = problem.row(place, first + p * kStep + lane / kLanes);
            if (row >= 0) added[p] = load_global(from + row * e.residual_stride);
        }
    };
    load_columns(0);

#pragma unroll
    for (int c = 0; c < kChunks; c++) {
        const int column = column0 + c * kChunk + mine;
        const int half = column / e.width, shift = column - half * e.width;

        __syncwarp();
#pragma unroll
        for (int j = 0; j < kChunk / 8; j++) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int at = lane / 4 + 8 * r;
                // 16-byte units of a row trade places, so that neither writing nor reading meets a bank twice.
                const int unit = (2 * j + lane % 4 / 2) ^ (2 * at & (kLanes - 1));
                const int i = (c * (kChunk / 8) + j) * 4 + 2 * r;
                store_shared(chunk + at * kChunk * 4 + unit * 16 + lane % 2 * 8, make_float2(in_f32(sum[i]), in_f32(sum[i + 1])));
            }
        }
        __syncwarp();

        if constexpr (kKind == kPlain) load_residual(c);
        float f[4], b[4], g[4];
        widen(f, factor);
        widen(b, bias);
        widen(g, gate);
        if (c + 1 < kChunks) load_columns(c + 1);
        if (column >= columns) continue;

#pragma unroll
        for (int group = 0; group < kPasses; group += kGroup) {
            float x[kGroup][4], y[4], row_scale[kGroup];
            int row[kGroup];
#pragma unroll
            for (int p = 0; p < kGroup; p++) {
                const int at = (group + p) * kStep + lane / kLanes;
                row[p] = problem.row(place, first + at);
                row_scale[p] = Problem::kScaled && row[p] >= 0 ? __ldg(e.row_scale + row[p]) : 1.f;
                const int unit = lane % kLanes ^ (2 * at & (kLanes - 1));
                widen(x[p], load_shared(chunk + at * kChunk * 4 + unit * 16));
            }
#pragma unroll
            for (int p = 0; p < kGroup; p++)
#pragma unroll
                for (int i = 0; i < 4; i++) x[p][i] = fmaf(x[p][i] * row_scale[p], f[i], b[i]);
            if constexpr (kKind == kActivated) activate(x, e.activation);
            if constexpr (kKind == kNormed) activate(x, kSilu);
#pragma unroll
            for (int p = 0; p < kGroup; p++) {
                if (row[p] < 0) continue;
#pragma unroll
                for (int i = 0; i < 4; i++) x[p][i] *= g[i];
                if (kKind != kNormed && e.element_gate != nullptr) {
                    widen(y, load_global(e.element_gate + row[p] * e.gate_stride + column));
#pragma unroll
                    for (int i = 0; i < 4; i++) x[p][i] *= y[i];
                }
                if constexpr (kKind == kPlain) {
                    if (residual != nullptr) {
                        widen(y, added[group + p]);
#pragma unroll
                        for (int i = 0; i < 4; i++) x[p][i] += y[i];
                    }
                }
                store_four(output + (row[p] + half * e.half_step) * e.output_stride + shift, x[p]);
            }
        }
    }
}

}  // namespace gemm
