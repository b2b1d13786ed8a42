// int8 matrix products by mma.sync with s32 sums, which are exact up to 133,000 products: D (M x N) = epilogue(A (M x K) *
// B (N x K)^T), converted once at the end.
//
// At 2,048 operations a clock the tensor cores of GeForce cards take operands so fast that shared memory and the L2
// cache can limit them: a warp computes 64 x 64, and a block of eight warps 128 x 256, for which it takes 12 bytes a
// clock from the L2 cache. All threads copy by cp.async, three blocks of K ahead; a block of K is 64 bytes, two steps
// of the products. A step's operands are loaded while the step before is multiplied. There is one barrier for each
// block of K, between the products of its two steps, so that the tensor cores have work while warps meet.
#pragma once

#include "../any/epilogue.cuh"

namespace int8 {

using namespace gpu;

constexpr int kWarpTile = 64;        // rows and columns of a warp
constexpr uint32_t kRowBytes = 64;   // along K, of a block of K
constexpr uint32_t kStepBytes = 32;  // of one instruction
constexpr int kSteps = kRowBytes / kStepBytes;

struct Operands {
    const uint8_t *a, *b;        // [rows, K], [columns, K]
    int64_t a_stride, b_stride;  // bytes
    int rows, columns, row_bytes;
};

// A tile of a block: kDown x kAcross warps, and kStages blocks of K in shared memory.
template <int kDown_, int kAcross_, int kStages_>
struct Tile {
    static constexpr int kDown = kDown_, kAcross = kAcross_, kStages = kStages_;
    static constexpr int kThreads = 32 * kDown * kAcross;
    static constexpr int kRows = kWarpTile * kDown, kColumns = kWarpTile * kAcross;
    static constexpr uint32_t kABytes = kRows * kRowBytes;
    static constexpr uint32_t kStageBytes = kABytes + kColumns * kRowBytes;
    static constexpr uint32_t kSharedBytes = kStages * kStageBytes;
    // Blocks that work at the same time share tiles of A and B in the L2 cache: tiles are taken in bands of so many rows
    // of tiles, down a band first.
    static constexpr int kBand = 16;
};

// What the epilogue sees of a warp: 16 rows at a time of all its columns.
struct WarpShape {
    static constexpr int kColumns = kWarpTile, kSums = kColumns / 2, kChunk = kColumns;
    static constexpr uint32_t kWarpBytes = 16 * kChunk * 4;
};
struct WarpPlace {
    int row, column;
};
struct WarpProblem {
    const Operands& o;
    static constexpr bool kScaled = true;
    __device__ __forceinline__ int row(const WarpPlace& place, int i) const {
        return place.row + i < o.rows ? place.row + i : -1;
    }
    __device__ __forceinline__ int column(const WarpPlace& place) const { return place.column; }
    __device__ __forceinline__ int columns() const { return o.columns; }
};

// Returns where 16 bytes of a row of a tile lie: the four units of a row trade places, so that eight rows at one column
// meet all banks.
__device__ __forceinline__ uint32_t unit(uint32_t tile, int row, int unit) {
    return tile + row * kRowBytes + ((unit ^ (row >> 1 & 3)) << 4);
}

// A thread's share in the copies of one operand's tiles: 16 bytes of each kEvery-th row, at one place along K.
template <int kRows, int kThreads>
struct Copier {
    static constexpr int kEvery = kThreads / 4;
    static_assert(kRows % kEvery == 0);
    const uint8_t* from;
    int64_t step;
    int rows, left;  // of the operand from this thread's first on; bytes of its rows from this thread's place on
    uint32_t to;

    __device__ __forceinline__ Copier(const uint8_t* operand, int64_t stride, int first, int all, int row_bytes) {
        const int row = threadIdx.x / 4, piece = threadIdx.x % 4;
        rows = all - first - row;
        from = operand + (rows > 0 ? first + row : 0) * stride + piece * 16;
        step = kEvery * stride;
        left = row_bytes - piece * 16;
        to = unit(0, row, piece);
    }

    // Copies the next block of K.
    __device__ __forceinline__ void next(uint32_t tile) {
        const uint8_t* at = from;
#pragma unroll
        for (int i = 0; i < kRows / kEvery; i++, at += step) {
            const bool there = i * kEvery < rows && left > 0;
            copy_async(tile + to + i * kEvery * kRowBytes, there ? at : from, there);
        }
        // Where a row has ended, the address stays where it is.
        if (left > int(kRowBytes)) from += kRowBytes;
        left -= kRowBytes;
    }
};

using Sums = int[kWarpTile / 16][kWarpTile / 2];

// A warp's operands of one step.
struct Fragments {
    uint32_t a[kWarpTile / 16][4];
    uint32_t b[kWarpTile / 16][4];  // of 16 columns: two products

    // Loads the operands of a step; a_at and b_at are this lane's places in the tiles.
    __device__ __forceinline__ void load(uint32_t a_at, uint32_t b_at) {
#pragma unroll
        for (int i = 0; i < kWarpTile / 16; i++) {
            load_matrices(a[i], a_at + i * 16 * kRowBytes);
            load_matrices(b[i], b_at + i * 16 * kRowBytes);
        }
    }
    __device__ __forceinline__ void multiply(Sums& sum) const {
#pragma unroll
        for (int n = 0; n < kWarpTile / 8; n++)
#pragma unroll
            for (int m = 0; m < kWarpTile / 16; m++) {
                int* d = sum[m] + n * 4;
                const int c[4] = {d[0], d[1], d[2], d[3]};
                multiply_s8(d, a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], c);
            }
    }
};

template <class Tile, gemm::EpilogueKind kKind, class Output>
__device__ __forceinline__ void run(const Operands& o, const gemm::Epilogue& epilogue) {
    constexpr int kStages = Tile::kStages;
    const uint32_t base = dynamic_shared();
    const int warp = uniform(threadIdx.x / 32), lane = threadIdx.x % 32;

    const int down = (o.rows + Tile::kRows - 1) / Tile::kRows, across = (o.columns + Tile::kColumns - 1) / Tile::kColumns;
    const int band = blockIdx.x / (Tile::kBand * across), rest = blockIdx.x - band * Tile::kBand * across;
    const int height = min(down - band * Tile::kBand, Tile::kBand);
    const int row = (band * Tile::kBand + rest % height) * Tile::kRows, column = rest / height * Tile::kColumns;
    const int blocks = (o.row_bytes + kRowBytes - 1) / kRowBytes;

    Copier<Tile::kRows, Tile::kThreads> a(o.a, o.a_stride, row, o.rows, o.row_bytes);
    Copier<Tile::kColumns, Tile::kThreads> b(o.b, o.b_stride, column, o.columns, o.row_bytes);
    auto copy = [&](int stage) {
        a.next(base + stage * Tile::kStageBytes);
        b.next(base + stage * Tile::kStageBytes + Tile::kABytes);
    };
#pragma unroll
    for (int stage = 0; stage < kStages - 1; stage++) {
        if (stage < blocks) copy(stage);
        copy_commit();
    }

    // ldmatrix: of A lanes 0 to 15 give rows, 16 to 31 the same rows 16 bytes on; of B lanes 0 to 7 and 8 to 15 give eight
    // columns at two neighbouring units, the others the next eight columns.
    const int warp_row = warp / Tile::kAcross * kWarpTile, warp_column = warp % Tile::kAcross * kWarpTile;
    uint32_t a_at[kSteps], b_at[kSteps];
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
        a_at[step] = unit(base, warp_row + lane % 16, 2 * step + lane / 16);
        b_at[step] = unit(base + Tile::kABytes, warp_column + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2);
    }

    Sums sum = {};
    // Waits until all warps have loaded the last operands of a block of K, whose slot can then be filled again, and
    // until the next block has arrived.
    auto meet = [] {
        copy_wait<kStages - 2>();
        __syncthreads();
    };
    meet();
    Fragments first, second;
    first.load(a_at[0], b_at[0]);
    for (int block = 0, stage = 0; block < blocks; block++) {
        const uint32_t here = stage * Tile::kStageBytes;
        const int free = stage == 0 ? kStages - 1 : stage - 1;
        if (++stage == kStages) stage = 0;
        const uint32_t next = stage * Tile::kStageBytes;
        second.load(a_at[1] + here, b_at[1] + here);
        if (block + kStages - 1 < blocks) copy(free);
        copy_commit();
        first.multiply(sum);
        meet();
        if (block + 1 < blocks) first.load(a_at[0] + next, b_at[0] + next);
        second.multiply(sum);
    }
    // After the last barrier no thread reads or fills the slots: they become room for the epilogue.
#pragma unroll
    for (int part = 0; part < kWarpTile / 16; part++) {
        gemm::finish<WarpShape, kKind, Output>(WarpProblem{o}, WarpPlace{row + warp_row, column + warp_column}, epilogue,
                                                 sum[part], part * 16, base + warp * WarpShape::kWarpBytes, lane);
    }
}

}  // namespace int8

// Defines a kernel. Rows consist of 16-byte aligned pieces; grid: tiles. Columns and all strides are multiples of 8.
#define GEMM_INT8_KERNEL(NAME, TILE, ENDING, OUTPUT)                                                                  \
    extern "C" __global__ void __launch_bounds__(TILE::kThreads)                                                      \
        NAME(const __grid_constant__ int8::Operands operands, const __grid_constant__ gemm::Epilogue epilogue) {      \
        int8::run<TILE, gemm::ENDING, OUTPUT>(operands, epilogue);                                                    \
    }

// Defines the kernels of both epilogues for both outputs.
#define GEMM_INT8_KERNELS(NAME, TILE)                              \
    GEMM_INT8_KERNEL(NAME, TILE, kPlain, __nv_bfloat16)            \
    GEMM_INT8_KERNEL(NAME##_f32, TILE, kPlain, float)              \
    GEMM_INT8_KERNEL(NAME##_activated, TILE, kActivated, __nv_bfloat16) \
    GEMM_INT8_KERNEL(NAME##_activated_f32, TILE, kActivated, float)
