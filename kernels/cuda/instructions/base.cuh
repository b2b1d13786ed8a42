// Functions for instructions of all supported cards: those of compute capability 8.0, and e4m3 of 8.9. All inline PTX
// is in this folder, so that the emulator can put its own headers of the same names in its place.
#pragma once

#include <cuda_bf16.h>
#include <cstdint>

namespace gpu {

// Returns where the block's dynamic shared memory begins, as an address of shared memory; aligned to 16 bytes.
__device__ __forceinline__ uint32_t dynamic_shared() {
    extern __shared__ __align__(16) uint8_t shared[];
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Returns a value that is the same in every lane, and that the compiler knows to be so: addresses computed from it stay
// in uniform registers.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// Returns the same address, about which the compiler then knows nothing: what is added to it stays in the instructions.
// The compiler would otherwise keep every sum in a register.
__device__ __forceinline__ uint32_t opaque(uint32_t address) {
    asm volatile("" : "+r"(address));
    return address;
}
template <class T>
__device__ __forceinline__ T* opaque(T* address) {
    asm volatile("" : "+l"(address));
    return address;
}

__device__ __forceinline__ float4 load_shared(uint32_t from) {
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(from)
                 : "memory");
    return x;
}
__device__ __forceinline__ void store_shared(uint32_t to, float4 x) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t to, uint32_t x) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t to, float2 x) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x.x), "f"(x.y) : "memory");
}
__device__ __forceinline__ uint4 load_shared_words(uint32_t from) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(from)
                 : "memory");
    return x;
}
__device__ __forceinline__ uint32_t load_shared_word(uint32_t from) {
    uint32_t x;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
    return x;
}

__device__ __forceinline__ float2 load_shared_pair(uint32_t from) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from) : "memory");
    return x;
}

// Global loads that the compiler does not move: they are meant to be under way while something else is computed.
__device__ __forceinline__ float4 load_global(const float* from) {
    float4 x;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "l"(from)
                 : "memory");
    return x;
}
__device__ __forceinline__ uint2 load_global(const __nv_bfloat16* from) {
    uint2 x;
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(from) : "memory");
    return x;
}
// Stores of 8 and 16 bytes. If they were assignments, ptxas would get some of them as single words.
__device__ __forceinline__ void store_global(void* to, float2 x) {
    asm volatile("st.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x.x), "f"(x.y) : "memory");
}
__device__ __forceinline__ void store_global(void* to, uint2 x) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(x.x), "r"(x.y) : "memory");
}
__device__ __forceinline__ void store_global(void* to, float4 x) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}
__device__ __forceinline__ void store_global(void* to, uint4 x) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}

// ---- Copies from global to shared memory, in groups of each thread

// Copies 16 bytes, or writes zeros if nothing is `there`.
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- Matrix products of a warp

// Loads four 8 x 8 matrices of 16-bit elements. The lanes give the addresses of the rows: lanes 0 to 7 those of the
// first matrix, and so on.
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(from)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&x)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(from)
                 : "memory");
}
// d (16 x 8, f32) += a (16 x 16, bf16, rows) * b (16 x 8, bf16, columns)
__device__ __forceinline__ void multiply_bf16(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d (16 x 8, f32) += a (16 x 32, e4m3, rows) * b (32 x 8, e4m3, columns)
__device__ __forceinline__ void multiply_e4m3(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d (16 x 8, s32) = a (16 x 32, s8, rows) * b (32 x 8, s8, columns) + c. Sums are exact; c may be registers other than d's, so
// that a constant costs no moves.
__device__ __forceinline__ void multiply_s8(int* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}
// d = a * b + c like multiply_s8, but with a of u8.
__device__ __forceinline__ void multiply_u8(int* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %11, %12, %13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// Named barriers of a block: `threads` counts those that wait and those that only arrive.
__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Holds back what follows, for example a barrier, until `x` is known. A store that never happens needs `x`, which is
// never 2^32 - 1. Compilers otherwise move arithmetic behind barriers, towards its use.
__device__ __forceinline__ void hold_until_known(uint32_t x, uint32_t address) {
    asm volatile("{ .reg .pred never; setp.eq.u32 never, %0, 0xffffffff; @never st.volatile.shared.u32 [%1], %0; }" ::"r"(x),
                 "r"(address)
                 : "memory");
}

// ---- Arithmetic

// Returns the lowest bytes of four words, the first in the lowest byte.
__device__ __forceinline__ uint32_t gather_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}
// Returns four numbers from 0 to 255, rounded to the nearest whole ones, the first in the lowest byte.
__device__ __forceinline__ uint32_t pack_u8(float a, float b, float c, float d) {
#if (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 860) || defined(PACK_BY_ADDING)
    constexpr float kUnits = 8388608.f;  // 2^23: added to a smaller number, it leaves its rounding in the low bits
    return gather_bytes(__float_as_uint(a + kUnits), __float_as_uint(b + kUnits), __float_as_uint(c + kUnits),
                        __float_as_uint(d + kUnits));
#else
    // ptxas makes two instructions of this: each converts and packs two numbers.
    uint32_t low, all;
    asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, 0;" : "=r"(low) : "r"(__float2int_rn(d)), "r"(__float2int_rn(c)));
    asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, %3;"
        : "=r"(all)
        : "r"(__float2int_rn(b)), "r"(__float2int_rn(a)), "r"(low));
    return all;
#endif
}
// Returns a * b + c, rounded towards minus infinity.
__device__ __forceinline__ float fma_down(float a, float b, float c) { return __fmaf_rd(a, b, c); }
// Returns the sum of four unsigned bytes and `more`.
__device__ __forceinline__ uint32_t sum_bytes(uint32_t bytes, uint32_t more) { return __dp4a(bytes, 0x01010101u, more); }

// Returns 2 to the x with 2 ulp of error; 0 for minus infinity.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// ---- Numbers of e4m3. Cards older than compute capability 8.9 lack them, and launchers use no kernel there that needs
// them.

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
__device__ __forceinline__ uint32_t pack_e4m3(float, float, float, float) {
    asm volatile("trap;");
    return 0;
}
__device__ __forceinline__ void unpack_e4m3(float (&)[4], uint32_t) { asm volatile("trap;"); }
#else
// Returns four e4m3 numbers, the first in the lowest byte; what exceeds 448 becomes 448.
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
    uint32_t packed;
    asm("{ .reg .b16 low, high; cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
        "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3; mov.b32 %0, {low, high}; }"
        : "=r"(packed)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return packed;
}

// The inverse of pack_e4m3.
__device__ __forceinline__ void unpack_e4m3(float (&x)[4], uint32_t packed) {
    uint32_t low, high;  // pairs of f16
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, b; }"
        : "=r"(low), "=r"(high)
        : "r"(packed));
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }" : "=f"(x[0]), "=f"(x[1]) : "r"(low));
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }" : "=f"(x[2]), "=f"(x[3]) : "r"(high));
}
#endif

}  // namespace gpu
