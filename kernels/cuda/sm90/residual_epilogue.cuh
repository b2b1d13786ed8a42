// The way from the accumulators of a whole tile of a matrix product to its output with a residual in f32: scales, bias,
// gate, sum. The general way, `finish`, waits for the residual once for each few columns, since there are no registers
// to have more of it under way. Here the copy engine brings it, while the last blocks of K are still being multiplied,
// into the slots of the ring that these have left.
#pragma once

#include "matrix_epilogue.cuh"

namespace gemm {

// A slice of a tile's residual: some of its columns in all of its rows, in one slot of the ring, as two boxes whose rows
// of 128 bytes are swizzled. It holds a thread's share: of each eight columns the two that its accumulators belong to,
// in both of its rows.
template <class Shape>
struct ResidualSlice {
    static constexpr int kBoxes = 2;
    static constexpr int kBoxColumns = 128 / 4;
    static constexpr int kColumns = kBoxes * kBoxColumns;
    static constexpr int kCount = Shape::kColumns / kColumns;  // slices of a tile
    static constexpr uint32_t kBoxBytes = Shape::kRows * 128;
    static constexpr uint32_t kBytes = kBoxes * kBoxBytes;
    static constexpr int kEights = kColumns / 8;
    static_assert(kBytes <= Shape::kStageBytes && Shape::kColumns % kColumns == 0);

    float2 share[kEights][2];

    // Reads the share from a slot, of which `from` is the first of the thread's two rows in the first box.
    __device__ __forceinline__ void read(uint32_t from, int lane) {
        constexpr int kBoxEights = kBoxColumns / 8;
        uint32_t at[kBoxEights];  // 16-byte units of a row lie where the swizzle has put them
#pragma unroll
        for (int i = 0; i < kBoxEights; i++)
            at[i] = opaque(from + ((2 * i + lane % 4 / 2) ^ (lane / 4)) * 16 + lane % 2 * 8);
#pragma unroll
        for (int i = 0; i < kEights; i++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                share[i][r] = load_shared_pair(at[i % kBoxEights] + i / kBoxEights * kBoxBytes + r * 8 * 128);
    }

    // Writes the slice with this number, of a tile whose first column is `first`: residual + gate * (scaled sum + bias).
    // The accumulators are those of `finish_whole`.
    template <bool kScaled, class Vectors>
    __device__ __forceinline__ void finish(
        const Epilogue& e, const float (&sum)[Shape::kSums], int slice, const TwoRows& rows, int first,
        const Vectors& vectors, int lane) const {
        const int pair = lane % 4 * 2;
        const uint32_t scales = opaque(vectors.base + 4 * pair);
        const uint32_t biases = scales + 4 * Shape::kColumns, gates = biases + 4 * Shape::kColumns;
        float* to[2];
#pragma unroll
        for (int r = 0; r < 2; r++)
            to[r] = opaque(static_cast<float*>(e.output) + max(rows.row[r], 0) * e.output_stride + first + pair);
#pragma unroll
        for (int j = 0; j < kEights; j++) {
            const int i = slice * kEights + j;
            const float2 bias = load_shared_pair(biases + 32 * i), gate = load_shared_pair(gates + 32 * i);
            const float2 scale = kScaled ? load_shared_pair(scales + 32 * i) : make_float2(1.f, 1.f);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float row_scale = kScaled ? rows.scale[r] : 1.f;
                const float x = fmaf(sum[4 * i + 2 * r] * row_scale, scale.x, bias.x);
                const float y = fmaf(sum[4 * i + 2 * r + 1] * row_scale, scale.y, bias.y);
                const float2 all = make_float2(fmaf(gate.x, x, share[j][r].x), fmaf(gate.y, y, share[j][r].y));
                if (rows.row[r] >= 0) store_global(to[r] + 8 * i, all);
            }
        }
    }
};

}  // namespace gemm
