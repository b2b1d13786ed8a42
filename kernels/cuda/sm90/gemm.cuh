// The core that the matrix products and the convolutions share: D (M x N) = epilogue(A (M x K) * B (N x K)^T) by wgmma.
//
// Persistent blocks in clusters of one or two: one warpgroup copies by TMA (one thread of it works), two multiply 64 or
// 128 rows each. The blocks of a cluster compute tiles that lie below each other and so need the same tile of B: each
// block copies its share of that tile to both blocks. What follows the product goes through shared memory in f32, a few
// columns at a time, so that every access to global memory is 8 or 16 bytes a thread with whole sectors; whole tiles of
// matrices without gates and a residual have a shorter way: matrix_epilogue.cuh.
//
// A `Problem` says which tiles there are, how K is cut, and where rows lie:
//   int tiles()                                    tiles of a cluster, all columns of all rows
//   Place place(int tile, int rank)                what a block computes; has `int blocks`, of K, equal in a cluster
//   Cursor first(place), void next(cursor)         the blocks of K one after the other
//   void load(place, cursor, to_a, to_b, barrier, rank)  enqueues the copies of one block of K
//   int steps(cursor)                              instructions along K (1, 2 or 4) that a block of K needs
//   int row(place, int i)                          where row i of the tile lies in the output, or -1
//   int column(place), int columns()               first column of the tile, and how many columns there are
//   kScaled                                        whether there are scales
//   kMatrix                                        whether the output is a matrix as wide as the product, not a volume
#pragma once

#include <cuda_bf16.h>

#include "../any/epilogue.cuh"
#include "hopper.cuh"
#include "matrix_epilogue.cuh"

namespace gemm {

using namespace hopper;

constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
constexpr uint32_t kRowBytes = 128;  // of a tile: 64 bf16, 128 e4m3 or s8
constexpr uint32_t kGroupBytes = 8 * kRowBytes;
constexpr uint32_t kStepBytes = 32;  // along K of one instruction
constexpr uint32_t kMaxShared = 232448;

// What is multiplied, and what it is summed up in.
enum Operand { kBf16, kE4m3, kS8 };
template <Operand kOperand>
struct SumOf {
    using Type = float;
};
template <>
struct SumOf<kS8> {
    using Type = int;  // exact up to 133,000 products
};
template <class Shape, Operand kOperand>
using Sums = typename SumOf<kOperand>::Type[Shape::kParts][Shape::kSums];

// kParts: products of 64 rows that a warpgroup keeps. kLead: how many blocks of K must have come before the second
// warpgroup starts its first tile. It was meant to keep their epilogues apart, which it does not do: see NOTES.md.
template <int kParts_, int kColumns_, int kCluster_, int kLead_ = 2>
struct Shape {
    static constexpr int kParts = kParts_;
    static constexpr int kColumns = kColumns_;
    static constexpr int kCluster = kCluster_;
    static constexpr int kRows = kConsumers * kParts * 64;
    static constexpr int kSums = kColumns / 2;  // accumulators of a thread and part

    // Columns that go through shared memory at once; 16 rows of them for each warp.
    static constexpr int kChunk = kColumns % 64 == 0 ? 64 : kColumns % 32 == 0 ? 32 : 16;
    static constexpr uint32_t kWarpBytes = 16 * kChunk * 4;

    static constexpr uint32_t kABytes = kRows * kRowBytes;
    static constexpr uint32_t kBBytes = kColumns * kRowBytes;
    static constexpr uint32_t kStageBytes = kABytes + kBBytes;
    static constexpr uint32_t kFixed = kConsumers * 4 * kWarpBytes + 1024 + 256;
    static constexpr int kMostStages = (kMaxShared - kFixed) / kStageBytes;
    static constexpr int kStages = kMostStages < 6 ? kMostStages : 6;
    static constexpr int kLead = kLead_ < kStages ? kLead_ : kStages - 1;

    // Offsets from the first 1024-byte boundary of dynamic shared memory.
    static constexpr uint32_t kChunkOffset = kStages * kStageBytes;
    static constexpr uint32_t kBarrierOffset = kChunkOffset + kConsumers * 4 * kWarpBytes;
    static constexpr uint32_t kSharedBytes = kBarrierOffset + 16 * kStages + 1024;

    static_assert(kColumns % (8 * kCluster) == 0, "each block of a cluster copies whole groups of 8 rows of B");
    static_assert(kSharedBytes <= kMaxShared, "a block of Hopper has 227 KiB of shared memory");
    static_assert(kStages >= 3, "a copy must have time to arrive");
    static_assert(ColumnVectors<kColumns>::kBytes <= kWarpBytes, "they use the same memory, in turn");
};

// Position in a ring of slots; `parity` flips at each turn.
template <int kStages>
struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

struct Barriers {
    uint32_t base;
    __device__ __forceinline__ uint32_t full(int stage) const { return base + 16 * stage; }
    __device__ __forceinline__ uint32_t empty(int stage) const { return base + 16 * stage + 8; }
};

// Tells the producers of all blocks of the cluster that a slot can be filled again: one thread of each warpgroup
// arrives for each block. Only products may have read the slot: an arrival at another block waits for no ordinary load,
// which the next copy could overtake.
template <int kCluster>
__device__ __forceinline__ void release(uint32_t empty, int thread) {
    if constexpr (kCluster == 1) {
        if (thread == 0) barrier_arrive(empty);
    } else {
        if (thread < kCluster) barrier_arrive_at(empty, thread);
    }
}

template <class Shape, Operand kOperand, int kSteps>
__device__ __forceinline__ void multiply_steps(Sums<Shape, kOperand>& sum, uint64_t a, uint64_t b, bool accumulate) {
    mma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
#pragma unroll
        for (int part = 0; part < Shape::kParts; part++) {
            const uint64_t from = a + ((part * 64 * kRowBytes + step * kStepBytes) >> 4);
            const uint64_t with = b + ((step * kStepBytes) >> 4);
            if constexpr (kOperand == kBf16)
                mma_bf16(sum[part], from, with, accumulate || step != 0);
            else if constexpr (kOperand == kE4m3)
                mma_e4m3(sum[part], from, with, accumulate || step != 0);
            else
                mma_s8(sum[part], from, with, accumulate || step != 0);
        }
    }
    mma_commit();
}

// Multiplies one block of K in shared memory as one group: by `steps` instructions along K. There is no branch between
// the instructions of a group, because ptxas would make each wait for the one before.
template <class Shape, Operand kOperand>
__device__ __forceinline__ void multiply(Sums<Shape, kOperand>& sum, uint64_t a, uint64_t b, int steps, bool accumulate) {
    if (steps == 4)
        multiply_steps<Shape, kOperand, 4>(sum, a, b, accumulate);
    else if (steps == 2)
        multiply_steps<Shape, kOperand, 2>(sum, a, b, accumulate);
    else
        multiply_steps<Shape, kOperand, 1>(sum, a, b, accumulate);
}

template <class Shape, class Sum>
__device__ __forceinline__ void pin_all(Sum (&sum)[Shape::kParts][Shape::kSums]) {
#pragma unroll
    for (int part = 0; part < Shape::kParts; part++) pin(sum[part]);
}

// Adds a tile's products straight to `sum`. Two blocks of K are in flight: the one before is released when the
// next has been enqueued.
template <class Shape, Operand kOperand, class Problem, class Place>
__device__ __forceinline__ void accumulate_in_place(
    const Problem& problem, const Place& place, Sums<Shape, kOperand>& sum, uint64_t a, uint64_t b,
    const Barriers& barriers, Ring<Shape::kStages>& ring, int thread) {
    constexpr uint32_t kStageStep = Shape::kStageBytes >> 4;
    int before = 0;
    auto cursor = problem.first(place);
    for (int block = 0; block < place.blocks; block++) {
        barrier_wait(barriers.full(ring.stage), ring.parity);
        pin_all<Shape>(sum);
        multiply<Shape, kOperand>(sum, a + ring.stage * kStageStep, b + ring.stage * kStageStep, problem.steps(cursor),
                                  block != 0);
        problem.next(cursor);
        if (block > 0) {
            mma_wait<1>();
            release<Shape::kCluster>(barriers.empty(before), thread);
        }
        before = ring.stage;
        ring.next();
    }
    mma_wait<0>();
    pin_all<Shape>(sum);
    release<Shape::kCluster>(barriers.empty(before), thread);
}

// Adds a tile's products like `accumulate_in_place`, but adds each block of K to `sum` in f32 by ordinary additions:
// the tensor cores keep only some 14 bits of a sum of e4m3 products.
template <class Shape, Operand kOperand, class Problem, class Place>
__device__ __forceinline__ void accumulate_apart(
    const Problem& problem, const Place& place, float (&sum)[Shape::kParts][Shape::kSums], uint64_t a, uint64_t b,
    const Barriers& barriers, Ring<Shape::kStages>& ring, int thread) {
    constexpr uint32_t kStageStep = Shape::kStageBytes >> 4;
    float some[Shape::kParts][Shape::kSums];
#pragma unroll
    for (int part = 0; part < Shape::kParts; part++)
#pragma unroll
        for (int i = 0; i < Shape::kSums; i++) sum[part][i] = 0.f;
    auto cursor = problem.first(place);
    for (int block = 0; block < place.blocks; block++) {
        barrier_wait(barriers.full(ring.stage), ring.parity);
        pin_all<Shape>(some);
        multiply<Shape, kOperand>(some, a + ring.stage * kStageStep, b + ring.stage * kStageStep, problem.steps(cursor),
                                  false);
        problem.next(cursor);
        mma_wait<0>();
        pin_all<Shape>(some);
        release<Shape::kCluster>(barriers.empty(ring.stage), thread);
        ring.next();
#pragma unroll
        for (int part = 0; part < Shape::kParts; part++)
#pragma unroll
            for (int i = 0; i < Shape::kSums; i++) sum[part][i] += some[part][i];
    }
}

// Runs a kernel. kApart: see accumulate_apart. Output: bf16 or float.
template <class Shape, Operand kOperand, bool kApart, EpilogueKind kKind, class Output, class Problem>
__device__ __forceinline__ void run(const Problem& problem, const Epilogue& epilogue) {
    const uint32_t base = (dynamic_shared() + 1023) & ~1023u;
    const Barriers barriers{base + Shape::kBarrierOffset};
    const int warpgroup = uniform(threadIdx.x / kWarpgroup);
    const int thread = threadIdx.x % kWarpgroup;
    const int rank = Shape::kCluster == 1 ? 0 : int(cluster_rank());
    const int cluster = blockIdx.x / Shape::kCluster, clusters = gridDim.x / Shape::kCluster;

    if (threadIdx.x == 0) {
        problem.prefetch_maps();
        for (int stage = 0; stage < Shape::kStages; stage++) {
            barrier_init(barriers.full(stage), 1);
            barrier_init(barriers.empty(stage), kConsumers * Shape::kCluster);
        }
        barrier_init_fence();
    }
    // No block may copy into another one, or arrive there, before the other one's barriers are initialised.
    if constexpr (Shape::kCluster > 1)
        cluster_sync();
    else
        __syncthreads();

    if (warpgroup == 0) {
        release_registers<40>();
        if (thread == 0) {
            Ring<Shape::kStages> ring;
            for (int tile = cluster; tile < problem.tiles(); tile += clusters) {
                const auto place = problem.place(tile, rank);
                auto cursor = problem.first(place);
                for (int block = 0; block < place.blocks; block++) {
                    // In a cluster of two, this waits until both blocks have read the slot, since both get this block's
                    // share of B.
                    barrier_wait(barriers.empty(ring.stage), ring.parity ^ 1);
                    barrier_expect(barriers.full(ring.stage), Shape::kStageBytes);
                    const uint32_t to = base + ring.stage * Shape::kStageBytes;
                    problem.load(place, cursor, to, to + Shape::kABytes, barriers.full(ring.stage), rank);
                    problem.next(cursor);
                    ring.next();
                }
            }
        }
    } else {
        take_registers<232>();
        const int consumer = warpgroup - 1;
        const uint64_t a = descriptor(base + consumer * Shape::kParts * 64 * kRowBytes, kGroupBytes, 0);
        const uint64_t b = descriptor(base + Shape::kABytes, kGroupBytes, 0);
        const int warp = thread / 32, lane = thread % 32;
        const uint32_t chunk = base + Shape::kChunkOffset + (consumer * 4 + warp) * Shape::kWarpBytes;
        Ring<Shape::kStages> ring;

        Sums<Shape, kOperand> sum;
        if (Shape::kLead > 0 && consumer == 1 && cluster < problem.tiles()) {
            const int lead = min(Shape::kLead, problem.place(cluster, rank).blocks - 1);
            barrier_wait(barriers.full(lead), 0);
        }
        const ColumnVectors<Shape::kColumns> vectors{chunk};
        for (int tile = cluster; tile < problem.tiles(); tile += clusters) {
            const auto place = problem.place(tile, rank);
            const int column = problem.column(place);
            auto first = [&](int part) { return (consumer * Shape::kParts + part) * 64 + warp * 16; };
            if (kKind == kPlain && epilogue.residual != nullptr) {
#pragma unroll
                for (int part = 0; part < Shape::kParts; part++)
                    prefetch_residual<Shape, Output>(problem, place, epilogue, first(part), lane);
            }
            const bool whole = kKind == kSquared ||
                               (Problem::kMatrix && column + Shape::kColumns <= problem.columns() &&
                                epilogue.residual == nullptr && epilogue.gate == nullptr &&
                                epilogue.element_gate == nullptr);
            TwoRows rows;
            if constexpr (Problem::kMatrix) {
                if (whole) {
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const int row = problem.row(place, first(0) + lane / 4 + 8 * r);
                        rows.row[r] = row;
                        rows.scale[r] = Problem::kScaled && row >= 0 ? __ldg(epilogue.row_scale + row) : 1.f;
                    }
                    vectors.template bring<Problem::kScaled>(epilogue, column, lane);
                }
            }
            if constexpr (kApart)
                accumulate_apart<Shape, kOperand>(problem, place, sum, a, b, barriers, ring, thread);
            else
                accumulate_in_place<Shape, kOperand>(problem, place, sum, a, b, barriers, ring, thread);
            if constexpr (Problem::kMatrix) {
                static_assert(Shape::kParts == 1, "rows are those of one part");
                if (whole) {
                    vectors.arrive();
                    finish_whole<Shape, kKind, Problem::kScaled, Output>(epilogue, sum[0], rows, column, vectors, lane);
                    continue;
                }
            }
            if constexpr (kKind != kSquared) {
#pragma unroll
                for (int part = 0; part < Shape::kParts; part++)
                    finish<Shape, kKind, Output>(problem, place, epilogue, sum[part], first(part), chunk, lane);
            }
        }
    }
    // A block whose neighbour may still arrive at its barriers must not go.
    if constexpr (Shape::kCluster > 1) cluster_sync();
}

}  // namespace gemm
