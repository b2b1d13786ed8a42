// The short way from the accumulators of a whole tile of a matrix product to its output: scales, bias, activation. The
// general way, `finish`, has more instructions and branches, and takes as long as nine blocks of K.
//
// The two columns of two rows that a thread has of each eight are, with those of the row's three other threads, whole
// sectors of f32, and of bf16 after a trade among the four: only the scales and biases of a tile's columns go through
// shared memory, and they are copied while the tile is computed.
#pragma once

#include "../any/epilogue.cuh"

namespace gemm {

// Scales and biases of a tile's columns, for one warp.
template <int kColumns>
struct ColumnVectors {
    uint32_t base;  // of shared memory, kBytes
    static constexpr uint32_t kBytes = 2 * 4 * kColumns;

    // Starts to copy the scales and biases of the columns from `first` on. An absent bias is 0.
    template <bool kScaled>
    __device__ __forceinline__ void bring(const Epilogue& e, int first, int lane) const {
        static_assert(kColumns % (4 * 32) == 0, "all lanes bring as much");
        // Other lanes may still be reading the vectors of the tile before.
        __syncwarp();
        const uint32_t scales = opaque(base + 16 * lane), biases = scales + 4 * kColumns;
        const int column = first + 4 * lane;
#pragma unroll
        for (int i = 0; i < kColumns; i += 4 * 32) {
            if constexpr (kScaled) copy_async(scales + 4 * i, e.column_scale + column + i, true);
            if (e.bias != nullptr)
                copy_async(biases + 4 * i, e.bias + column + i, true);
            else
                store_shared(biases + 4 * i, make_float4(0.f, 0.f, 0.f, 0.f));
        }
        copy_commit();
    }

    __device__ __forceinline__ void arrive() const {
        copy_wait<0>();
        __syncwarp();
    }
};

// The two rows of 16 of which a thread has accumulators, or -1 where there is no row, and their scales.
struct TwoRows {
    int row[2];
    float scale[2];
};

// Trades words among four threads: word i of thread t becomes word t of thread i.
__device__ __forceinline__ void trade(uint32_t (&word)[4], int lane) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        const bool upper = lane & step;
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const int i = step == 1 ? 2 * k : k;
            const uint32_t mine = upper ? word[i] : word[i + step];
            const uint32_t other = __shfl_xor_sync(0xffffffffu, mine, step);
            word[i] = upper ? other : word[i];
            word[i + step] = upper ? word[i + step] : other;
        }
    }
}

// Writes 16 rows of all columns of a tile that a warp has as accumulators: 4j, 4j + 1 are columns 8j + 2 (lane % 4) and the
// next of the first of a thread's rows, and 4j + 2, 4j + 3 are these columns of the second. There are neither gates nor
// a residual. With kSquared it also writes the sums of squares of the rows.
template <class Shape, EpilogueKind kKind, bool kScaled, class Output, class Sum>
__device__ __forceinline__ void finish_whole(
    const Epilogue& e, const Sum (&sum)[Shape::kSums], const TwoRows& rows, int first,
    const ColumnVectors<Shape::kColumns>& vectors, int lane) {
    constexpr bool kWide = sizeof(Output) == 4;
    constexpr int kGroup = 4;  // eights of columns at once: as many as a row has threads
    static_assert(kKind != kNormed && Shape::kColumns % (8 * kGroup) == 0);
    float square[2] = {0.f, 0.f};

    const int pair = lane % 4 * 2;
    const uint32_t scales = opaque(vectors.base + 4 * pair), biases = scales + 4 * Shape::kColumns;
    Output* to[2];
#pragma unroll
    for (int r = 0; r < 2; r++)
        to[r] = opaque(static_cast<Output*>(e.output) + max(rows.row[r], 0) * e.output_stride + first +
                       (kWide ? pair : lane % 4 * 8));

#pragma unroll
    for (int group = 0; group < Shape::kColumns / (8 * kGroup); group++) {
        float x[kGroup][4];
#pragma unroll
        for (int j = 0; j < kGroup; j++) {
            const int i = group * kGroup + j;
            const float2 bias = load_shared_pair(biases + 32 * i);
            const float2 scale = kScaled ? load_shared_pair(scales + 32 * i) : make_float2(1.f, 1.f);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float row_scale = kScaled ? rows.scale[r] : 1.f;
                x[j][2 * r] = fmaf(in_f32(sum[4 * i + 2 * r]) * row_scale, scale.x, bias.x);
                x[j][2 * r + 1] = fmaf(in_f32(sum[4 * i + 2 * r + 1]) * row_scale, scale.y, bias.y);
            }
        }
        if constexpr (kKind == kActivated) activate(x, e.activation);
        if constexpr (kKind == kSquared) {
#pragma unroll
            for (int j = 0; j < kGroup; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) square[i / 2] = fmaf(x[j][i], x[j][i], square[i / 2]);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if constexpr (kWide) {
#pragma unroll
                for (int j = 0; j < kGroup; j++)
                    if (rows.row[r] >= 0)
                        store_global(to[r] + (group * kGroup + j) * 8, make_float2(x[j][2 * r], x[j][2 * r + 1]));
            } else {
                uint32_t word[kGroup];
#pragma unroll
                for (int j = 0; j < kGroup; j++) word[j] = pack_bf16(x[j][2 * r], x[j][2 * r + 1]);
                trade(word, lane);
                if (rows.row[r] >= 0)
                    store_global(to[r] + group * kGroup * 8, make_uint4(word[0], word[1], word[2], word[3]));
            }
        }
    }
    if constexpr (kKind == kSquared) {
        const int tile = first / Shape::kColumns;
        if (tile >= e.squared) return;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            square[r] += __shfl_xor_sync(0xffffffffu, square[r], 1);
            square[r] += __shfl_xor_sync(0xffffffffu, square[r], 2);
            if (lane % 4 == 0 && rows.row[r] >= 0) e.squares[int64_t(rows.row[r]) * e.squared + tile] = square[r];
        }
    }
}

}  // namespace gemm
