// The matrix product as a problem of gemm.cuh.
#pragma once

#include "gemm.cuh"

namespace gemm {

template <class Shape, int kElementBytes>
struct Product {
    const CUtensorMap& a_map;  // [rows, K], boxes of [Shape::kRows][128 bytes]
    const CUtensorMap& b_map;  // [columns, K], boxes of [Shape::kColumns / Shape::kCluster][128 bytes]
    int rows, all_columns, blocks;

    static constexpr bool kScaled = kElementBytes == 1;
    static constexpr bool kMatrix = true;
    static constexpr int kBlock = kRowBytes / kElementBytes;  // along K
    // Clusters that work at the same time share tiles of A and B in the L2 cache: tiles are taken in bands of so many
    // clusters' rows, down a band first.
    static constexpr int kBand = 8;

    struct Place {
        int row, column, blocks;
    };

    __device__ __forceinline__ void prefetch_maps() const {
        prefetch(&a_map);
        prefetch(&b_map);
    }
    __device__ __forceinline__ int down() const {
        return (rows + Shape::kRows * Shape::kCluster - 1) / (Shape::kRows * Shape::kCluster);
    }
    __device__ __forceinline__ int across() const { return (all_columns + Shape::kColumns - 1) / Shape::kColumns; }
    __device__ __forceinline__ int tiles() const { return down() * across(); }
    __device__ __forceinline__ Place place(int tile, int rank) const {
        const int in_band = kBand * across();
        const int band = tile / in_band, rest = tile - band * in_band;
        const int height = min(down() - band * kBand, kBand);
        const int row = band * kBand + rest % height, column = rest / height;
        return {(row * Shape::kCluster + rank) * Shape::kRows, column * Shape::kColumns, blocks};
    }
    using Cursor = int;  // the first element along K
    __device__ __forceinline__ Cursor first(const Place&) const { return 0; }
    __device__ __forceinline__ void next(Cursor& cursor) const { cursor += kBlock; }
    __device__ __forceinline__ int steps(Cursor) const { return 4; }
    __device__ __forceinline__ void load(
        const Place& place, Cursor cursor, uint32_t to_a, uint32_t to_b, uint32_t barrier, int rank) const {
        constexpr int kShare = Shape::kColumns / Shape::kCluster;
        load_2d(to_a, &a_map, barrier, cursor, place.row);
        if constexpr (Shape::kCluster == 1)
            load_2d(to_b, &b_map, barrier, cursor, place.column);
        else
            load_2d_multicast(to_b + rank * kShare * kRowBytes, &b_map, barrier, (1 << Shape::kCluster) - 1, cursor,
                              place.column + rank * kShare);
    }
    __device__ __forceinline__ int row(const Place& place, int i) const {
        return place.row + i < rows ? place.row + i : -1;
    }
    __device__ __forceinline__ int column(const Place& place) const { return place.column; }
    __device__ __forceinline__ int columns() const { return all_columns; }
};

}  // namespace gemm

// Defines a kernel. a is [rows, K], b [columns, K], K contiguous, through maps as Product says; grid: as many blocks as
// fit the GPU, a multiple of the cluster; 384 threads. Columns and all strides are multiples of 8.
#define GEMM_KERNEL(NAME, SHAPE, OPERAND, APART, ENDING, OUTPUT)                                                    \
    extern "C" __global__ void __cluster_dims__(SHAPE::kCluster, 1, 1) __launch_bounds__(gemm::kThreads, 1)         \
        NAME(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,                  \
             const __grid_constant__ gemm::Epilogue epilogue, int rows, int columns, int blocks) {                  \
        constexpr int kElementBytes = gemm::OPERAND == gemm::kBf16 ? 2 : 1;                                         \
        const gemm::Product<SHAPE, kElementBytes> product{a_map, b_map, rows, columns, blocks};                     \
        gemm::run<SHAPE, gemm::OPERAND, APART, gemm::ENDING, OUTPUT>(product, epilogue);                            \
    }

// Defines the kernels of both epilogues for both outputs.
#define GEMM_KERNELS(NAME, SHAPE, OPERAND, APART)                                   \
    GEMM_KERNEL(NAME, SHAPE, OPERAND, APART, kPlain, __nv_bfloat16)                 \
    GEMM_KERNEL(NAME##_f32, SHAPE, OPERAND, APART, kPlain, float)                   \
    GEMM_KERNEL(NAME##_activated, SHAPE, OPERAND, APART, kActivated, __nv_bfloat16) \
    GEMM_KERNEL(NAME##_activated_f32, SHAPE, OPERAND, APART, kActivated, float)
