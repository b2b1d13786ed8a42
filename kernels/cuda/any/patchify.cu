// Turns latents into tokens, in f32: a token is a patch of 2 x 2 pixels.
#include <cstdint>

// x: [x_channels, frames, height, width], y: [y_channels, ..] (seen as more channels, may be null) f32 -> tokens:
// [frames * height/2 * width/2, 4 (x_channels + y_channels)] f32, features in the order channel, row, column.
// Grid: tokens; 256 threads.
extern "C" __global__ void __launch_bounds__(256) patchify(
    const float* x, int x_channels, const float* y, int y_channels, float* tokens, int64_t stride, int frames,
    int height, int width) {
    const int across = width / 2, down = height / 2;
    const int token = blockIdx.x, frame = token / (down * across);
    const int row = token / across % down, column = token % across;
    const int64_t volume = int64_t(frames) * height * width;
    for (int i = threadIdx.x; i < 4 * (x_channels + y_channels); i += 256) {
        const int channel = i / 4;
        const float* from = channel < x_channels ? x + channel * volume : y + (channel - x_channels) * volume;
        tokens[token * stride + i] =
            from[(int64_t(frame) * height + 2 * row + i / 2 % 2) * width + 2 * column + i % 2];
    }
}
