// Attention for Hopper with 8-bit operands: Q K^T in int8, P V in e4m3, softmax in f32, bf16 out; heads of 128, no mask.
//
// The operands come from attention_quantize_*.cu. (Quantisation after SageAttention2, arXiv 2411.10958: K without its
// mean; one scale for each row of Q, tile of K and channel of V.) One block owns 192 rows of Q of one head: one
// warpgroup copies, three compute 64 rows each. Within a warpgroup Q K^T of a tile runs with P V of the one before; P V
// adds up in registers over a group of tiles and is then added to a f32 sum in shared memory, because the tensor cores
// keep only about 14 bits of an e4m3 sum. Everything else serves to issue few instructions, which is what limits this
// kernel: integer scores become floats without a conversion, and a row of ones beside V gives the sums of P.
#include "attention_8bit.cuh"

#include <climits>

using namespace eight_bit;
using namespace hopper;

namespace {

constexpr int kConsumers = 3;
constexpr int kRows = 64 * kConsumers;  // queries of a block
constexpr int kBlock = (1 + kConsumers) * kWarpgroup;
constexpr int kStages = 4;              // tiles of K, and of V, in flight
constexpr int kGroup = 16;              // tiles between additions to the f32 sum
constexpr int kScores = kKeys / 2;      // of a thread and tile
constexpr int kParts = 68;              // accumulators of a thread: 128 channels and 8 columns for the sum of P

constexpr uint32_t kRowBytes = 128;
constexpr uint32_t kQueryBytes = kRows * kRowBytes;
constexpr uint32_t kTileBytes = kKeys * kRowBytes;
constexpr uint32_t kOnesBytes = 8 * kKeys;
constexpr uint32_t kValueBytes = kTileBytes + kOnesBytes;

// Offsets from the first 1024-byte boundary of dynamic shared memory.
constexpr uint32_t kKeyOffset = kQueryBytes;
constexpr uint32_t kValueOffset = kKeyOffset + kStages * kTileBytes;
constexpr uint32_t kSumOffset = kValueOffset + kStages * kValueBytes;
constexpr uint32_t kSumBytes = kRows * (kHeadDim + 8) * 4;
constexpr uint32_t kBarrierOffset = kSumOffset + kSumBytes;
constexpr uint32_t kSharedBytes = kBarrierOffset + 8 * (1 + 4 * kStages) + 1024;
static_assert(kSharedBytes <= 232448, "a block of Hopper has 227 KiB of shared memory");

// Exponentials are scaled by 2^8: the largest is 256, so that small ones stay above e4m3's smallest number, 2^-9.
constexpr float kShift = 8.f;

// 1.5 * 2^23 and its bits: an integer below 2^22 in magnitude added to the bits gives the float 12582912 + integer.
constexpr float kBias = 12582912.f;
constexpr int kBiasBits = 0x4b400000;

struct Barriers {
    uint32_t base;
    __device__ uint32_t query() const { return base; }
    __device__ uint32_t key_full(int stage) const { return base + 8 * (1 + stage); }
    __device__ uint32_t value_full(int stage) const { return base + 8 * (1 + kStages + stage); }
    __device__ uint32_t key_empty(int stage) const { return base + 8 * (1 + 2 * kStages + stage); }
    __device__ uint32_t value_empty(int stage) const { return base + 8 * (1 + 3 * kStages + stage); }
};

// Position in a ring of kStages slots; `parity` flips at each turn.
struct Ring {
    int stage = 0;
    uint32_t parity = 0;
    __device__ void next() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// The two rows whose scores a thread holds: accumulators 4j, 4j+1 belong to one row, 4j+2, 4j+3 to the row 8 below.
struct Softmax {
    float maximum[2] = {-INFINITY, -INFINITY};
    float rescale[2];
    float factor[2];  // what makes a score the exponent of 2

    __device__ __forceinline__ void find_maximum(const int (&s)[kScores], float factor0, float factor1) {
        factor[0] = factor0;
        factor[1] = factor1;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int tops[4] = {s[2 * r], s[2 * r + 4], s[2 * r + 8], s[2 * r + 12]};
#pragma unroll
            for (int i = 2 * r; i < kScores; i += 4) tops[i / 4 % 4] = __vimax3_s32(tops[i / 4 % 4], s[i], s[i + 1]);
            int top = max(__vimax3_s32(tops[0], tops[1], tops[2]), tops[3]);
            top = max(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = max(top, __shfl_xor_sync(0xffffffffu, top, 2));
            const float greatest = fmaxf(maximum[r], __int2float_rn(top - kBiasBits) * factor[r]);
            rescale[r] = exp2_fast(maximum[r] - greatest);
            maximum[r] = greatest;
        }
    }

    // Turns scores into exponentials; masked scores are INT_MIN.
    template <bool kMask>
    __device__ __forceinline__ void exponentials(float (&e)[kScores], const int (&s)[kScores]) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float shift = fmaf(-kBias, factor[r], kShift - maximum[r]);
#pragma unroll
            for (int i = 2 * r; i < kScores; i += 4) {
#pragma unroll
                for (int j = i; j < i + 2; j++) {
                    e[j] = exp2_fast(fmaf(__int_as_float(s[j]), factor[r], shift));
                    if (kMask && s[j] == INT_MIN) e[j] = 0.f;
                }
            }
        }
    }
};

// Computes the scores plus kBiasBits.
__device__ __forceinline__ void multiply_keys(int (&s)[kScores], uint64_t query, uint64_t key) {
#pragma unroll
    for (int i = 0; i < kScores; i++) s[i] = kBiasBits;
    pin(s);
    mma_fence();
#pragma unroll
    for (int k = 0; k < kHeadDim / 32; k++) mma_s8(s, query + ((32 * k) >> 4), key + ((32 * k) >> 4), true);
    mma_commit();
}

__device__ __forceinline__ void multiply_values(
    float (&part)[kParts], uint32_t (&p)[kKeys / 8], uint64_t value, bool accumulate) {
    pin(part);
    pin(p);
    mma_fence();
#pragma unroll
    for (int k = 0; k < kKeys / 32; k++) mma_e4m3(part, p + 4 * k, value + ((256 * k) >> 4), accumulate || k != 0);
    mma_commit();
}

// Packs exponentials: the accumulators of 32 keys, as a thread holds them, become its part of the left operand. V's
// images have the keys in the order that this implies.
__device__ __forceinline__ void pack(uint32_t (&p)[kKeys / 8], const float (&e)[kScores]) {
#pragma unroll
    for (int k = 0; k < kKeys / 32; k++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const float* from = e + 16 * k + 8 * half + 2 * r;
                p[4 * k + 2 * half + r] = pack_e4m3(from[0], from[1], from[4], from[5]);
            }
}

// A thread's slots in shared memory: 16 of its part of the output, one of the sums of P and of the maxima to which all
// of these refer.
struct Sums {
    uint32_t base;
    __device__ uint32_t slot(int i) const { return base + i * kWarpgroup * 16; }

    __device__ __forceinline__ void clear() const {
#pragma unroll
        for (int i = 0; i < 16; i++) store_shared(slot(i), make_float4(0.f, 0.f, 0.f, 0.f));
        store_shared(slot(16), make_float4(0.f, 0.f, -INFINITY, -INFINITY));
    }

    // Adds the stored sums, rescaled to refer to `maximum`, to `part`.
    __device__ __forceinline__ void add_to(float (&part)[kParts], const float (&maximum)[2]) const {
        const float4 row = load_shared(slot(16));
        const float scale[2] = {exp2_fast(row.z - maximum[0]), exp2_fast(row.w - maximum[1])};
        part[64] = fmaf(row.x, scale[0], part[64]);
        part[66] = fmaf(row.y, scale[1], part[66]);
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const float4 sum = load_shared(slot(i));
            part[4 * i] = fmaf(sum.x, scale[0], part[4 * i]);
            part[4 * i + 1] = fmaf(sum.y, scale[0], part[4 * i + 1]);
            part[4 * i + 2] = fmaf(sum.z, scale[1], part[4 * i + 2]);
            part[4 * i + 3] = fmaf(sum.w, scale[1], part[4 * i + 3]);
        }
    }

    __device__ __forceinline__ void store(const float (&part)[kParts], const float (&maximum)[2]) const {
#pragma unroll
        for (int i = 0; i < 16; i++)
            store_shared(slot(i), make_float4(part[4 * i], part[4 * i + 1], part[4 * i + 2], part[4 * i + 3]));
        store_shared(slot(16), make_float4(part[64], part[66], maximum[0], maximum[1]));
    }
};

}  // namespace

// Maps: q8 [rows, heads * 128] in boxes of 192 x 128, k8 [keys, heads * 128] in boxes of 96 x 128, both s8 swizzled by
// 128 bytes. values: the images of attention_quantize_value.cu. query_scale: [heads, rows], key_scale: [heads, tiles],
// value_scale, value_mean: [heads * 128], all f32. output: [rows, heads * 128] bf16, `output_stride` elements a row.
// Grid: (blocks of 192 rows, heads), 512 threads.
extern "C" __global__ void __launch_bounds__(kBlock, 1) attention_8bit(
    const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap key_map,
    const uint8_t* __restrict__ values, const float* __restrict__ query_scale, const float* __restrict__ key_scale,
    const float* __restrict__ value_scale, const float* __restrict__ value_mean, __nv_bfloat16* output,
    int64_t output_stride, int rows, int keys) {
    const uint32_t base = (dynamic_shared() + 1023) & ~1023u;
    const Barriers barriers{base + kBarrierOffset};
    const int warpgroup = uniform(threadIdx.x / kWarpgroup);
    const int thread = threadIdx.x % kWarpgroup;
    const int head = blockIdx.y;
    const int first_row = blockIdx.x * kRows;
    const int tiles = (keys + kKeys - 1) / kKeys;

    // Behind each image of V lie 8 more channels: one of ones, seven of zeros. Column 128 of P V is then the sum of P.
    for (int i = threadIdx.x; i < kStages * int(kOnesBytes) / 4; i += kBlock) {
        const int stage = i / (kOnesBytes / 4), word = i % (kOnesBytes / 4);
        const uint32_t ones = word % 32 < 4 ? 0x38383838u : 0u;
        store_shared(base + kValueOffset + stage * kValueBytes + kTileBytes + 4 * word, ones);
    }
    shared_store_fence();
    if (threadIdx.x == 0) {
        prefetch(&query_map);
        prefetch(&key_map);
        barrier_init(barriers.query(), 1);
        for (int stage = 0; stage < kStages; stage++) {
            barrier_init(barriers.key_full(stage), 1);
            barrier_init(barriers.value_full(stage), 1);
            barrier_init(barriers.key_empty(stage), kConsumers);
            barrier_init(barriers.value_empty(stage), kConsumers);
        }
        barrier_init_fence();
    }
    __syncthreads();

    // Tiles are taken from the last to the first, so that only the first taken needs a mask.
    if (warpgroup == 0) {
        release_registers<24>();
        if (thread == 0) {
            barrier_expect(barriers.query(), kQueryBytes);
            load_2d(base, &query_map, barriers.query(), head * kHeadDim, first_row);
            Ring key, value;
            for (int tile = tiles - 1; tile >= -1; tile--) {
                if (tile >= 0) {
                    barrier_wait(barriers.key_empty(key.stage), key.parity ^ 1);
                    barrier_expect(barriers.key_full(key.stage), kTileBytes);
                    load_2d(base + kKeyOffset + key.stage * kTileBytes, &key_map, barriers.key_full(key.stage),
                            head * kHeadDim, tile * kKeys);
                    key.next();
                }
                if (tile + 1 < tiles) {
                    barrier_wait(barriers.value_empty(value.stage), value.parity ^ 1);
                    barrier_expect(barriers.value_full(value.stage), kTileBytes);
                    load_bytes(base + kValueOffset + value.stage * kValueBytes,
                               values + (int64_t(head) * tiles + tile + 1) * kTileBytes, kTileBytes,
                               barriers.value_full(value.stage));
                    value.next();
                }
            }
        }
    } else {
        take_registers<160>();
        const int consumer = warpgroup - 1;
        const uint64_t query = descriptor(base + consumer * 64 * kRowBytes, 8 * kRowBytes, 0);
        const uint64_t key_tiles = descriptor(base + kKeyOffset, 8 * kRowBytes, 0);
        const uint64_t value_tiles = descriptor_unswizzled(base + kValueOffset, 8 * kKeys, 128);
        const int row = first_row + consumer * 64 + (thread / 32) * 16 + (thread % 32) / 4;
        const float* row_scale = query_scale + int64_t(head) * rows + row;
        const float scale0 = row < rows ? row_scale[0] : 0.f, scale1 = row + 8 < rows ? row_scale[8] : 0.f;
        const float* tile_scale = key_scale + head * tiles;
        const Sums sums{base + kSumOffset + (consumer * 17 * kWarpgroup + thread) * 16};
        sums.clear();

        uint32_t p[kKeys / 8];
        float part[kParts];
        Softmax softmax;
        Ring key, value;

        barrier_wait(barriers.query(), 0);
        barrier_wait(barriers.key_full(0), 0);
        {
            int s[kScores];
            float e[kScores];
            const float key_factor = __ldg(tile_scale + tiles - 1);
            multiply_keys(s, query, key_tiles);
            mma_wait<0>();
            pin(s);
            if (thread == 0) barrier_arrive(barriers.key_empty(0));
            key.next();
            const int left = keys - (tiles - 1) * kKeys - 2 * (thread % 4);
#pragma unroll
            for (int i = 0; i < kScores; i++)
                if (i / 4 * 8 + i % 2 >= left) s[i] = INT_MIN;
            softmax.find_maximum(s, scale0 * key_factor, scale1 * key_factor);
            softmax.exponentials<true>(e, s);
            pack(p, e);
        }

        for (int tile = 1; tile < tiles; tile++) {
            int s[kScores];
            float e[kScores];
            const float key_factor = __ldg(tile_scale + tiles - 1 - tile);
            barrier_wait(barriers.key_full(key.stage), key.parity);
            barrier_wait(barriers.value_full(value.stage), value.parity);
            multiply_keys(s, query, key_tiles + key.stage * (kTileBytes >> 4));
            multiply_values(part, p, value_tiles + value.stage * (kValueBytes >> 4), tile % kGroup != 1);
            mma_wait<1>();
            pin(s);
            if (thread == 0) barrier_arrive(barriers.key_empty(key.stage));
            key.next();
            softmax.find_maximum(s, scale0 * key_factor, scale1 * key_factor);
            mma_wait<0>();
            pin(part);
            pin(p);
            if (thread == 0) barrier_arrive(barriers.value_empty(value.stage));
            value.next();
            if (__any_sync(0xffffffffu, softmax.rescale[0] != 1.f || softmax.rescale[1] != 1.f)) {
#pragma unroll
                for (int i = 0; i < kParts; i++) part[i] *= softmax.rescale[(i / 2) % 2];
            }
            softmax.exponentials<false>(e, s);
            pack(p, e);
            if (tile % kGroup == 0) {
                sums.add_to(part, softmax.maximum);
                sums.store(part, softmax.maximum);
            }
        }

        barrier_wait(barriers.value_full(value.stage), value.parity);
        multiply_values(part, p, value_tiles + value.stage * (kValueBytes >> 4), tiles % kGroup != 1);
        mma_wait<0>();
        pin(part);
        sums.add_to(part, softmax.maximum);

#pragma unroll
        for (int r = 0; r < 2; r++) {
            // Only the first thread of a row holds column 128.
            const float inverse = 1.f / __shfl_sync(0xffffffffu, part[64 + 2 * r], threadIdx.x & 28);
            if (row + 8 * r < rows) {
                const int column = head * kHeadDim + 2 * (thread % 4);
                __nv_bfloat16* to = output + (row + 8 * r) * output_stride + column;
#pragma unroll
                for (int j = 0; j < kHeadDim / 8; j++) {
                    const float2 scale = *reinterpret_cast<const float2*>(value_scale + column + 8 * j);
                    const float2 mean = *reinterpret_cast<const float2*>(value_mean + column + 8 * j);
                    *reinterpret_cast<uint32_t*>(to + 8 * j) = pack_bf16(
                        fmaf(part[4 * j + 2 * r] * inverse, scale.x, mean.x),
                        fmaf(part[4 * j + 2 * r + 1] * inverse, scale.y, mean.y));
                }
            }
        }
    }
}
