// Attention for Hopper, bf16 in and out: softmax(Q K^T * scale) V over heads of 128, no mask, f32 softmax.
//
// One block owns 128 rows of Q of one head and walks over all keys. One warpgroup copies (one thread of it works);
// two compute 64 rows each and take turns at the tensor cores: while one multiplies, the other takes exponentials.
// Within a warpgroup Q K^T of a tile runs with P V of the one before. (Schedule after FlashAttention-3,
// arXiv 2407.08608.) Tiles of 160 or 176 keys and clusters of two blocks that share tiles were no faster.
#include "attention_bf16.cuh"

using namespace attention;

namespace {

// Offsets from the first 1024-byte boundary of dynamic shared memory.
constexpr uint32_t kKeyOffset = kQueryBytes;
constexpr uint32_t kValueOffset = kKeyOffset + kStages * kTileBytes;
constexpr uint32_t kBarrierOffset = kValueOffset + kStages * kTileBytes;
constexpr uint32_t kSharedBytes = kBarrierOffset + 8 * (1 + kTileBarriers) + 1024;
static_assert(kSharedBytes <= 232448, "a block of Hopper has 227 KiB of shared memory");

}  // namespace

// q: [rows, heads * 128], k, v: [keys, heads * 128], bf16, through maps of [heads * 2][rows][64 columns], boxes of
// [2][128][64]; output: like q, `output_stride` elements a row; scale: includes log2(e).
// Grid: (blocks of 128 rows, heads), 384 threads.
extern "C" __global__ void __launch_bounds__(kThreads, 1) attention_bf16(
    const __grid_constant__ CUtensorMap query_map, const __grid_constant__ CUtensorMap key_map,
    const __grid_constant__ CUtensorMap value_map, __nv_bfloat16* output, int64_t output_stride, int rows, int keys,
    float scale) {
    const uint32_t base = (dynamic_shared() + 1023) & ~1023u;
    const uint32_t query_full = base + kBarrierOffset;
    const Slots slots{base + kKeyOffset, base + kValueOffset, query_full + 8};
    const int warpgroup = uniform(threadIdx.x / kWarpgroup);
    const int thread = threadIdx.x % kWarpgroup;
    const int head = blockIdx.y;
    const int first_row = blockIdx.x * kRows;
    const int tiles = (keys + kKeys - 1) / kKeys;

    if (threadIdx.x == 0) {
        prefetch(&query_map);
        prefetch(&key_map);
        prefetch(&value_map);
        barrier_init(query_full, 1);
        slots.init();
        barrier_init_fence();
    }
    __syncthreads();

    if (warpgroup == 0) {
        release_registers<24>();
        if (thread == 0) {
            barrier_expect(query_full, kQueryBytes);
            load_3d(base, &query_map, query_full, 0, first_row, 2 * head);
            Ring key, value;
            slots.bring(&key_map, &value_map, key, value, tiles, head);
        }
    } else {
        take_registers<240>();
        const int consumer = warpgroup - 1;
        const int turn = 1 + consumer, other_turn = 2 - consumer;
        const uint64_t query = descriptor(base + consumer * 64 * kRowBytes, kGroupBytes, 0);
        const uint64_t key_tiles = descriptor(slots.keys, kGroupBytes, 0);
        const uint64_t value_tiles = descriptor(slots.values, kGroupBytes, kPanelBytes);
        constexpr uint32_t kTileStep = kTileBytes >> 4;

        float s[kKeys / 2];
        float o[kHeadDim / 2];
        uint32_t p[kKeys / 4];
        Softmax softmax;
        Ring key, value;

        if (consumer == 1 && tiles > 1) named_arrive(other_turn, kConsumers * kWarpgroup);

        barrier_wait(query_full, 0);
        barrier_wait(slots.key_full(0), 0);
        pin(s);
        mma_fence();
        multiply_keys(s, query, key_tiles);
        mma_commit();
        mma_wait<0>();
        pin(s);
        if (thread == 0) barrier_arrive(slots.key_empty(0));
        key.next();
        mask(s, keys - (tiles - 1) * kKeys - 2 * (thread % 4));
        softmax.step(s, scale);
        pack(p, s);

        for (int tile = 1; tile < tiles; tile++) {
            barrier_wait(slots.key_full(key.stage), key.parity);
            named_sync(turn, kConsumers * kWarpgroup);
            pin(s);
            mma_fence();
            multiply_keys(s, query, key_tiles + key.stage * kTileStep);
            mma_commit();
            if (tile > 1) softmax.refer(o);
            barrier_wait(slots.value_full(value.stage), value.parity);
            pin(o);
            pin(p);
            mma_fence();
            multiply_values(o, p, value_tiles + value.stage * kTileStep, tile > 1);
            mma_commit();
            if (consumer == 0 || tile + 1 < tiles) named_arrive(other_turn, kConsumers * kWarpgroup);
            mma_wait<1>();
            pin(s);
            if (thread == 0) barrier_arrive(slots.key_empty(key.stage));
            key.next();
            softmax.step(s, scale);
            hold_until_known(softmax.sum[0] + softmax.sum[1], base);
            mma_wait<0>();
            pin(o);
            pin(p);
            if (thread == 0) barrier_arrive(slots.value_empty(value.stage));
            value.next();
            pack(p, s);
        }

        if (tiles > 1) softmax.refer(o);
        barrier_wait(slots.value_full(value.stage), value.parity);
        pin(o);
        pin(p);
        mma_fence();
        multiply_values(o, p, value_tiles + value.stage * kTileStep, tiles > 1);
        mma_commit();
        mma_wait<0>();
        pin(o);

#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float inverse = softmax.inverse(r);
            const int row = first_row + consumer * 64 + (thread / 32) * 16 + (thread % 32) / 4 + 8 * r;
            if (row < rows) {
                uint32_t* to = reinterpret_cast<uint32_t*>(output + row * output_stride + head * kHeadDim) + thread % 4;
#pragma unroll
                for (int j = 0; j < kHeadDim / 8; j++)
                    to[4 * j] = pack_bf16(o[4 * j + 2 * r] * inverse, o[4 * j + 2 * r + 1] * inverse);
            }
        }
    }
}
