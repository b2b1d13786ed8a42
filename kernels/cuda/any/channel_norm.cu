// The VAE's norm: each voxel of a channels-last volume is divided by its length over the channels and multiplied by
// sqrt(channels) and gamma; SiLU follows if asked for.
#include "epilogue.cuh"
#include "rows.cuh"

namespace {

constexpr int kMost = 3;  // pieces of 8 channels of a thread

// kLanes threads share a voxel and take its pieces in turns.
template <int kLanes, class Element>
__device__ __forceinline__ void channel_norm(
    const Element* x, const float* gamma, Element* y, int64_t voxels, int channels, int silu) {
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

// x, y: [voxels, channels] bf16 or f32, y may be x; gamma: [channels] f32; channels up to 24 times the number in the name.
// Grid: voxels * number / 256; 256 threads.
#define CHANNEL_NORM(NAME, LANES, ELEMENT)                                                                    \
    extern "C" __global__ void __launch_bounds__(256)                                                         \
        NAME(const ELEMENT* x, const float* gamma, ELEMENT* y, int64_t voxels, int channels, int silu) {      \
        channel_norm<LANES>(x, gamma, y, voxels, channels, silu);                                             \
    }
CHANNEL_NORM(channel_norm_4, 4, __nv_bfloat16)
CHANNEL_NORM(channel_norm_8, 8, __nv_bfloat16)
CHANNEL_NORM(channel_norm_16, 16, __nv_bfloat16)
CHANNEL_NORM(channel_norm_32, 32, __nv_bfloat16)
CHANNEL_NORM(channel_norm_4_f32, 4, float)
CHANNEL_NORM(channel_norm_8_f32, 8, float)
CHANNEL_NORM(channel_norm_16_f32, 16, float)
CHANNEL_NORM(channel_norm_32_f32, 32, float)
