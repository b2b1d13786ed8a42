// The overlap of two tiles: one fades into the other.
#include <cstdint>

// after[o][i][n] = before[o][i][n] (1 - i / extent) + after[o][i][n] i / extent, f32. Both have `_step` elements from
// one o to the next and `inner` from one i to the next. Grid: (inner / 256, extent, outer); 256 threads.
extern "C" __global__ void __launch_bounds__(256) fade(
    const float* before, int64_t before_step, float* after, int64_t after_step, int64_t inner) {
    const int64_t n = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (n >= inner) return;
    const double share = double(blockIdx.y) / double(gridDim.y);
    const int64_t at = blockIdx.y * inner + n;
    float* to = after + blockIdx.z * after_step + at;
    *to = __fadd_rn(__fmul_rn(before[blockIdx.z * before_step + at], float(1.0 - share)), __fmul_rn(*to, float(share)));
}
