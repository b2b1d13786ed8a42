// Prepares V of the 8-bit attention by mma.sync: subtracts the mean of each channel from the bf16 values, quantises
// them to int8 with a scale for each channel, and writes each tile as its image in shared memory.
#include "../any/attention_rows.cuh"
#include "attention_int8.cuh"

using namespace eight_bit;

// v: [keys, heads * 128], mean, scale: [heads * 128] f32 -> quantized: [heads, tiles, 128 channels, 128 places] s8, zero beyond
// the last key. Within 16 keys, place 4c + 2b + a holds key 8b + 2c + a, so the accumulators of Q K^T, as a thread
// holds them, are its part of the left operand of P V. Every other tile is negated: see attention_int8.cuh. Grid: (tiles, heads), 256 threads.
extern "C" __global__ void __launch_bounds__(kThreads) attention_quantize_value(
    const __nv_bfloat16* v, int64_t stride, const float* mean, const float* scale, uint8_t* quantized, int keys) {
    constexpr int kKeys = int8_attention::kKeys, kWords = kKeys / 4;
    constexpr float kBias = 12582912.f;                          // the lowest byte of a number added to it is that number, rounded
    __shared__ uint32_t image[kColumns][kLanes][kWords + 1];     // one more, against bank conflicts
    const int lane = threadIdx.x % kLanes, head = blockIdx.y;
    const int column = head * kHeadDim + lane * kColumns;
    const float sign = blockIdx.x % 2 == 0 ? 1.f : -1.f;
    float center[kColumns], inverse[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; i++) {
        center[i] = mean[column + i];
        inverse[i] = sign / scale[column + i];
    }
#pragma unroll
    for (int word = threadIdx.x / kLanes; word < kWords; word += kStep) {
        const int first = blockIdx.x * kKeys + word / 4 * 16 + word % 4 * 2;
        uint32_t x[4][kColumns];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = first + i / 2 * 8 + i % 2;
            float values[kColumns];
            unpack(values, load_row(v + column, stride, row, keys));
#pragma unroll
            for (int j = 0; j < kColumns; j++)
                x[i][j] = row < keys ? __float_as_uint(fmaf(values[j] - center[j], inverse[j], kBias)) : 0;
        }
#pragma unroll
        for (int j = 0; j < kColumns; j++) image[j][lane][word] = gpu::gather_bytes(x[0][j], x[1][j], x[2][j], x[3][j]);
    }
    __syncthreads();
    auto* to = reinterpret_cast<uint32_t*>(quantized) + (int64_t(head) * gridDim.x + blockIdx.x) * (kHeadDim * kWords);
    for (int i = threadIdx.x; i < kHeadDim * kWords; i += kThreads) {
        const int channel = i / kWords;
        to[i] = image[channel % kColumns][channel / kColumns][i % kWords];
    }
}
