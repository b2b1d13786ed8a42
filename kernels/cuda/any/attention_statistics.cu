// Column statistics of K and V of the 8-bit attention, first half.
#include "attention_statistics.cuh"

using namespace eight_bit;

namespace {

struct Keys {
    const __nv_bfloat16* k;
    int64_t stride;
    int rows;

    __device__ __forceinline__ static bool counts(int) { return true; }
    __device__ __forceinline__ void load(float (&key)[kColumns], int row, int column) const {
        unpack(key, load_row(k + column, stride, row, rows));
    }
};

}  // namespace

// k, v: [rows, heads * 128] bf16 -> partial: [chunks, 4, heads * 128] f32: the sum of k, then sum, least and greatest of
// v, over `chunk` rows. Grid: (heads, chunks), 256 threads.
extern "C" __global__ void __launch_bounds__(kThreads) attention_statistics(
    const __nv_bfloat16* k, int64_t key_stride, const __nv_bfloat16* v, int64_t value_stride, float* partial, int rows,
    int chunk) {
    statistics(Keys{k, key_stride, rows}, v, value_stride, partial, rows, chunk);
}
