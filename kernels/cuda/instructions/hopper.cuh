// Functions for Hopper's instructions: mbarriers, clusters, bulk tensor copies, warpgroup matrix products, register
// hand-over. PTX ISA 8.x names them; each wrapper is one instruction. Only for sm_90a.
#pragma once

#include <cuda.h>  // CUtensorMap
#include <cstdint>

#include <instructions/base.cuh>

namespace hopper {

using namespace gpu;

// Makes what this thread has stored in shared memory visible to the tensor cores and the copy engine.
__device__ __forceinline__ void shared_store_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Barriers in shared memory

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Waits until the phase of the given parity has completed.
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again; }" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// ---- Clusters: blocks that can write into each other's shared memory

__device__ __forceinline__ uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Waits for all threads of all blocks of the cluster.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Arrives at the barrier that lies at this address in the block of this rank. It orders no ordinary accesses of this
// thread before the other block's: with `.release.cluster` each arrival waits for a fence of the whole GPU.
__device__ __forceinline__ void barrier_arrive_at(uint32_t barrier, uint32_t rank) {
    asm volatile(
        "{ .reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(barrier),
        "r"(rank)
        : "memory");
}

// ---- Bulk tensor copies

__device__ __forceinline__ void prefetch(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void load_3d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
        : "memory");
}

__device__ __forceinline__ void load_2d(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y)
        : "memory");
}

__device__ __forceinline__ void load_4d(
    uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}

// Copies to the same address in each block of the cluster whose bit is set in `blocks`. The barrier at the same address
// in each of these blocks counts the bytes.
__device__ __forceinline__ void load_2d_multicast(
    uint32_t to, const CUtensorMap* map, uint32_t barrier, uint16_t blocks, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5}], [%2], %3;" ::"r"(to),
        "l"(map), "r"(barrier), "h"(blocks), "r"(x), "r"(y)
        : "memory");
}
__device__ __forceinline__ void load_3d_multicast(
    uint32_t to, const CUtensorMap* map, uint32_t barrier, uint16_t blocks, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(to),
        "l"(map), "r"(barrier), "h"(blocks), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// Copies `bytes` contiguous bytes, a multiple of 16.
__device__ __forceinline__ void load_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// ---- Registers: one warpgroup gives some up, and another takes them

template <int kCount>
__device__ __forceinline__ void release_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// ---- Warpgroup matrix products

__device__ __forceinline__ void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void mma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void mma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving reads or writes of registers across this point: it cannot know that a product is
// still using them.
template <int kCount>
__device__ __forceinline__ void pin(float (&r)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; i++) asm volatile("" : "+f"(r[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(int (&r)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; i++) asm volatile("" : "+r"(r[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&r)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; i++) asm volatile("" : "+r"(r[i])::"memory");
}

// Holds back what follows until `sum`, which is never negative, is known. The assembler would otherwise move a wait for
// products above the arithmetic that is meant to run meanwhile: that arithmetic does not touch the products' registers.
__device__ __forceinline__ void hold_until_known(float sum, uint32_t address) {
    asm volatile(
        "{ .reg .pred never; setp.lt.f32 never, %0, 0f00000000; @never st.volatile.shared.f32 [%1], %0; }" ::"f"(sum),
        "r"(address)
        : "memory");
}

// clang-format off
#define HOPPER_F8(r, i) "+f"(r[i]),"+f"(r[i+1]),"+f"(r[i+2]),"+f"(r[i+3]),"+f"(r[i+4]),"+f"(r[i+5]),"+f"(r[i+6]),"+f"(r[i+7])
#define HOPPER_F64(r) HOPPER_F8(r,0),HOPPER_F8(r,8),HOPPER_F8(r,16),HOPPER_F8(r,24),HOPPER_F8(r,32),HOPPER_F8(r,40),HOPPER_F8(r,48),HOPPER_F8(r,56)
#define HOPPER_F68(r) HOPPER_F64(r),"+f"(r[64]),"+f"(r[65]),"+f"(r[66]),"+f"(r[67])
#define HOPPER_R8(r, i) "+r"(r[i]),"+r"(r[i+1]),"+r"(r[i+2]),"+r"(r[i+3]),"+r"(r[i+4]),"+r"(r[i+5]),"+r"(r[i+6]),"+r"(r[i+7])
#define HOPPER_R48(r) HOPPER_R8(r,0),HOPPER_R8(r,8),HOPPER_R8(r,16),HOPPER_R8(r,24),HOPPER_R8(r,32),HOPPER_R8(r,40)
#define HOPPER_R96(r) HOPPER_R48(r),HOPPER_R8(r,48),HOPPER_R8(r,56),HOPPER_R8(r,64),HOPPER_R8(r,72),HOPPER_R8(r,80),HOPPER_R8(r,88)
#define HOPPER_R128(r) HOPPER_R96(r),HOPPER_R8(r,96),HOPPER_R8(r,104),HOPPER_R8(r,112),HOPPER_R8(r,120)
#define HOPPER_D48 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define HOPPER_D64 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define HOPPER_D68 HOPPER_D64 ",%64,%65,%66,%67"
#define HOPPER_F32(r) HOPPER_F8(r,0),HOPPER_F8(r,8),HOPPER_F8(r,16),HOPPER_F8(r,24)
#define HOPPER_F48(r) HOPPER_F32(r),HOPPER_F8(r,32),HOPPER_F8(r,40)
#define HOPPER_F96(r) HOPPER_F64(r),HOPPER_F8(r,64),HOPPER_F8(r,72),HOPPER_F8(r,80),HOPPER_F8(r,88)
#define HOPPER_F128(r) HOPPER_F96(r),HOPPER_F8(r,96),HOPPER_F8(r,104),HOPPER_F8(r,112),HOPPER_F8(r,120)
#define HOPPER_D8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define HOPPER_D96 HOPPER_D64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define HOPPER_D128 HOPPER_D96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
// clang-format on

// d (64 x 128, f32) = a (64 x 16, bf16, registers) * b (16 x 128, bf16, shared, rows) + (accumulate ? d : 0)
__device__ __forceinline__ void mma_bf16_rows(float (&d)[64], const uint32_t* a, uint64_t b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" HOPPER_D64 "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1; }"
        : HOPPER_F64(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)));
}

// d (64 x 136, f32) = a (64 x 32, e4m3, registers) * b (32 x 136, e4m3, shared, columns) + (accumulate ? d : 0)
__device__ __forceinline__ void mma_e4m3(float (&d)[68], const uint32_t* a, uint64_t b, bool accumulate) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %73, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n136k32.f32.e4m3.e4m3 {" HOPPER_D68 "}, {%68, %69, %70, %71}, %72, p, 1, 1; }"
        : HOPPER_F68(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)));
}

// d (64 x N, f32 or s32) = a (64 x 16 bf16, or 64 x 32 e4m3 or s8) * b (16 or 32 x N) + (accumulate ? d : 0), both operands in
// shared memory and contiguous along the dimension that is summed up. N is twice the number of accumulators.
#define HOPPER_MMA(NAME, SUM, COUNT, SHAPE, TYPES, LIST, A, B, P, TAIL, ...)                                       \
    __device__ __forceinline__ void NAME(SUM (&d)[COUNT], uint64_t a, uint64_t b, bool accumulate) {               \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, " P ", 0;\n"                                                  \
                     "wgmma.mma_async.sync.aligned." SHAPE "." TYPES " {" LIST "}, " A ", " B ", p" TAIL "; }"     \
                     : __VA_ARGS__                                                                                 \
                     : "l"(a), "l"(b), "r"(int(accumulate)));                                                      \
    }
#define HOPPER_BF16(COUNT, SHAPE, LIST, A, B, P, ...) \
    HOPPER_MMA(mma_bf16, float, COUNT, SHAPE, "f32.bf16.bf16", LIST, A, B, P, ", 1, 1, 0, 0", __VA_ARGS__)
#define HOPPER_E4M3(COUNT, SHAPE, LIST, A, B, P, ...) \
    HOPPER_MMA(mma_e4m3, float, COUNT, SHAPE, "f32.e4m3.e4m3", LIST, A, B, P, ", 1, 1", __VA_ARGS__)
#define HOPPER_S8(COUNT, SHAPE, LIST, A, B, P, ...) \
    HOPPER_MMA(mma_s8, int, COUNT, SHAPE, "s32.s8.s8", LIST, A, B, P, "", __VA_ARGS__)
HOPPER_BF16(8, "m64n16k16", HOPPER_D8, "%8", "%9", "%10", HOPPER_F8(d, 0))
HOPPER_BF16(48, "m64n96k16", HOPPER_D48, "%48", "%49", "%50", HOPPER_F48(d))
HOPPER_BF16(64, "m64n128k16", HOPPER_D64, "%64", "%65", "%66", HOPPER_F64(d))
HOPPER_BF16(96, "m64n192k16", HOPPER_D96, "%96", "%97", "%98", HOPPER_F96(d))
HOPPER_BF16(128, "m64n256k16", HOPPER_D128, "%128", "%129", "%130", HOPPER_F128(d))
HOPPER_E4M3(64, "m64n128k32", HOPPER_D64, "%64", "%65", "%66", HOPPER_F64(d))
HOPPER_E4M3(128, "m64n256k32", HOPPER_D128, "%128", "%129", "%130", HOPPER_F128(d))
HOPPER_S8(48, "m64n96k32", HOPPER_D48, "%48", "%49", "%50", HOPPER_R48(d))
HOPPER_S8(128, "m64n256k32", HOPPER_D128, "%128", "%129", "%130", HOPPER_R128(d))

}  // namespace hopper
