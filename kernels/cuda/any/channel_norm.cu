// The VAE's norm: each voxel of a channels-last volume divided by its length over the channels, times sqrt(channels) and
// gamma; then SiLU, if asked for.
#include "epilogue.cuh"
#include "rows.cuh"

namespace {

constexpr int kMost = 3;  // pieces of 8 channels of a thread

// kLanes threads take a voxel, piece after piece in turns.
template <int kLanes>
__device__ __forceinline__ void channel_norm(
    const __nv_bfloat16* x, const float* gamma, __nv_bfloat16* y, int64_t voxels, int channels, int silu) {
    const int64_t voxel = (int64_t(blockIdx.x) * 256 + threadIdx.x) / kLanes;
    const int lane = threadIdx.x % kLanes, pieces = channels / rows::kVector;
    const bool here = voxel < voxels;
    float value[kMost][rows::kVector];
    float square = 0.f;
#pragma unroll
    for (int i = 0; i < kMost; i++) {
        const int piece = i * kLanes + lane;
        if (!here || piece >= pieces) continue;
        rows::load(value[i], x + voxel * channels + piece * rows::kVector);
#pragma unroll
        for (int j = 0; j < rows::kVector; j++) square = fmaf(value[i][j], value[i][j], square);
    }
#pragma unroll
    for (int i = kLanes / 2; i > 0; i /= 2) square += __shfl_xor_sync(0xffffffffu, square, i);
    const float factor = sqrtf(float(channels)) / fmaxf(sqrtf(square), 1e-12f);
#pragma unroll
    for (int i = 0; i < kMost; i++) {
        const int piece = i * kLanes + lane;
        if (!here || piece >= pieces) continue;
        float g[rows::kVector];
        rows::load(g, gamma + piece * rows::kVector);
#pragma unroll
        for (int j = 0; j < rows::kVector; j++) {
            float z = value[i][j] * factor * g[j];
            value[i][j] = silu ? z * gemm::sigmoid(z) : z;
        }
        rows::store(y + voxel * channels + piece * rows::kVector, value[i]);
    }
}

}  // namespace

// x, y: [voxels, channels] bf16, y may be x; gamma: [channels] f32; channels up to 24 times the number in the name.
// Grid: voxels * number / 256; 256 threads.
#define CHANNEL_NORM(LANES)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256) channel_norm_##LANES(                                        \
        const __nv_bfloat16* x, const float* gamma, __nv_bfloat16* y, int64_t voxels, int channels, int silu) {    \
        channel_norm<LANES>(x, gamma, y, voxels, channels, silu);                                                  \
    }
CHANNEL_NORM(4)
CHANNEL_NORM(8)
CHANNEL_NORM(16)
CHANNEL_NORM(32)
