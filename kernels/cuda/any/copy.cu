// Copies between any two layouts, with conversion, for what no other kernel does along with its work.
#include <cuda_bf16.h>

#include <instructions/base.cuh>

namespace {

struct Layout {
    int64_t extents[4];
    int64_t from[4];  // elements from one to the next along each axis
    int64_t to[4];
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void put(float* to, float x) { *to = x; }
__device__ __forceinline__ void put(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

template <class Input, class Output>
__device__ __forceinline__ void copy(const Input* x, Output* y, const Layout& layout, int64_t elements) {
    int64_t rest = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (rest >= elements) return;
    int64_t from = 0, to = 0;
#pragma unroll
    for (int axis = 3; axis >= 0; axis--) {
        const int64_t at = rest % layout.extents[axis];
        rest /= layout.extents[axis];
        from += at * layout.from[axis];
        to += at * layout.to[axis];
    }
    put(y + to, widen(x[from]));
}

}  // namespace

// Grid: elements / 256; 256 threads.
#define COPY(NAME, INPUT, OUTPUT)                                                  \
    extern "C" __global__ void __launch_bounds__(256) NAME(                        \
        const INPUT* x, OUTPUT* y, const __grid_constant__ Layout layout, int64_t elements) { \
        copy(x, y, layout, elements);                                              \
    }
COPY(copy_bf16_bf16, __nv_bfloat16, __nv_bfloat16)
COPY(copy_bf16_f32, __nv_bfloat16, float)
COPY(copy_f32_bf16, float, __nv_bfloat16)
COPY(copy_f32_f32, float, float)
