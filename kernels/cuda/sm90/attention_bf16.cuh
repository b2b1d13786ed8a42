// Functions that the attention kernels with bf16 operands share: tiles of 128 keys, heads of 128 channels.
#pragma once

#include <cuda_bf16.h>

#include "hopper.cuh"

namespace attention {

using namespace hopper;

constexpr int kHeadDim = 128;
constexpr int kRows = 128;   // queries of a block
constexpr int kKeys = 128;   // keys of a tile
constexpr int kStages = 2;   // tiles of K, and of V, in flight
constexpr int kConsumers = 2;
constexpr int kThreads = (1 + kConsumers) * kWarpgroup;

constexpr uint32_t kRowBytes = 128;
constexpr uint32_t kGroupBytes = 8 * kRowBytes;
constexpr uint32_t kQueryPanelBytes = kRows * kRowBytes;
constexpr uint32_t kPanelBytes = kKeys * kRowBytes;
constexpr uint32_t kQueryBytes = 2 * kQueryPanelBytes;
constexpr uint32_t kTileBytes = 2 * kPanelBytes;
static_assert(kPanelBytes % 1024 == 0, "a swizzle atom is 1024 bytes");

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

// Room for tiles of K and V in shared memory, and the barriers that say that a slot is full or empty again.
struct Slots {
    uint32_t keys, values;  // kStages of each
    uint32_t barriers;      // kTileBarriers of them
    __device__ uint32_t key_full(int stage) const { return barriers + 8 * stage; }
    __device__ uint32_t value_full(int stage) const { return barriers + 8 * (kStages + stage); }
    __device__ uint32_t key_empty(int stage) const { return barriers + 8 * (2 * kStages + stage); }
    __device__ uint32_t value_empty(int stage) const { return barriers + 8 * (3 * kStages + stage); }

    __device__ __forceinline__ void init() const {
        for (int stage = 0; stage < kStages; stage++) {
            barrier_init(key_full(stage), 1);
            barrier_init(value_full(stage), 1);
            barrier_init(key_empty(stage), kConsumers);
            barrier_init(value_empty(stage), kConsumers);
        }
    }

    // Copies `count` tiles of a head from the last to the first, so that only the first taken needs a mask. Each tile
    // of V follows the next tile of K, which is the order in which they are needed.
    __device__ __forceinline__ void bring(
        const CUtensorMap* key_map, const CUtensorMap* value_map, Ring& key, Ring& value, int count, int head) const {
        for (int tile = count - 1; tile >= -1; tile--) {
            if (tile >= 0) {
                load(keys, key_map, key_full(key.stage), key_empty(key.stage), key, tile, head);
                key.next();
            }
            if (tile + 1 < count) {
                load(values, value_map, value_full(value.stage), value_empty(value.stage), value, tile + 1, head);
                value.next();
            }
        }
    }

private:
    static __device__ __forceinline__ void load(
        uint32_t first, const CUtensorMap* map, uint32_t full, uint32_t empty, const Ring& ring, int tile, int head) {
        barrier_wait(empty, ring.parity ^ 1);
        barrier_expect(full, kTileBytes);
        load_3d(first + ring.stage * kTileBytes, map, full, 0, tile * kKeys, 2 * head);
    }
};
constexpr int kTileBarriers = 4 * kStages;

// The two rows whose scores a thread holds: accumulators 4j, 4j+1 belong to one row, 4j+2, 4j+3 to the row 8 below.
struct Softmax {
    float maximum[2] = {-INFINITY, -INFINITY};
    float sum[2] = {0.f, 0.f};   // of this thread's columns; the four threads of a row are added at the end
    float rescale[2] = {1.f, 1.f};

    // Turns scores into exponentials, in place; `scale` includes log2(e).
    template <int kScores>
    __device__ __forceinline__ void step(float (&s)[kScores], float scale) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = maximum[r];
#pragma unroll
            for (int i = 2 * r; i < kScores; i += 4) top = fmaxf(top, fmaxf(s[i], s[i + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            rescale[r] = exp2_fast((maximum[r] - top) * scale);
            maximum[r] = top;
            const float shift = top * scale;
            float even = sum[r] * rescale[r], odd = 0.f;
#pragma unroll
            for (int i = 2 * r; i < kScores; i += 4) {
                s[i] = exp2_fast(fmaf(s[i], scale, -shift));
                s[i + 1] = exp2_fast(fmaf(s[i + 1], scale, -shift));
                even += s[i];
                odd += s[i + 1];
            }
            sum[r] = even + odd;
        }
    }

    // Rescales the sums that refer to an older maximum, so that they refer to this one.
    __device__ __forceinline__ void refer(float (&o)[kHeadDim / 2]) const {
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; i++) o[i] *= rescale[(i / 2) % 2];
    }

    // Returns 1 / the sum of a row's exponentials.
    __device__ __forceinline__ float inverse(int r) const {
        float all = sum[r];
        all += __shfl_xor_sync(0xffffffffu, all, 1);
        all += __shfl_xor_sync(0xffffffffu, all, 2);
        return 1.f / all;
    }
};

// Takes the weight from scores of columns from `left` on, which counts from a thread's first column.
template <int kScores>
__device__ __forceinline__ void mask(float (&s)[kScores], int left) {
#pragma unroll
    for (int i = 0; i < kScores; i++)
        if (i / 4 * 8 + i % 2 >= left) s[i] = -INFINITY;
}

// The scores of the first 2 * kScores keys of a tile.
template <int kScores>
__device__ __forceinline__ void multiply_keys(float (&s)[kScores], uint64_t query, uint64_t key) {
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; k++) {
        const uint32_t panel = k / 4, column = (k % 4) * 32;
        mma_bf16(s, query + ((panel * kQueryPanelBytes + column) >> 4), key + ((panel * kPanelBytes + column) >> 4), k != 0);
    }
}

// The product with the first kCount values of a tile.
template <int kCount = kKeys>
__device__ __forceinline__ void multiply_values(
    float (&o)[kHeadDim / 2], const uint32_t (&p)[kKeys / 4], uint64_t value, bool accumulate) {
#pragma unroll
    for (int k = 0; k < kCount / 16; k++)
        mma_bf16_rows(o, p + 4 * k, value + ((k * 16 * kRowBytes) >> 4), accumulate || k != 0);
}

// Packs the exponentials of the first keys of a tile; the others stay as they are.
template <int kScores>
__device__ __forceinline__ void pack(uint32_t (&p)[kKeys / 4], const float (&s)[kScores]) {
#pragma unroll
    for (int i = 0; i < kScores / 2; i++) p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

}  // namespace attention
