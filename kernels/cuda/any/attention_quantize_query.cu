// Prepares Q of the 8-bit attention: rotates the bf16 rows and quantises them to int8 with a scale for each row and
// head.
#include "attention_rows.cuh"

using namespace eight_bit;

namespace {

constexpr int kRows = 96;  // of a block
constexpr int kRowThreads = 4 * kRows;

}  // namespace

// q: [rows, heads * 128] -> quantized: the same shape, dense; scale: [heads, rows] f32, kLogit included, so that scores
// are exponents of 2. Grid: (blocks of 96 rows, heads), 384 threads.
extern "C" __global__ void __launch_bounds__(kRowThreads) attention_quantize_query(
    const __nv_bfloat16* q, int64_t stride, uint8_t* quantized, float* scale, int rows) {
    const int lane = threadIdx.x % 4, head = blockIdx.y;
    const int row = blockIdx.x * kRows + threadIdx.x / 4;
    const int column = head * kHeadDim + lane * kColumns;
    float x[kShare];
    load_share(x, q + column, stride, row, rows);
    rotate(x);
    float top = greatest(x);
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    if (row < rows) {
        store_s8(quantized + row * int64_t(gridDim.y) * kHeadDim + column, x, 127.f / top);
        if (lane == 0) scale[int64_t(head) * rows + row] = top * (kLogit / 127.f);
    }
}
