// Prepares V of the 8-bit attention: subtracts the mean of each channel from the bf16 values, quantises them to e4m3
// with a scale for each channel, and writes each tile as its image in shared memory.
#include "attention_8bit.cuh"

using namespace eight_bit;

// v: [keys, heads * 128], mean, scale: [heads * 128] f32 -> quantized: [heads, tiles, 128 * 96] e4m3, zero beyond the
// last key. An image is [16 groups of channels][6 groups of places][8 channels][16 places]. Within 32 keys, place
// 16h + 4c + 2b + a holds key 16h + 8b + 2c + a, so the accumulators of Q K^T, as a thread holds them, are its part of
// the left operand of P V. residual: [tiles, heads * 128] f32: what rounding has taken from the sum of each channel, in
// units of its scale. Grid: (tiles, heads), 256 threads.
extern "C" __global__ void __launch_bounds__(kThreads) attention_quantize_value(
    const __nv_bfloat16* v, int64_t stride, const float* mean, const float* scale, uint8_t* quantized,
    float* residual, int keys) {
    constexpr int kGroup = 8 * kKeys / 4;                        // words of 8 channels
    __shared__ uint32_t image[kHeadDim / 8][kGroup + 2];         // two more, against bank conflicts
    const int lane = threadIdx.x % kLanes, head = blockIdx.y;
    const int column = head * kHeadDim + lane * kColumns;
    __shared__ float lost[kStep][kHeadDim];
    float center[kColumns], inverse[kColumns], taken[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; i++) {
        center[i] = mean[column + i];
        inverse[i] = 1.f / scale[column + i];
        taken[i] = 0.f;
    }
    for (int word = threadIdx.x / kLanes; word < kKeys / 4; word += kStep) {
        const int first = blockIdx.x * kKeys + word / 8 * 32 + word / 4 % 2 * 16 + word % 4 * 2;
        float x[4][kColumns];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = first + i / 2 * 8 + i % 2;
            unpack(x[i], load_row(v + column, stride, row, keys));
#pragma unroll
            for (int j = 0; j < kColumns; j++) x[i][j] = row < keys ? (x[i][j] - center[j]) * inverse[j] : 0.f;
        }
#pragma unroll
        for (int j = 0; j < kColumns; j++) {
            const uint32_t packed = gpu::pack_e4m3(x[0][j], x[1][j], x[2][j], x[3][j]);
            image[lane][word / 4 * 32 + j * 4 + word % 4] = packed;
            float rounded[4];
            gpu::unpack_e4m3(rounded, packed);
#pragma unroll
            for (int i = 0; i < 4; i++) taken[j] += x[i][j] - rounded[i];
        }
    }
#pragma unroll
    for (int j = 0; j < kColumns; j++) lost[threadIdx.x / kLanes][lane * kColumns + j] = taken[j];
    __syncthreads();
    if (threadIdx.x < kHeadDim) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < kStep; i++) sum += lost[i][threadIdx.x];
        residual[(int64_t(blockIdx.x) * gridDim.y + head) * kHeadDim + threadIdx.x] = sum;
    }
    uint32_t* to = reinterpret_cast<uint32_t*>(quantized) + (int64_t(head) * gridDim.x + blockIdx.x) * (kHeadDim * kKeys / 4);
    for (int i = threadIdx.x; i < kHeadDim * kKeys / 4; i += kThreads) to[i] = image[i / kGroup][i % kGroup];
}
