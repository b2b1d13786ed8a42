// The matrix product as a problem of product.cuh.
#pragma once

#include "product.cuh"

namespace sm80 {

struct Operands {
    const uint8_t *a, *b;         // [rows, K], [columns, K]
    int64_t a_stride, b_stride;   // bytes
    int rows, columns, row_bytes;
};

template <class Shape, int kElementBytes>
struct Product {
    const Operands& o;

    static constexpr bool kScaled = kElementBytes == 1;
    // Blocks that work at the same time share tiles of A and B in the L2 cache: tiles are taken in bands of so many rows of
    // tiles, down a band first.
    static constexpr int kBand = 16;

    struct Place {
        int row, column, blocks;
    };
    using Cursor = int;  // the first byte along K

    __device__ __forceinline__ Place place(int tile, int) const {
        const int down = (o.rows + Shape::kRows - 1) / Shape::kRows;
        const int across = (o.columns + Shape::kColumns - 1) / Shape::kColumns;
        const int band = tile / (kBand * across), rest = tile - band * kBand * across;
        const int height = min(down - band * kBand, kBand);
        return {(band * kBand + rest % height) * Shape::kRows, rest / height * Shape::kColumns,
                int((o.row_bytes + kRowBytes - 1) / kRowBytes)};
    }
    __device__ __forceinline__ Cursor first(const Place&) const { return 0; }
    __device__ __forceinline__ void next(Cursor& cursor) const { cursor += kRowBytes; }
    __device__ __forceinline__ int steps(Cursor) const { return 4; }
    __device__ __forceinline__ const void* anywhere() const { return o.a; }
    __device__ __forceinline__ const void* a(const Place& place, Cursor cursor, int row, int byte) const {
        const bool there = place.row + row < o.rows && cursor + byte < o.row_bytes;
        return there ? o.a + (place.row + row) * o.a_stride + cursor + byte : nullptr;
    }
    __device__ __forceinline__ const void* b(const Place& place, Cursor cursor, int row, int byte) const {
        const bool there = place.column + row < o.columns && cursor + byte < o.row_bytes;
        return there ? o.b + (place.column + row) * o.b_stride + cursor + byte : nullptr;
    }
    __device__ __forceinline__ int row(const Place& place, int i) const {
        return place.row + i < o.rows ? place.row + i : -1;
    }
    __device__ __forceinline__ int column(const Place& place) const { return place.column; }
    __device__ __forceinline__ int columns() const { return o.columns; }
};

using Tile = Shape<1, 128>;

}  // namespace sm80

// Defines a kernel. Rows consist of 16-byte aligned pieces; grid: tiles; 256 threads. Columns and all strides are
// multiples of 8.
#define GEMM_KERNEL(NAME, BF16, APART, ENDING, OUTPUT)                                                              \
    extern "C" __global__ void __launch_bounds__(sm80::kThreads)                                                     \
        NAME(const __grid_constant__ sm80::Operands operands, const __grid_constant__ gemm::Epilogue epilogue) {     \
        sm80::run<sm80::Tile, BF16, APART, gemm::ENDING, OUTPUT>(sm80::Product<sm80::Tile, BF16 ? 2 : 1>{operands},     \
                                                               epilogue);                                           \
    }

// Defines the kernels of both epilogues for both outputs.
#define GEMM_KERNELS(NAME, BF16, APART)                              \
    GEMM_KERNEL(NAME, BF16, APART, kPlain, __nv_bfloat16)            \
    GEMM_KERNEL(NAME##_f32, BF16, APART, kPlain, float)              \
    GEMM_KERNEL(NAME##_activated, BF16, APART, kActivated, __nv_bfloat16) \
    GEMM_KERNEL(NAME##_activated_f32, BF16, APART, kActivated, float)
