// Moves a volume's channels from the outermost to the innermost axis, filled up with zeros.
#include "rows.cuh"

// x: [channels, voxels] f32 -> y: [voxels, stride] bf16. Grid: (voxels / 256, stride / 8); 256 threads.
extern "C" __global__ void __launch_bounds__(256) channels_last(
    const float* x, int channels, __nv_bfloat16* y, int stride, int64_t voxels) {
    const int64_t voxel = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (voxel >= voxels) return;
    float value[rows::kVector];
#pragma unroll
    for (int i = 0; i < rows::kVector; i++) {
        const int channel = blockIdx.y * rows::kVector + i;
        value[i] = channel < channels ? x[channel * voxels + voxel] : 0.f;
    }
    rows::store(y + voxel * stride + blockIdx.y * rows::kVector, value);
}
