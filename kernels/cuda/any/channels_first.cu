// Moves a volume's channels from the innermost to the outermost axis.
#include "rows.cuh"

namespace {

template <class Input>
__device__ __forceinline__ void channels_first(
    const Input* x, int64_t stride, float* y, int channels, int64_t voxels, int64_t plane) {
    const int64_t voxel = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (voxel >= voxels) return;
    const int first = blockIdx.y * rows::kVector;
    float value[rows::kVector];
    rows::load(value, x + voxel * stride + first);
#pragma unroll
    for (int i = 0; i < rows::kVector; i++)
        if (first + i < channels) y[(first + i) * plane + voxel] = value[i];
}

}  // namespace

// x: [voxels, stride] -> y: [channels, voxels] f32, channels `plane` elements apart. stride is a multiple of 8 and at
// least as much as the channels. Grid: (voxels / 256, channels / 8); 256 threads.
extern "C" __global__ void __launch_bounds__(256) channels_first_bf16(
    const __nv_bfloat16* x, int64_t stride, float* y, int channels, int64_t voxels, int64_t plane) {
    channels_first(x, stride, y, channels, voxels, plane);
}
extern "C" __global__ void __launch_bounds__(256) channels_first_f32(
    const float* x, int64_t stride, float* y, int channels, int64_t voxels, int64_t plane) {
    channels_first(x, stride, y, channels, voxels, plane);
}
