// The functions of kernels/cuda/instructions/hopper.cuh for the emulator.
#pragma once

#include <cuda.h>
#include <cstdint>

#include <instructions/base.cuh>

namespace hopper {

using namespace gpu;

inline void shared_store_fence() { emulator::proxy_fence(); }

inline void barrier_init(uint32_t barrier, uint32_t arrivals) { emulator::barrier_init(barrier, arrivals); }
inline void barrier_init_fence() { emulator::barrier_init_fence(); }
inline void barrier_expect(uint32_t barrier, uint32_t bytes) { emulator::barrier_expect(barrier, bytes); }
inline void barrier_arrive(uint32_t barrier) { emulator::barrier_arrive(barrier, emulator::here->rank); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) { emulator::barrier_wait(barrier, parity); }


inline uint32_t cluster_rank() { return emulator::here->rank; }
inline void cluster_sync() { emulator::cluster_barrier(); }
inline void barrier_arrive_at(uint32_t barrier, uint32_t rank) { emulator::barrier_arrive(barrier, rank); }

inline void prefetch(const CUtensorMap* map) { emulator::check_map(map); }
inline void load_2d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y) {
    const int at[] = {x, y};
    emulator::load_tensor(to, map, barrier, 0, at, 2);
}
inline void load_3d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z) {
    const int at[] = {x, y, z};
    emulator::load_tensor(to, map, barrier, 0, at, 3);
}
inline void load_4d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z, int w) {
    const int at[] = {x, y, z, w};
    emulator::load_tensor(to, map, barrier, 0, at, 4);
}
inline void load_2d_multicast(uint32_t to, const CUtensorMap* map, uint32_t barrier, uint16_t blocks, int x, int y) {
    const int at[] = {x, y};
    emulator::load_tensor(to, map, barrier, blocks, at, 2);
}
inline void load_3d_multicast(uint32_t to, const CUtensorMap* map, uint32_t barrier, uint16_t blocks, int x, int y, int z) {
    const int at[] = {x, y, z};
    emulator::load_tensor(to, map, barrier, blocks, at, 3);
}
inline void load_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    emulator::load_bytes(to, from, bytes, barrier);
}

template <int kCount>
inline void release_registers() {
    emulator::set_registers(kCount);
}
template <int kCount>
inline void take_registers() {
    emulator::set_registers(kCount);
}

inline void mma_fence() { emulator::mma_fence(); }
inline void mma_commit() { emulator::mma_commit(); }
template <int kPending>
inline void mma_wait() {
    emulator::mma_wait(kPending);
}
template <class T, int kCount>
inline void pin(T (&)[kCount]) {}
inline void hold_until_known(float, uint32_t) {}

template <int kCount>
inline void mma_bf16(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
    emulator::mma(emulator::Kind::kBf16, 2 * kCount, d, nullptr, a, b, false, accumulate);
}
inline void mma_bf16_rows(float (&d)[64], const uint32_t* a, uint64_t b, bool accumulate) {
    emulator::mma(emulator::Kind::kBf16, 128, d, a, 0, b, true, accumulate);
}
template <int kCount>
inline void mma_s8(int (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
    emulator::mma(emulator::Kind::kS8, 2 * kCount, d, nullptr, a, b, false, accumulate);
}
inline void mma_e4m3(float (&d)[68], const uint32_t* a, uint64_t b, bool accumulate) {
    emulator::mma(emulator::Kind::kE4m3, 136, d, a, 0, b, false, accumulate);
}
template <int kCount>
inline void mma_e4m3(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
    emulator::mma(emulator::Kind::kE4m3, 2 * kCount, d, nullptr, a, b, false, accumulate);
}

}  // namespace hopper
