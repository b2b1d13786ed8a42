// Column statistics of the 8-bit attention, first half, with keys before their norm. The mean that is taken from the
// keys need not be exact, since softmax does not see what is taken from all of them: some of the keys give it.
#include "../any/attention_statistics.cuh"
#include "attention_raw.cuh"

using namespace eight_bit;

namespace {

struct Keys {
    const __nv_bfloat16* k;
    int64_t stride;
    RawNorm norm;
    int every;

    __device__ __forceinline__ bool counts(int row) const { return row % every == 0; }
    __device__ __forceinline__ void load(float (&key)[kColumns], int row, int column) const {
        const int64_t pair = int64_t(row) * kPairs + column % kHeadDim / 2;
        const float4 cosine = gpu::load_global(norm.cosines + pair), sine = gpu::load_global(norm.sines + pair);
        unpack(key, load_row(k + column, stride, row, row + 1));
        norm_and_rotate_pairs(key, norm.inverse(row, gridDim.x * kHeadDim), norm.weight + column, cosine, sine);
    }
};

}  // namespace

// k, v: [rows, heads * 128] bf16 -> partial: as of attention_statistics.cu, the sums of k over each row whose number is a
// multiple of `every`, after the norm and the rotary embedding. Grid: (heads, chunks), 256 threads.
extern "C" __global__ void __launch_bounds__(kThreads) attention_statistics_raw(
    const __nv_bfloat16* k, int64_t key_stride, const __grid_constant__ RawNorm norm, int every, const __nv_bfloat16* v,
    int64_t value_stride, float* partial, int rows, int chunk) {
    statistics(Keys{k, key_stride, norm, every}, v, value_stride, partial, rows, chunk);
}
