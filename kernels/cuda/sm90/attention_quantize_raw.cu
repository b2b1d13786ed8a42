// Prepares Q and K of the 8-bit attention straight from what their product leaves: RMS norm, rotary embedding, for K less
// the mean of its channels, rotation, int8. Nothing is rounded in between.
#include "attention_raw.cuh"

using namespace eight_bit;

namespace {

constexpr int kRows = kKeys;  // of a block; of K a tile
constexpr int kRowThreads = 4 * kRows;
constexpr uint32_t kTableBytes = kRowThreads * 16;  // four cosines or sines of each thread; there are eight such tables

// Writes the thread's columns as int8: the lowest byte of a number added to the bias is that number, rounded.
__device__ __forceinline__ void store_rounded(uint8_t* to, const float (&x)[kShare], float inverse) {
    constexpr float kBias = 12582912.f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t bytes[kColumns];
#pragma unroll
        for (int j = 0; j < kColumns; j++) bytes[j] = __float_as_uint(fmaf(x[kColumns * i + j], inverse, kBias));
        *reinterpret_cast<uint2*>(to + 32 * i) = make_uint2(
            gpu::gather_bytes(bytes[0], bytes[1], bytes[2], bytes[3]),
            gpu::gather_bytes(bytes[4], bytes[5], bytes[6], bytes[7]));
    }
}

// A block takes the same rows of `group` heads, one after the other, so that a thread loads its cosines and sines once.
// They wait in shared memory, where no other thread looks at them: in registers they would leave a multiprocessor one
// block instead of two. A head's values are loaded while the head before is worked on. Threads beyond the last row repeat it, which changes no
// maximum, and write nothing.
template <bool kIsKey>
__device__ __forceinline__ void quantize(
    const __nv_bfloat16* x, int64_t stride, const RawNorm& norm, const float* mean, uint8_t* quantized, float* scale,
    int rows, int heads, int group) {
    // Two, so that one barrier a head is enough.
    __shared__ float tops[2][kRowThreads / 32];
    const int lane = threadIdx.x % 4, columns = heads * kHeadDim;
    const int mine = blockIdx.x * kRows + threadIdx.x / 4, row = min(mine, rows - 1);
    const int first = blockIdx.y * group, end = min(heads, first + group);

    const uint32_t tables = gpu::dynamic_shared() + threadIdx.x * 16;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int64_t pair = int64_t(row) * kPairs + 16 * i + 4 * lane;
        gpu::store_shared(tables + i * kTableBytes, gpu::load_global(norm.cosines + pair));
        gpu::store_shared(tables + (4 + i) * kTableBytes, gpu::load_global(norm.sines + pair));
    }
    const float inverse = norm.inverse(row, columns);
    const __nv_bfloat16* from = x + row * stride + lane * kColumns;
    uint4 next[4];
    auto load = [&](int head) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            next[i] = __ldg(reinterpret_cast<const uint4*>(from + head * kHeadDim + 32 * i));
    };
    load(first);
    for (int head = first; head < end; head++) {
        const int column = head * kHeadDim + lane * kColumns;
        float share[kShare];
#pragma unroll
        for (int i = 0; i < 4; i++) unpack(reinterpret_cast<float(&)[kColumns]>(share[kColumns * i]), next[i]);
        if (head + 1 < end) load(head + 1);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float* part = share + kColumns * i;
            const float4 cosine = gpu::load_shared(tables + i * kTableBytes);
            const float4 sine = gpu::load_shared(tables + (4 + i) * kTableBytes);
            // A row's own factor changes none of its numbers, only its scale; a tile of keys has many rows.
            norm_and_rotate_pairs(part, kIsKey ? inverse : 1.f, norm.weight + column + 32 * i, cosine, sine);
            if constexpr (kIsKey) {
                float m[kColumns];
                load_four(m, mean + column + 32 * i);
                load_four(m + 4, mean + column + 32 * i + 4);
#pragma unroll
                for (int j = 0; j < kColumns; j++) part[j] -= m[j];
            }
        }
        rotate(share);
        float top = greatest(share);
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        if constexpr (kIsKey) {
            float(&some)[kRowThreads / 32] = tops[head % 2];
#pragma unroll
            for (int i = 4; i < 32; i *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, i));
            if (threadIdx.x % 32 == 0) some[threadIdx.x / 32] = top;
            __syncthreads();
#pragma unroll
            for (int i = 0; i < kRowThreads / 32; i++) top = fmaxf(top, some[i]);
            if (threadIdx.x == 0) scale[int64_t(head) * gridDim.x + blockIdx.x] = top / 127.f;
        }
        if (mine < rows) {
            store_rounded(quantized + row * int64_t(columns) + column, share, 127.f / top);
            if (!kIsKey && lane == 0) scale[int64_t(head) * rows + row] = top * inverse * (kLogit / 127.f);
        }
    }
}

}  // namespace

// q: [rows, heads * 128] bf16 -> quantized: the same shape, dense; scale: [heads, rows] f32, kLogit included.
// Grid: (blocks of 96 rows, groups of heads), 384 threads; dynamic shared memory: 8 * kTableBytes.
extern "C" __global__ void __launch_bounds__(kRowThreads, 2) attention_quantize_raw_query(
    const __nv_bfloat16* q, int64_t stride, const __grid_constant__ RawNorm norm, uint8_t* quantized, float* scale,
    int rows, int heads, int group) {
    quantize<false>(q, stride, norm, nullptr, quantized, scale, rows, heads, group);
}

// k: [keys, heads * 128] bf16, mean: [heads * 128] f32 -> quantized: k's shape, dense; scale: [heads, tiles] f32.
// Grid: (tiles of 96 keys, groups of heads), 384 threads; dynamic shared memory: 8 * kTableBytes.
extern "C" __global__ void __launch_bounds__(kRowThreads, 2) attention_quantize_raw_key(
    const __nv_bfloat16* k, int64_t stride, const __grid_constant__ RawNorm norm, const float* mean, uint8_t* quantized,
    float* scale, int keys, int heads, int group) {
    quantize<true>(k, stride, norm, mean, quantized, scale, keys, heads, group);
}
