// Attention of many queries to few keys for Hopper, bf16: over one set of keys, or over two with a softmax each, whose
// results are added up (the text's and the picture's). Heads of 128, no mask, f32 softmax.
//
// The schedule within a set is that of attention_bf16.cu. With few tiles of keys a block's start and end would take as
// long as the rest, so blocks are persistent: the next queries and keys arrive while one warpgroup still multiplies
// and the other one writes. Outputs go through shared memory, so that rows are written whole.
//
// A prompt is followed by hundreds of rows that are all alike. They come as one key, whose weight is their number.
#include "attention_bf16.cuh"

using namespace attention;

namespace {

// Offsets from the first 1024-byte boundary of dynamic shared memory.
constexpr uint32_t kKeyOffset = 2 * kQueryBytes;
constexpr uint32_t kValueOffset = kKeyOffset + kStages * kTileBytes;
constexpr uint32_t kOutputOffset = kValueOffset + kStages * kTileBytes;
constexpr uint32_t kWarpBytes = 16 * kHeadDim * 2;  // of a warp's 16 rows
constexpr uint32_t kBarrierOffset = kOutputOffset + kConsumers * 4 * kWarpBytes;
constexpr uint32_t kSharedBytes = kBarrierOffset + 8 * (4 + kTileBarriers) + 1024;
static_assert(kSharedBytes <= 232448, "a block of Hopper has 227 KiB of shared memory");

struct Barriers {
    uint32_t base;
    __device__ uint32_t query_full(int stage) const { return base + 8 * stage; }
    __device__ uint32_t query_empty(int stage) const { return base + 8 * (2 + stage); }
};

struct Maps {
    CUtensorMap query;
    CUtensorMap keys[2];
    CUtensorMap values[2];
};

// Keys of a last tile of at most 16 (the picture has 257) or 96 (most prompts have fewer) are multiplied as so many, not
// as 128.
constexpr int kFew = 16, kSome = 96;

// Starts a product with the first kCount values of a tile.
template <int kCount>
__device__ __forceinline__ void start_values(
    float (&o)[kHeadDim / 2], uint32_t (&p)[kKeys / 4], uint64_t value, bool accumulate) {
    pin(o);
    pin(p);
    mma_fence();
    multiply_values<kCount>(o, p, value, accumulate);
    mma_commit();
}

// The last tile of a set's keys, which is taken first.
struct LastTile {
    int keys;     // that are there
    float extra;  // what is added to the scores of the last one, which counts several times

    // Computes the exponentials of the first kCount scores of `p`, in pairs. The others stay as they are.
    template <int kCount>
    __device__ __forceinline__ void scores(
        uint32_t (&p)[kKeys / 4], Softmax& softmax, uint64_t query, uint64_t key, int thread, float scale) const {
        float s[kCount / 2];
        pin(s);
        mma_fence();
        multiply_keys(s, query, key);
        mma_commit();
        mma_wait<0>();
        pin(s);
        const int left = keys - 2 * (thread % 4);
#pragma unroll
        for (int i = 0; i < kCount / 2; i++)
            if (i / 4 * 8 + i % 2 + 1 == left) s[i] += extra;
        mask(s, left);
        softmax.step(s, scale);
        pack(p, s);
    }

    // Computes the exponentials.
    __device__ __forceinline__ void start(
        uint32_t (&p)[kKeys / 4], Softmax& softmax, uint64_t query, uint64_t key, int thread, float scale) const {
        if (keys <= kFew)
            scores<kFew>(p, softmax, query, key, thread, scale);
        else if (keys <= kSome)
            scores<kSome>(p, softmax, query, key, thread, scale);
        else
            scores<kKeys>(p, softmax, query, key, thread, scale);
    }

    // Starts the product of them and the values.
    __device__ __forceinline__ void finish(float (&o)[kHeadDim / 2], uint32_t (&p)[kKeys / 4], uint64_t value) const {
        if (keys <= kFew)
            start_values<kFew>(o, p, value, false);
        else if (keys <= kSome)
            start_values<kSome>(o, p, value, false);
        else
            start_values<kKeys>(o, p, value, false);
    }
};

__device__ __forceinline__ float low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ uint32_t add_pairs(uint32_t a, uint32_t b) {
    return pack_bf16(low(a) + low(b), high(a) + high(b));
}

}  // namespace

// Maps: as attention_bf16's, of Q and of each set's K and V. output: [rows, heads * 128], `output_stride` elements a row;
// residual: a matrix like output that is added, or null; keys1: 0 for one set; extra0, extra1: log2 of how many times
// the last key of a set counts, over `scale`; scale: includes log2(e). Works through heads * blocks of 128 rows, of which
// each block takes as many, one after the other. Grid: up to heads * blocks; 384 threads.
extern "C" __global__ void __launch_bounds__(kThreads, 1) cross_attention_bf16(
    const __grid_constant__ Maps maps, __nv_bfloat16* output, int64_t output_stride, const __nv_bfloat16* residual,
    int64_t residual_stride, int rows, int heads, int keys0, int keys1, float extra0, float extra1, float scale) {
    const uint32_t base = (dynamic_shared() + 1023) & ~1023u;
    const Barriers barriers{base + kBarrierOffset};
    const Slots slots{base + kKeyOffset, base + kValueOffset, base + kBarrierOffset + 8 * 4};
    const int warpgroup = uniform(threadIdx.x / kWarpgroup);
    const int thread = threadIdx.x % kWarpgroup;
    const int blocks = (rows + kRows - 1) / kRows;
    const int64_t units = int64_t(heads) * blocks;
    const int first_unit = int(units * blockIdx.x / gridDim.x), last_unit = int(units * (blockIdx.x + 1) / gridDim.x);
    const int sets = keys1 > 0 ? 2 : 1;

    if (threadIdx.x == 0) {
        prefetch(&maps.query);
        for (int set = 0; set < sets; set++) {
            prefetch(&maps.keys[set]);
            prefetch(&maps.values[set]);
        }
        for (int stage = 0; stage < 2; stage++) {
            barrier_init(barriers.query_full(stage), 1);
            barrier_init(barriers.query_empty(stage), kConsumers);
        }
        slots.init();
        barrier_init_fence();
    }
    __syncthreads();

    if (warpgroup == 0) {
        release_registers<24>();
        if (thread == 0) {
            Ring query, key, value;
            for (int unit = first_unit; unit < last_unit; unit++) {
                const int head = unit / blocks, first_row = (unit - head * blocks) * kRows;
                barrier_wait(barriers.query_empty(query.stage), query.parity ^ 1);
                barrier_expect(barriers.query_full(query.stage), kQueryBytes);
                load_3d(base + query.stage * kQueryBytes, &maps.query, barriers.query_full(query.stage), 0, first_row,
                        2 * head);
                query.next();
                for (int set = 0; set < sets; set++) {
                    const int tiles = ((set == 0 ? keys0 : keys1) + kKeys - 1) / kKeys;
                    slots.bring(&maps.keys[set], &maps.values[set], key, value, tiles, head);
                }
            }
        }
    } else {
        take_registers<240>();
        const int consumer = warpgroup - 1;
        const int turn = 1 + consumer, other_turn = 2 - consumer;
        const int warp = thread / 32, lane = thread % 32;
        const uint64_t queries = descriptor(base + consumer * 64 * kRowBytes, kGroupBytes, 0);
        const uint64_t key_tiles = descriptor(slots.keys, kGroupBytes, 0);
        const uint64_t value_tiles = descriptor(slots.values, kGroupBytes, kPanelBytes);
        const uint32_t mine = base + kOutputOffset + (consumer * 4 + warp) * kWarpBytes;
        constexpr uint32_t kTileStep = kTileBytes >> 4;

        Ring query, key, value;
        int turns = (last_unit - first_unit) * ((keys0 + kKeys - 1) / kKeys - 1 + (sets == 2 ? (keys1 + kKeys - 1) / kKeys - 1 : 0));
        if (consumer == 1 && turns > 0) named_arrive(other_turn, kConsumers * kWarpgroup);

        for (int unit = first_unit; unit < last_unit; unit++) {
            const int head = unit / blocks, first_row = (unit - head * blocks) * kRows;
            const uint64_t q = queries + query.stage * (kQueryBytes >> 4);
            float o[kHeadDim / 2];
            barrier_wait(barriers.query_full(query.stage), query.parity);
            for (int set = 0; set < sets; set++) {
                const int keys = set == 0 ? keys0 : keys1;
                const int tiles = (keys + kKeys - 1) / kKeys;
                const LastTile last{keys - (tiles - 1) * kKeys, set == 0 ? extra0 : extra1};
                uint32_t p[kKeys / 4];
                Softmax softmax;

                barrier_wait(slots.key_full(key.stage), key.parity);
                last.start(p, softmax, q, key_tiles + key.stage * kTileStep, thread, scale);
                if (thread == 0) barrier_arrive(slots.key_empty(key.stage));
                key.next();

                for (int tile = 1; tile < tiles; tile++) {
                    float s[kKeys / 2];
                    barrier_wait(slots.key_full(key.stage), key.parity);
                    named_sync(turn, kConsumers * kWarpgroup);
                    pin(s);
                    mma_fence();
                    multiply_keys(s, q, key_tiles + key.stage * kTileStep);
                    mma_commit();
                    if (tile > 1) softmax.refer(o);
                    barrier_wait(slots.value_full(value.stage), value.parity);
                    if (tile > 1)
                        start_values<kKeys>(o, p, value_tiles + value.stage * kTileStep, true);
                    else
                        last.finish(o, p, value_tiles + value.stage * kTileStep);
                    turns--;
                    if (consumer == 0 || turns > 0) named_arrive(other_turn, kConsumers * kWarpgroup);
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

                // All products with these queries are done.
                if (set + 1 == sets) {
                    if (thread == 0) barrier_arrive(barriers.query_empty(query.stage));
                    query.next();
                }
                if (tiles > 1) softmax.refer(o);
                barrier_wait(slots.value_full(value.stage), value.parity);
                if (tiles > 1)
                    start_values<kKeys>(o, p, value_tiles + value.stage * kTileStep, true);
                else
                    last.finish(o, p, value_tiles + value.stage * kTileStep);
                mma_wait<0>();
                pin(o);
                if (thread == 0) barrier_arrive(slots.value_empty(value.stage));
                value.next();

                const float inverse[2] = {softmax.inverse(0), softmax.inverse(1)};
#pragma unroll
                for (int i = 0; i < kHeadDim / 2; i++) o[i] *= inverse[(i / 2) % 2];
                // The result of the first of two sets waits in shared memory until its own thread reads it again.
                if (set + 1 < sets) {
#pragma unroll
                    for (int i = 0; i < kHeadDim / 4; i++)
                        store_shared(mine + (i * 32 + lane) * 4, pack_bf16(o[2 * i], o[2 * i + 1]));
                } else if (set == 1) {
#pragma unroll
                    for (int i = 0; i < kHeadDim / 4; i++) {
                        const uint32_t pair = load_shared_word(mine + (i * 32 + lane) * 4);
                        o[2 * i] += low(pair);
                        o[2 * i + 1] += high(pair);
                    }
                }
            }

            __syncwarp();
#pragma unroll
            for (int j = 0; j < kHeadDim / 8; j++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int row = lane / 4 + 8 * r;
                    // 16-byte units of a row trade places, so that neither writing nor reading meets a bank twice.
                    store_shared(mine + row * kHeadDim * 2 + (j ^ (row & 7)) * 16 + lane % 4 * 4,
                                 pack_bf16(o[4 * j + 2 * r], o[4 * j + 2 * r + 1]));
                }
            __syncwarp();
#pragma unroll
            for (int pass = 0; pass < 8; pass++) {
                const int at = 2 * pass + lane / 16, unit16 = lane % 16;
                uint4 x = load_shared_words(mine + at * kHeadDim * 2 + (unit16 ^ (at & 7)) * 16);
                const int row = first_row + consumer * 64 + warp * 16 + at;
                if (row >= rows) continue;
                const int column = head * kHeadDim + unit16 * 8;
                if (residual != nullptr) {
                    const uint4 y = *reinterpret_cast<const uint4*>(residual + row * residual_stride + column);
                    x = make_uint4(add_pairs(x.x, y.x), add_pairs(x.y, y.y), add_pairs(x.z, y.z), add_pairs(x.w, y.w));
                }
                *reinterpret_cast<uint4*>(output + row * output_stride + column) = x;
            }
            __syncwarp();
        }
    }
}
