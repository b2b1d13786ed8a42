// The convolution of any/conv_walk.cuh as a problem of gemm.cuh: the box of the input that a tap needs is one bulk tensor
// copy, which also puts zeros where the box leaves the frame.
#pragma once

#include "../any/conv_walk.cuh"
#include "gemm.cuh"

namespace conv {

using namespace hopper;

struct Maps {
    CUtensorMap parts[kParts];  // [frames, height, width, channels], boxes of [1, patch height, patch width, 64]
    CUtensorMap weight;         // [outputs, taps, channels], boxes of [columns / cluster, 1, 64]
};

template <class Shape>
struct Convolution : Walk<Shape> {
    using Place = typename Walk<Shape>::Place;
    using Cursor = typename Walk<Shape>::Cursor;

    const Maps& maps;

    __device__ __forceinline__ Convolution(const Maps& maps, const Geometry& g) : Walk<Shape>{g}, maps(maps) {}

    __device__ __forceinline__ void prefetch_maps() const {
        prefetch(&maps.parts[0]);
        prefetch(&maps.weight);
    }
    __device__ __forceinline__ void load(
        const Place& place, const Cursor& cursor, uint32_t to_a, uint32_t to_b, uint32_t barrier, int rank) const {
        constexpr int kShare = Shape::kColumns / Shape::kCluster;
        static_assert(Shape::kCluster == 2, "the copy of the weight goes to both blocks of a cluster");
        const int frame = this->frame(place, cursor), part = this->part(frame);
        const Geometry& g = this->g;
        load_4d(to_a, &maps.parts[part], barrier, cursor.channel, place.x * g.step + g.x0 + cursor.x,
                place.y * g.step + g.y0 + cursor.y, frame - g.starts[part]);
        load_3d_multicast(to_b + rank * kShare * gemm::kRowBytes, &maps.weight, barrier, 3, cursor.channel, cursor.tap,
                          place.column + rank * kShare);
    }
};

}  // namespace conv

// Defines a kernel. Volumes and weights are bf16, as in conv::Maps; grid: as many blocks as fit the GPU, a multiple of
// 2; 384 threads. Channels are a multiple of 8 with 16-byte aligned voxels, outputs a multiple of 4.
#define CONV_KERNEL(NAME, SHAPE, ENDING, OUTPUT)                                                                    \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(gemm::kThreads, 1)                       \
        NAME(const __grid_constant__ conv::Maps maps, const __grid_constant__ conv::Geometry geometry,              \
             const __grid_constant__ gemm::Epilogue epilogue) {                                                     \
        const conv::Convolution<SHAPE> convolution(maps, geometry);                                                 \
        gemm::run<SHAPE, gemm::kBf16, false, gemm::ENDING, OUTPUT>(convolution, epilogue);                          \
    }
