// The convolution of any/conv_walk.cuh as a problem of product.cuh.
#pragma once

#include "../any/conv_walk.cuh"
#include "product.cuh"

namespace sm80 {

struct Input {
    const __nv_bfloat16* parts[conv::kParts];  // [frames, height, width, channels]
    const __nv_bfloat16* weight;               // [outputs, taps, channels]
    int height, width;
};

template <class Shape>
struct Convolution : conv::Walk<Shape> {
    using Walk = conv::Walk<Shape>;
    using Place = typename Walk::Place;
    using Cursor = typename Walk::Cursor;

    const Input& input;

    __device__ __forceinline__ Convolution(const Input& input, const conv::Geometry& g) : Walk{g}, input(input) {}

    __device__ __forceinline__ const void* anywhere() const { return input.weight; }
    __device__ __forceinline__ const void* a(const Place& place, const Cursor& cursor, int row, int byte) const {
        const conv::Geometry& g = this->g;
        const int y = (place.y + (row >> g.patch_width_log2)) * g.step + g.y0 + cursor.y;
        const int x = (place.x + (row & ((1 << g.patch_width_log2) - 1))) * g.step + g.x0 + cursor.x;
        const int channel = cursor.channel + byte / 2;
        if (y < 0 || y >= input.height || x < 0 || x >= input.width || channel >= g.channels) return nullptr;
        const int frame = this->frame(place, cursor), part = this->part(frame);
        const int64_t pixel = (int64_t(frame - g.starts[part]) * input.height + y) * input.width + x;
        return input.parts[part] + pixel * g.channels + channel;
    }
    __device__ __forceinline__ const void* b(const Place& place, const Cursor& cursor, int row, int byte) const {
        const conv::Geometry& g = this->g;
        const int output = place.column + row, channel = cursor.channel + byte / 2;
        if (output >= g.outputs || channel >= g.channels) return nullptr;
        const int64_t taps = g.taps_t * g.taps_y * g.taps_x;
        return input.weight + (output * taps + cursor.tap) * g.channels + channel;
    }
};

}  // namespace sm80

// Defines a kernel. Volumes and weights are bf16; grid: tiles; 256 threads. Channels are a multiple of 8 with 16-byte
// aligned voxels, outputs a multiple of 4.
#define CONV_KERNEL(NAME, SHAPE, ENDING, OUTPUT)                                                                    \
    extern "C" __global__ void __launch_bounds__(sm80::kThreads)                                                     \
        NAME(const __grid_constant__ sm80::Input input, const __grid_constant__ conv::Geometry geometry,             \
             const __grid_constant__ gemm::Epilogue epilogue) {                                                     \
        sm80::run<SHAPE, true, false, gemm::ENDING, OUTPUT>(sm80::Convolution<SHAPE>(input, geometry), epilogue);     \
    }
