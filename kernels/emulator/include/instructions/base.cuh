// The functions of kernels/cuda/instructions/base.cuh for the emulator.
#pragma once

#include <cuda_bf16.h>
#include <cstdint>

namespace gpu {

inline uint32_t dynamic_shared() { return emulator::dynamic_shared(); }
inline int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

template <class T>
inline T opaque(T address) {
    return address;
}

template <class T>
inline T emulated_load(uint32_t from) {
    T x;
    memcpy(&x, emulator::load_place(from, sizeof x), sizeof x);
    return x;
}
template <class T>
inline void emulated_store(uint32_t to, T x) {
    memcpy(emulator::store_place(to, sizeof x), &x, sizeof x);
}
inline float4 load_shared(uint32_t from) { return emulated_load<float4>(from); }
inline uint4 load_shared_words(uint32_t from) { return emulated_load<uint4>(from); }
inline uint32_t load_shared_word(uint32_t from) { return emulated_load<uint32_t>(from); }
inline float2 load_shared_pair(uint32_t from) { return emulated_load<float2>(from); }
inline void store_shared(uint32_t to, float4 x) { emulated_store(to, x); }
inline void store_shared(uint32_t to, float2 x) { emulated_store(to, x); }
inline void store_shared(uint32_t to, uint32_t x) { emulated_store(to, x); }

template <class T>
inline void emulated_align(const T* from, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(from) % bytes != 0) emulator::fail("%p is no multiple of %zu", (const void*)from, bytes);
}
inline float4 load_global(const float* from) {
    emulated_align(from, 16);
    return *reinterpret_cast<const float4*>(from);
}
inline uint2 load_global(const __nv_bfloat16* from) {
    emulated_align(from, 8);
    return *reinterpret_cast<const uint2*>(from);
}
template <class T>
inline void store_global(void* to, T x) {
    emulated_align(static_cast<const char*>(to), sizeof x);
    *static_cast<T*>(to) = x;
}

inline void copy_async(uint32_t to, const void* from, bool there) { emulator::copy_async(to, from, there); }
inline void copy_commit() { emulator::copy_commit(); }
template <int kPending>
inline void copy_wait() {
    emulator::copy_wait(kPending);
}

inline void load_matrices(uint32_t (&x)[4], uint32_t from) { emulator::load_matrices(x, from, false); }
inline void load_matrices_transposed(uint32_t (&x)[4], uint32_t from) { emulator::load_matrices(x, from, true); }
inline void multiply_bf16(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulator::multiply(emulator::Kind::kBf16, d, a, b0, b1);
}
inline void multiply_e4m3(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulator::multiply(emulator::Kind::kE4m3, d, a, b0, b1);
}

inline void multiply_s8(int* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
    emulator::multiply_integers(true, d, a, b0, b1, c);
}
inline void multiply_u8(int* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
    emulator::multiply_integers(false, d, a, b0, b1, c);
}

inline void named_sync(int id, int threads) { emulator::block_barrier(id, threads, true); }
inline void named_arrive(int id, int threads) { emulator::block_barrier(id, threads, false); }
inline void hold_until_known(uint32_t, uint32_t) {}

inline uint32_t gather_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24;
}
inline uint32_t pack_u8(float a, float b, float c, float d) {
    const auto round = [](float x) { return uint32_t(std::fmin(std::fmax(std::nearbyint(x), 0.f), 255.f)); };
    return gather_bytes(round(a), round(b), round(c), round(d));
}
inline float fma_down(float a, float b, float c) {
    const double exact = double(a) * double(b) + double(c);
    const float near = float(exact);
    return double(near) > exact ? std::nextafter(near, -INFINITY) : near;
}
inline uint32_t sum_bytes(uint32_t bytes, uint32_t more) {
    for (int i = 0; i < 4; i++) more += bytes >> (8 * i) & 0xff;
    return more;
}

// The hardware's function has an error of 2 ulp, this one of half a unit or so. Both flush results below the normal
// numbers to 0.
inline float exp2_fast(float x) {
    const float y = std::exp2(std::fabs(x) < 0x1p-126f ? 0.f : x);
    return y < 0x1p-126f ? 0.f : y;
}

inline uint32_t pack_bf16(float low, float high) {
    return emulator::to_bf16(low) | uint32_t(emulator::to_bf16(high)) << 16;
}
inline uint32_t pack_e4m3(float a, float b, float c, float d) {
    return emulator::to_e4m3(a) | uint32_t(emulator::to_e4m3(b)) << 8 | uint32_t(emulator::to_e4m3(c)) << 16 |
           uint32_t(emulator::to_e4m3(d)) << 24;
}
inline void unpack_e4m3(float (&x)[4], uint32_t packed) {
    for (int i = 0; i < 4; i++) x[i] = emulator::from_e4m3(packed >> (8 * i) & 0xff);
}

}  // namespace gpu
