// The kernels' instructions, but each product of int8 or bf16 is issued kIssues times, all but the first time into registers
// that nothing needs, so that the tensor cores take as long as slower ones would. See padded.cu.
#pragma once

#define multiply_s8 multiply_s8_once
#define multiply_u8 multiply_u8_once
#define multiply_bf16 multiply_bf16_once
#include "../../../cuda/instructions/base.cuh"
#undef multiply_s8
#undef multiply_u8
#undef multiply_bf16

namespace gpu {

#ifndef ISSUES
#define ISSUES 1
#endif
constexpr int kIssues = ISSUES;

// Declares two sums to which the extra products are added in turns. In PTX they are registers of the whole kernel,
// whose names change places after each product; ptxas turns these moves into renaming.
__device__ __forceinline__ void padding_begin() {
    asm volatile(".reg .b32 pad<8>; .reg .b32 swap<4>;");
    asm volatile(
        "mov.b32 pad0, 0; mov.b32 pad1, 0; mov.b32 pad2, 0; mov.b32 pad3, 0; mov.b32 pad4, 0; mov.b32 pad5, 0;"
        "mov.b32 pad6, 0; mov.b32 pad7, 0;");
}
// Reads the sums, because ptxas would otherwise leave the products out.
__device__ __forceinline__ void padding_end() {
    asm volatile(
        "{ .reg .pred p; xor.b32 pad0, pad0, pad1; xor.b32 pad0, pad0, pad2; xor.b32 pad0, pad0, pad3;"
        "xor.b32 pad0, pad0, pad4; xor.b32 pad0, pad0, pad5; xor.b32 pad0, pad0, pad6; xor.b32 pad0, pad0, pad7;"
        "setp.eq.u32 p, pad0, 0x9e3779b9; @p trap; }");
}
__device__ __forceinline__ void pad(const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#pragma unroll
    for (int i = 1; i < kIssues; i++)
        asm volatile(
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {pad0, pad1, pad2, pad3}, {%0, %1, %2, %3}, {%4, %5}, "
            "{pad0, pad1, pad2, pad3};"
            "mov.b32 swap0, pad0; mov.b32 swap1, pad1; mov.b32 swap2, pad2; mov.b32 swap3, pad3;"
            "mov.b32 pad0, pad4; mov.b32 pad1, pad5; mov.b32 pad2, pad6; mov.b32 pad3, pad7;"
            "mov.b32 pad4, swap0; mov.b32 pad5, swap1; mov.b32 pad6, swap2; mov.b32 pad7, swap3;" ::"r"(a[0]),
            "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void multiply_s8(int* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
    multiply_s8_once(d, a, b0, b1, c);
    pad(a, b0, b1);
}
// Adds bf16 products to the same sums: their bits are then those of floats, which nobody reads as numbers.
__device__ __forceinline__ void multiply_bf16(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    multiply_bf16_once(d, a, b0, b1);
#pragma unroll
    for (int i = 1; i < kIssues; i++)
        asm volatile(
            "{ .reg .f32 sum<4>; mov.b32 sum0, pad0; mov.b32 sum1, pad1; mov.b32 sum2, pad2; mov.b32 sum3, pad3;"
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {sum0, sum1, sum2, sum3}, {%0, %1, %2, %3}, {%4, %5}, "
            "{sum0, sum1, sum2, sum3};"
            "mov.b32 pad0, pad4; mov.b32 pad1, pad5; mov.b32 pad2, pad6; mov.b32 pad3, pad7;"
            "mov.b32 pad4, sum0; mov.b32 pad5, sum1; mov.b32 pad6, sum2; mov.b32 pad7, sum3; }" ::"r"(a[0]),
            "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_u8(int* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4]) {
    multiply_u8_once(d, a, b0, b1, c);
    pad(a, b0, b1);
}

}  // namespace gpu
