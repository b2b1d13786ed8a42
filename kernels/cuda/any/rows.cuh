// Functions that the kernels over rows share. A block takes a row, and a thread up to 16 elements of it in 16-byte
// (bf16) or 32-byte (f32) pieces. Sums and maxima over the row have a fixed order, so the same input gives the same
// bits.
#pragma once

#include <cuda_bf16.h>

#include <instructions/base.cuh>

namespace rows {

constexpr int kVector = 8;   // elements of a piece
constexpr int kPieces = 2;   // of a thread: a row has up to 16 elements for each thread of a block
constexpr float kGreatest = 448.f;  // of e4m3
constexpr float kLeast = 1e-10f;    // greatest magnitude assumed of a row of zeros, so that it has a scale

__device__ __forceinline__ void load(float (&x)[kVector], const __nv_bfloat16* from) {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(words[i] << 16);
        x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}
__device__ __forceinline__ void load(float (&x)[kVector], const float* from) {
    const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

__device__ __forceinline__ void store(__nv_bfloat16* to, const float (&x)[kVector]) {
    *reinterpret_cast<uint4*>(to) =
        make_uint4(gpu::pack_bf16(x[0], x[1]), gpu::pack_bf16(x[2], x[3]), gpu::pack_bf16(x[4], x[5]),
                   gpu::pack_bf16(x[6], x[7]));
}
__device__ __forceinline__ void store(float* to, const float (&x)[kVector]) {
    reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
}
// Stores a piece as e4m3.
__device__ __forceinline__ void store(uint8_t* to, const float (&x)[kVector]) {
    *reinterpret_cast<uint2*>(to) =
        make_uint2(gpu::pack_e4m3(x[0], x[1], x[2], x[3]), gpu::pack_e4m3(x[4], x[5], x[6], x[7]));
}

struct Sum {
    static constexpr float kNone = 0.f;
    __device__ static __forceinline__ float of(float a, float b) { return a + b; }
};
struct Greatest {
    static constexpr float kNone = 0.f;  // of magnitudes
    __device__ static __forceinline__ float of(float a, float b) { return fmaxf(a, b); }
};

// Reduces x over all threads of the block; all of them get the result. Each use in a kernel needs a `shared` of its
// own.
template <class Operation>
__device__ __forceinline__ float reduce(float x, float (&shared)[32]) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x = Operation::of(x, __shfl_xor_sync(0xffffffffu, x, i));
    const int warps = blockDim.x / 32, lane = threadIdx.x % 32;
    if (warps == 1) return x;
    if (lane == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = lane < warps ? shared[lane] : Operation::kNone;
#pragma unroll
    for (int i = 16; i > 0; i /= 2) x = Operation::of(x, __shfl_xor_sync(0xffffffffu, x, i));
    return x;
}

// This thread's pieces of a row: those with the numbers threadIdx.x and threadIdx.x + blockDim.x, if the row has them.
struct Row {
    float x[kPieces][kVector];
    int pieces;

    __device__ __forceinline__ static int piece(int i) { return threadIdx.x + i * blockDim.x; }

    template <class Input>
    __device__ __forceinline__ Row(const Input* from, int columns) : pieces(columns / kVector) {
#pragma unroll
        for (int i = 0; i < kPieces; i++) {
#pragma unroll
            for (int j = 0; j < kVector; j++) x[i][j] = 0.f;
            if (piece(i) < pieces) load(x[i], from + piece(i) * kVector);
        }
    }

    __device__ __forceinline__ float sum() const {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < kPieces; i++)
#pragma unroll
            for (int j = 0; j < kVector; j++) sum += x[i][j];
        return sum;
    }

    // Returns the sum of the squared differences from `mean` over this thread's pieces.
    __device__ __forceinline__ float squares(float mean) const {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < kPieces; i++) {
            if (piece(i) >= pieces) continue;
#pragma unroll
            for (int j = 0; j < kVector; j++) sum = fmaf(x[i][j] - mean, x[i][j] - mean, sum);
        }
        return sum;
    }

    // Writes the row, and its scale if it is e4m3.
    template <class Output>
    __device__ __forceinline__ void write(Output* to, float*) const {
#pragma unroll
        for (int i = 0; i < kPieces; i++)
            if (piece(i) < pieces) store(to + piece(i) * kVector, x[i]);
    }
    __device__ __forceinline__ void write(uint8_t* to, float* scale) {
        __shared__ float shared[32];
        float top = 0.f;
#pragma unroll
        for (int i = 0; i < kPieces; i++)
#pragma unroll
            for (int j = 0; j < kVector; j++) top = fmaxf(top, fabsf(x[i][j]));
        top = fmaxf(reduce<Greatest>(top, shared), kLeast);
        const float inverse = kGreatest / top;
#pragma unroll
        for (int i = 0; i < kPieces; i++) {
            if (piece(i) >= pieces) continue;
#pragma unroll
            for (int j = 0; j < kVector; j++) x[i][j] *= inverse;
            store(to + piece(i) * kVector, x[i]);
        }
        if (threadIdx.x == 0) *scale = top / kGreatest;
    }

    // Rotates each `group` columns, a power of 4 up to 256, by the Kronecker power of h4 = [[1, 1, 1, -1], [1, 1, -1, 1],
    // [1, -1, 1, 1], [-1, 1, 1, 1]]. The rotation is not normalised: it multiplies lengths by sqrt(group). h4 takes
    // from the sum of four elements twice the one across, so y[i] = (x[i] - x[i ^ 3]) + (x[i ^ 1] + x[i ^ 2]); the four
    // are neighbours for the first digit of a column's number in base 4, four apart for the second, and so on. A warp
    // has 256 columns.
    __device__ __forceinline__ void rotate(int group) {
#pragma unroll
        for (int i = 0; i < kPieces; i++) {
            float(&p)[kVector] = x[i];
            if (group >= 4) {
#pragma unroll
                for (int j = 0; j < kVector; j += 4) {
                    const float outer = p[j] + p[j + 3], inner = p[j + 1] + p[j + 2];
                    const float outer_difference = p[j] - p[j + 3], inner_difference = p[j + 1] - p[j + 2];
                    p[j] = outer_difference + inner;
                    p[j + 1] = inner_difference + outer;
                    p[j + 2] = outer - inner_difference;
                    p[j + 3] = inner - outer_difference;
                }
            }
            if (group >= 16) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const float low = p[j], high = p[j + 4];
                    const float low_across = __shfl_xor_sync(0xffffffffu, high, 1);
                    const float high_across = __shfl_xor_sync(0xffffffffu, low, 1);
                    p[j] = (low - low_across) + (high + high_across);
                    p[j + 4] = (high - high_across) + (low + low_across);
                }
            }
            if (group >= 64) rotate_lanes<2>(p);
            if (group >= 256) rotate_lanes<8>(p);
        }
    }

    // Rotates by `group`, and writes the row as int8 with the scale of a normalised rotation:
    // `norm` is 1 / sqrt(group).
    __device__ __forceinline__ void write_int8(int8_t* to, float* scale, int group, float norm) {
        constexpr float kGreatestInt8 = 127.f;
        constexpr float kBias = 12582912.f;  // the lowest byte of a number added to it is that number, rounded
        __shared__ float shared[32];
        rotate(group);
        float top = 0.f;
#pragma unroll
        for (int i = 0; i < kPieces; i++)
#pragma unroll
            for (int j = 0; j < kVector; j++) top = fmaxf(top, fabsf(x[i][j]));
        top = fmaxf(reduce<Greatest>(top, shared), kLeast);
        const float inverse = kGreatestInt8 / top;
#pragma unroll
        for (int i = 0; i < kPieces; i++) {
            if (piece(i) >= pieces) continue;
            uint32_t bytes[kVector];
#pragma unroll
            for (int j = 0; j < kVector; j++) bytes[j] = __float_as_uint(fmaf(x[i][j], inverse, kBias));
            *reinterpret_cast<uint2*>(to + piece(i) * kVector) =
                make_uint2(gpu::gather_bytes(bytes[0], bytes[1], bytes[2], bytes[3]),
                           gpu::gather_bytes(bytes[4], bytes[5], bytes[6], bytes[7]));
        }
        if (threadIdx.x == 0) *scale = top / kGreatestInt8 * norm;
    }

  private:
    // Rotates by the digit of two bits of the lane, of which `kStep` is the lower one.
    template <int kStep>
    __device__ __forceinline__ static void rotate_lanes(float (&p)[kVector]) {
#pragma unroll
        for (int j = 0; j < kVector; j++) {
            const float across = __shfl_xor_sync(0xffffffffu, p[j], 3 * kStep);
            const float sum = p[j] + across;
            p[j] = (p[j] - across) + __shfl_xor_sync(0xffffffffu, sum, kStep);
        }
    }
};

}  // namespace rows

// Instances for every input and output: NAME_bf16_f32 reads bf16 and writes f32, and so on.
#define ROW_KERNELS(KERNEL, NAME)                         \
    KERNEL(NAME##_bf16_bf16, __nv_bfloat16, __nv_bfloat16) \
    KERNEL(NAME##_bf16_f32, __nv_bfloat16, float)          \
    KERNEL(NAME##_bf16_e4m3, __nv_bfloat16, uint8_t)       \
    KERNEL(NAME##_f32_bf16, float, __nv_bfloat16)          \
    KERNEL(NAME##_f32_f32, float, float)                   \
    KERNEL(NAME##_f32_e4m3, float, uint8_t)
