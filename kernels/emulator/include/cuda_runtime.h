// CUDA C++ for the host's compiler, as far as the kernels use it.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../machine.h"

// EMULATED_NAMES is for reading the kernels' names: it leaves the words that declare a kernel in the source.
#ifndef EMULATED_NAMES
#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#endif
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __align__(N) alignas(N)
#define __restrict__ __restrict
// All of the library's thread-local memory is shared memory of blocks, which the emulator poisons before each cluster.
#define __shared__ thread_local

#define threadIdx (emulator::here->thread)
#define blockIdx (emulator::here->block)
#define blockDim (emulator::here->block_size)
#define gridDim (emulator::here->grid)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class T>
inline T __ldg(const T* from) {
    return *from;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int __vimax3_s32(int a, int b, int c) { return max(max(a, b), c); }

template <class To, class From>
inline To emulated_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline float __int2float_rn(int x) { return float(x); }
// Rounds to an integer; it saturates, and turns NaN into 0, as the hardware does.
inline int __float2int_rn(float x) {
    if (x != x) return 0;
    if (x >= 2147483648.f) return INT_MAX;
    if (x < -2147483648.f) return INT_MIN;
    return int(std::nearbyint(x));
}
// Each of these operations is rounded: the empty statement keeps the compiler from merging two of them.
inline float __fmul_rn(float a, float b) {
    float c = a * b;
    asm("" : "+m"(c));
    return c;
}
inline float __fadd_rn(float a, float b) {
    float c = a + b;
    asm("" : "+m"(c));
    return c;
}
inline float __fdividef(float a, float b) { return std::fabs(b) > 0x1p126f && !std::isinf(b) ? 0.f : a / b; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

inline void __syncthreads() { emulator::block_barrier(0, 0, true); }
inline void __syncwarp(unsigned lanes = 0xffffffffu) { emulator::meet("__syncwarp", lanes, nullptr, nullptr); }

struct EmulatedShuffle {
    uint32_t bits;
    int from;
};
inline uint32_t emulated_shuffle(const char* what, unsigned lanes, uint32_t bits, int from) {
    EmulatedShuffle mine{bits, from};
    emulator::meet(what, lanes, &mine, [](void* const* all, unsigned lanes) {
        uint32_t taken[32] = {};
        for (int lane = 0; lane < 32; lane++) {
            if (!(lanes >> lane & 1)) continue;
            const int from = static_cast<EmulatedShuffle*>(all[lane])->from;
            if (!(lanes >> from & 1)) emulator::fail("a shuffle reads lane %d, which does not take part", from);
            taken[lane] = static_cast<EmulatedShuffle*>(all[from])->bits;
        }
        for (int lane = 0; lane < 32; lane++)
            if (lanes >> lane & 1) static_cast<EmulatedShuffle*>(all[lane])->bits = taken[lane];
    });
    return mine.bits;
}
template <class T>
inline T __shfl_sync(unsigned lanes, T x, int from) {
    return emulated_bits<T>(emulated_shuffle("__shfl_sync", lanes, emulated_bits<uint32_t>(x), from & 31));
}
template <class T>
inline T __shfl_xor_sync(unsigned lanes, T x, int change) {
    const int from = int(threadIdx.x % 32) ^ change;
    return emulated_bits<T>(emulated_shuffle("__shfl_xor_sync", lanes, emulated_bits<uint32_t>(x), from));
}
inline int __any_sync(unsigned lanes, int mine) {
    emulator::meet("__any_sync", lanes, &mine, [](void* const* all, unsigned lanes) {
        int any = 0;
        for (int lane = 0; lane < 32; lane++)
            if (lanes >> lane & 1) any |= *static_cast<int*>(all[lane]) != 0;
        for (int lane = 0; lane < 32; lane++)
            if (lanes >> lane & 1) *static_cast<int*>(all[lane]) = any;
    });
    return mine;
}
