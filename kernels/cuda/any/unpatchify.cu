// Turns tokens into a latent: the inverse of patchify.cu but for the order of features.
#include <cstdint>

// tokens: [frames * height/2 * width/2, 4 channels] f32, features in the order row, column, channel -> x: [channels,
// frames, height, width] f32. Grid: (width / 256, frames * height, channels); 256 threads.
extern "C" __global__ void __launch_bounds__(256) unpatchify(
    const float* tokens, int64_t stride, float* x, int frames, int height, int width) {
    const int column = blockIdx.x * 256 + threadIdx.x, line = blockIdx.y, channel = blockIdx.z, channels = gridDim.z;
    if (column >= width) return;
    const int frame = line / height, row = line % height;
    const int64_t token = (int64_t(frame) * (height / 2) + row / 2) * (width / 2) + column / 2;
    x[(int64_t(channel) * frames * height + line) * width + column] =
        tokens[token * stride + (row % 2 * 2 + column % 2) * channels + channel];
}
