// Expands the numbers of model files to f32, so that they travel to the device as they are stored. Every operation is
// rounded by itself and in the order in which the CPU does it (`engine/src/weights`), so the values are the CPU's to the
// bit: nothing here may become a fused multiply-add.
#include "rows.cuh"

namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float with_sign(float magnitude, uint32_t sign) {
    return __uint_as_float(__float_as_uint(magnitude) | sign << 31);
}

// Returns the value of an f16. Its subnormals are whole multiples of 2^-24.
__device__ __forceinline__ float f16_value(uint32_t bits) {
    const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float magnitude = exponent == 0    ? __fmul_rn(float(fraction), 0x1p-24f)
                            : exponent == 31 ? __uint_as_float(0x7f800000u | fraction << 13)
                                             : __uint_as_float((exponent + 112) << 23 | fraction << 13);
    return with_sign(magnitude, bits >> 15);
}
// Returns the f16 that begins at any byte.
__device__ __forceinline__ float half_at(const uint8_t* x) { return f16_value(x[0] | uint32_t(x[1]) << 8); }

__device__ __forceinline__ float signed_byte(uint8_t x) { return float(static_cast<int8_t>(x)); }

// step * number - least, in two roundings.
__device__ __forceinline__ float above(float step, uint32_t number, float least) {
    return __fadd_rn(__fmul_rn(step, float(number)), -least);
}

// ---- Plain numbers: `at` returns the number `i` of those that begin at x.

struct F16 {
    __device__ static float at(const uint8_t* x, int64_t i) { return half_at(x + 2 * i); }
};
struct E4m3 {
    __device__ static float at(const uint8_t* x, int64_t i) {
        const uint32_t bits = x[i], exponent = bits >> 3 & 15, fraction = bits & 7;
        const float magnitude = (bits & 127) == 127 ? __uint_as_float(0x7fc00000u)
                                : exponent == 0     ? __fmul_rn(float(fraction), 0x1p-9f)
                                                    : __uint_as_float((exponent + 120) << 23 | fraction << 20);
        return with_sign(magnitude, bits >> 7);
    }
};
struct E5m2 {
    __device__ static float at(const uint8_t* x, int64_t i) { return f16_value(uint32_t(x[i]) << 8); }
};
// The first of the two numbers in a byte has the lower half.
struct E2m1 {
    __device__ static float at(const uint8_t* x, int64_t i) {
        const uint32_t bits = x[i / 2] >> (4 * (i & 1)) & 15, exponent = bits >> 1 & 3, fraction = bits & 1;
        const float magnitude =
            exponent == 0 ? 0.5f * float(fraction) : __uint_as_float((exponent + 126) << 23 | fraction << 22);
        return with_sign(magnitude, bits >> 3);
    }
};
struct Int8 {
    __device__ static float at(const uint8_t* x, int64_t i) { return signed_byte(x[i]); }
};

// ---- GGUF's blocks: `at` returns the value `i` of the block that begins at x. `kValues` values take `kBytes` bytes.

// Returns the 4-bit number of one of 32 values: the low halves of 16 bytes, then their high halves.
__device__ __forceinline__ uint32_t nibble(const uint8_t* qs, int i) { return qs[i % 16] >> (i / 16 * 4) & 15; }
// Returns the fifth bit of the number of one of 32 values, in its place.
__device__ __forceinline__ uint32_t fifth(const uint8_t* qh, int i) { return (qh[i / 8] >> (i % 8) & 1) << 4; }

struct Q4_0 {
    static constexpr int kValues = 32, kBytes = 18;
    __device__ static float at(const uint8_t* x, int i) {
        return __fmul_rn(half_at(x), float(nibble(x + 2, i)) - 8.f);
    }
};
struct Q4_1 {
    static constexpr int kValues = 32, kBytes = 20;
    __device__ static float at(const uint8_t* x, int i) {
        return above(half_at(x), nibble(x + 4, i), -half_at(x + 2));
    }
};
struct Q5_0 {
    static constexpr int kValues = 32, kBytes = 22;
    __device__ static float at(const uint8_t* x, int i) {
        return __fmul_rn(half_at(x), float(nibble(x + 6, i) | fifth(x + 2, i)) - 16.f);
    }
};
struct Q5_1 {
    static constexpr int kValues = 32, kBytes = 24;
    __device__ static float at(const uint8_t* x, int i) {
        return above(half_at(x), nibble(x + 8, i) | fifth(x + 4, i), -half_at(x + 2));
    }
};
struct Q8_0 {
    static constexpr int kValues = 32, kBytes = 34;
    __device__ static float at(const uint8_t* x, int i) {
        return __fmul_rn(half_at(x), signed_byte(x[2 + i]));
    }
};

// Returns the 2-bit number of one of 256 values.
__device__ __forceinline__ uint32_t pair(const uint8_t* qs, int i) {
    return qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

struct Q2_K {
    static constexpr int kValues = 256, kBytes = 84;
    __device__ static float at(const uint8_t* x, int i) {
        const uint32_t scale = x[i / 16];
        const float step = __fmul_rn(half_at(x + 80), float(scale & 15));
        return above(step, pair(x + 16, i), __fmul_rn(half_at(x + 82), float(scale >> 4)));
    }
};
struct Q3_K {
    static constexpr int kValues = 256, kBytes = 110;
    __device__ static float at(const uint8_t* x, int i) {
        const uint8_t* scales = x + 96;
        const int group = i / 16;
        const uint32_t low = scales[group % 8] >> (group / 8 * 4) & 15;
        const uint32_t top = scales[8 + group % 4] >> (group / 4 * 2) & 3;
        const float step = __fmul_rn(half_at(x + 108), float(low | top << 4) - 32.f);
        const uint32_t third = x[i % 32] >> (i / 32) & 1;
        return __fmul_rn(step, float(pair(x + 32, i) | third << 2) - 4.f);
    }
};

// The step and the minimum of one of eight groups of 32 values, from 6-bit numbers in 12 bytes behind two f16 factors.
struct SixBits {
    float step, least;
    __device__ SixBits(const uint8_t* x, int group) {
        const uint8_t* packed = x + 4;
        uint32_t s, m;
        if (group < 4) {
            s = packed[group] & 63, m = packed[group + 4] & 63;
        } else {
            const uint32_t low = packed[group + 4];
            s = (low & 15) | packed[group - 4] >> 6 << 4, m = low >> 4 | packed[group] >> 6 << 4;
        }
        step = __fmul_rn(half_at(x), float(s)), least = __fmul_rn(half_at(x + 2), float(m));
    }
};

struct Q4_K {
    static constexpr int kValues = 256, kBytes = 144;
    __device__ static float at(const uint8_t* x, int i) {
        const int group = i / 32;
        const SixBits six(x, group);
        return above(six.step, x[16 + group / 2 * 32 + i % 32] >> (group % 2 * 4) & 15, six.least);
    }
};
struct Q5_K {
    static constexpr int kValues = 256, kBytes = 176;
    __device__ static float at(const uint8_t* x, int i) {
        const int group = i / 32;
        const SixBits six(x, group);
        const uint32_t low = x[48 + group / 2 * 32 + i % 32] >> (group % 2 * 4) & 15;
        return above(six.step, low | (x[16 + i % 32] >> group & 1) << 4, six.least);
    }
};
struct Q6_K {
    static constexpr int kValues = 256, kBytes = 210;
    __device__ static float at(const uint8_t* x, int i) {
        const int half_of_block = i / 128, quarter = i / 32 % 4, l = i % 32;
        const uint32_t four = x[64 * half_of_block + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        const uint32_t two = x[128 + 32 * half_of_block + l] >> (2 * quarter) & 3;
        const float step = __fmul_rn(half_at(x + 208), signed_byte(x[192 + i / 16]));
        return __fmul_rn(step, float(four | two << 4) - 32.f);
    }
};

}  // namespace

// x: `count` numbers -> y: [count] f32. Rectangles of `height` rows and `width` columns of the `columns` share a scale;
// the scales are row-major, `across` in a row. Without scales, `scales` is null. Grid: count / 256; 256 threads.
#define EXPAND_NUMBERS(NAME, NUMBERS)                                                                         \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                    \
        NAME(const uint8_t* x, const float* scales, float* y, int64_t count, int columns, int height, int width, \
             int across) {                                                                                    \
        const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;                                       \
        if (i >= count) return;                                                                               \
        float value = NUMBERS::at(x, i);                                                                      \
        if (scales) {                                                                                         \
            const int64_t row = i / columns;                                                                  \
            const int column = int(i - row * columns);                                                        \
            value = __fmul_rn(value, scales[row / height * across + column / width]);                         \
        }                                                                                                     \
        y[i] = value;                                                                                         \
    }
EXPAND_NUMBERS(expand_f16, F16)
EXPAND_NUMBERS(expand_e4m3, E4m3)
EXPAND_NUMBERS(expand_e5m2, E5m2)
EXPAND_NUMBERS(expand_e2m1, E2m1)
EXPAND_NUMBERS(expand_int8, Int8)

// x: whole blocks -> y: [count] f32. Grid: count / 256; 256 threads.
#define EXPAND_BLOCKS(NAME, BLOCK)                                                                            \
    extern "C" __global__ void __launch_bounds__(kThreads)                                                    \
        NAME(const uint8_t* x, float* y, int64_t count) {                                                     \
        const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;                                       \
        if (i >= count) return;                                                                               \
        const int64_t block = i / BLOCK::kValues;                                                             \
        y[i] = BLOCK::at(x + block * BLOCK::kBytes, int(i - block * BLOCK::kValues));                         \
    }
EXPAND_BLOCKS(expand_q4_0, Q4_0)
EXPAND_BLOCKS(expand_q4_1, Q4_1)
EXPAND_BLOCKS(expand_q5_0, Q5_0)
EXPAND_BLOCKS(expand_q5_1, Q5_1)
EXPAND_BLOCKS(expand_q8_0, Q8_0)
EXPAND_BLOCKS(expand_q2_k, Q2_K)
EXPAND_BLOCKS(expand_q3_k, Q3_K)
EXPAND_BLOCKS(expand_q4_k, Q4_K)
EXPAND_BLOCKS(expand_q5_k, Q5_K)
EXPAND_BLOCKS(expand_q6_k, Q6_K)

// x: [rows, columns] f32, in place: each `group` neighbouring columns are rotated, and multiplied by `norm`, which is
// 1 / sqrt(group). Grid: rows; threads: columns / 16 in whole warps.
extern "C" __global__ void __launch_bounds__(1024) rotate_rows(float* x, int columns, int group, float norm) {
    float* own = x + int64_t(blockIdx.x) * columns;
    rows::Row row(own, columns);
    row.rotate(group);
#pragma unroll
    for (int i = 0; i < rows::kPieces; i++)
#pragma unroll
        for (int j = 0; j < rows::kVector; j++) row.x[i][j] *= norm;
    row.write(own, nullptr);
}
