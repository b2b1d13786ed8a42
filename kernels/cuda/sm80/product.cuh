// The core that matrix products and convolutions share where there is neither wgmma nor the copy engine: D (M x N) =
// epilogue(A (M x K) * B (N x K)^T) by mma.sync, for Ampere, Ada and, as PTX, newer cards.
//
// A block computes one tile; a warp computes 16 or 32 of its rows and all its columns, so that accumulators lie as those of
// wgmma, and both cores share one epilogue. All threads copy by cp.async, a few blocks of K ahead.
//
// A `Problem` has what sm90/gemm.cuh asks for, but instead of `load`:
//   const void* a(place, cursor, int row, int byte)   where 16 bytes of a row of A lie, or null for zeros
//   const void* b(place, cursor, int row, int byte)   where 16 bytes of a row of B lie, likewise
#pragma once

#include "../any/epilogue.cuh"

namespace sm80 {

using namespace gpu;

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr uint32_t kRowBytes = 128;  // of a tile: 64 bf16 or 128 e4m3
constexpr uint32_t kStepBytes = 32;  // along K of one instruction
constexpr uint32_t kMaxShared = 101376;

// The shape of a tile; kParts is the number of products of 16 rows that a warp keeps.
template <int kParts_, int kColumns_>
struct Shape {
    static constexpr int kParts = kParts_;
    static constexpr int kColumns = kColumns_;
    static constexpr int kCluster = 1;
    static constexpr int kRows = kWarps * kParts * 16;
    static constexpr int kSums = kColumns / 2;  // accumulators of a thread and part

    // Columns that go through shared memory at once after the product; 16 rows of them for each warp.
    static constexpr int kChunk = kColumns % 64 == 0 ? 64 : kColumns % 32 == 0 ? 32 : 16;
    static constexpr uint32_t kWarpBytes = 16 * kChunk * 4;

    static constexpr uint32_t kABytes = kRows * kRowBytes;
    static constexpr uint32_t kStageBytes = kABytes + kColumns * kRowBytes;
    static constexpr int kMostStages = kMaxShared / kStageBytes;
    static constexpr int kStages = kMostStages < 4 ? kMostStages : 4;
    static constexpr uint32_t kSharedBytes = kStages * kStageBytes;

    static_assert(kColumns % 16 == 0, "B is read 16 rows at a time");
    static_assert(kStages >= 2 && kWarps * kWarpBytes <= kSharedBytes);
};

// Returns where 16 bytes of a row of a tile lie: the units of a row trade places, so that 8 rows at one column meet all
// banks.
__device__ __forceinline__ uint32_t unit(uint32_t tile, int row, int unit) {
    return tile + row * kRowBytes + ((unit ^ (row & 7)) << 4);
}

template <class Shape, class Problem, class Place, class Cursor>
__device__ __forceinline__ void load(const Problem& problem, const Place& place, const Cursor& cursor, uint32_t to) {
    const int piece = threadIdx.x % 8;
#pragma unroll
    for (int row = threadIdx.x / 8; row < Shape::kRows; row += kThreads / 8) {
        const void* from = problem.a(place, cursor, row, piece * 16);
        copy_async(unit(to, row, piece), from == nullptr ? problem.anywhere() : from, from != nullptr);
    }
#pragma unroll
    for (int row = threadIdx.x / 8; row < Shape::kColumns; row += kThreads / 8) {
        const void* from = problem.b(place, cursor, row, piece * 16);
        copy_async(unit(to + Shape::kABytes, row, piece), from == nullptr ? problem.anywhere() : from, from != nullptr);
    }
}

// Adds the products of one block of K to the sums.
template <class Shape, bool kBf16>
__device__ __forceinline__ void multiply(
    float (&sum)[Shape::kParts][Shape::kSums], uint32_t from, int steps, int warp, int lane) {
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        uint32_t left[Shape::kParts][4];
        // Lanes 0 to 15 give rows, 16 to 31 the same rows 16 bytes on.
#pragma unroll
        for (int part = 0; part < Shape::kParts; part++)
            load_matrices(left[part], unit(from, (warp * Shape::kParts + part) * 16 + lane % 16, step * 2 + lane / 16));
        // Lanes 0 to 7 and 8 to 15 give 8 columns at two neighbouring units, the others the next 8 columns.
#pragma unroll
        for (int n = 0; n < Shape::kColumns; n += 16) {
            uint32_t right[4];
            load_matrices(right, unit(from + Shape::kABytes, n + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
#pragma unroll
            for (int part = 0; part < Shape::kParts; part++) {
                if constexpr (kBf16) {
                    multiply_bf16(sum[part] + n / 2, left[part], right[0], right[1]);
                    multiply_bf16(sum[part] + n / 2 + 4, left[part], right[2], right[3]);
                } else {
                    multiply_e4m3(sum[part] + n / 2, left[part], right[0], right[1]);
                    multiply_e4m3(sum[part] + n / 2 + 4, left[part], right[2], right[3]);
                }
            }
        }
    }
}

// Runs a kernel. kBf16: operands are bf16, otherwise e4m3. kApart: each block of K is added to the sum by ordinary
// additions, because the tensor cores keep only some 14 bits of a sum of e4m3 products. Output: bf16 or float.
template <class Shape, bool kBf16, bool kApart, gemm::EpilogueKind kKind, class Output, class Problem>
__device__ __forceinline__ void run(const Problem& problem, const gemm::Epilogue& epilogue) {
    const uint32_t base = dynamic_shared();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const auto place = problem.place(blockIdx.x, 0);
    auto ahead = problem.first(place), cursor = ahead;

    float sum[Shape::kParts][Shape::kSums] = {};
#pragma unroll
    for (int stage = 0; stage < Shape::kStages - 1; stage++) {
        if (stage < place.blocks) {
            load<Shape>(problem, place, ahead, base + stage * Shape::kStageBytes);
            problem.next(ahead);
        }
        copy_commit();
    }
    for (int block = 0, stage = 0; block < place.blocks; block++) {
        copy_wait<Shape::kStages - 2>();
        // Now everybody's copies are there, and everybody has done with the slot of the block before.
        __syncthreads();
        if (block + Shape::kStages - 1 < place.blocks) {
            const int free = stage == 0 ? Shape::kStages - 1 : stage - 1;
            load<Shape>(problem, place, ahead, base + free * Shape::kStageBytes);
            problem.next(ahead);
        }
        copy_commit();
        const uint32_t from = base + stage * Shape::kStageBytes;
        if constexpr (kApart) {
            float some[Shape::kParts][Shape::kSums] = {};
            multiply<Shape, kBf16>(some, from, problem.steps(cursor), warp, lane);
#pragma unroll
            for (int part = 0; part < Shape::kParts; part++)
#pragma unroll
                for (int i = 0; i < Shape::kSums; i++) sum[part][i] += some[part][i];
        } else {
            multiply<Shape, kBf16>(sum, from, problem.steps(cursor), warp, lane);
        }
        problem.next(cursor);
        if (++stage == Shape::kStages) stage = 0;
    }
    copy_wait<0>();
    // The slots become room for what follows.
    __syncthreads();
#pragma unroll
    for (int part = 0; part < Shape::kParts; part++)
        gemm::finish<Shape, kKind, Output>(problem, place, epilogue, sum[part], (warp * Shape::kParts + part) * 16,
                                             base + warp * Shape::kWarpBytes, lane);
}

}  // namespace sm80
