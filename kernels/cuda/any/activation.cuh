// Activations, as products and the quantisation of rows apply them.
#pragma once

#include <instructions/base.cuh>

namespace gemm {

using namespace gpu;

// The activations, as the launcher numbers them.
enum Activation { kNone = 0, kSilu = 1, kGeluTanh = 2, kGeluErf = 3 };

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.f, 1.f + exp2_fast(-1.4426950408889634f * x)); }

// Computes x times the sigmoid of y; 0 for y far below 0, where the quotient of __fdividef is 0 too.
template <int kCount>
__device__ __forceinline__ void activate(float (&x)[kCount][4], int activation) {
    if (activation == kNone) return;
    if (activation == kGeluErf) {
#pragma unroll
        for (int p = 0; p < kCount; p++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[p][i] = 0.5f * x[p][i] * (1.f + erff(x[p][i] * 0.7071067811865476f));
        return;
    }
    // gelu(x) = x (1 + tanh u) / 2 = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3): a cubic of x, as SiLU's.
    const float linear = activation == kGeluTanh ? 1.5957691216057308f : 1.f;
    const float cubic = activation == kGeluTanh ? 0.07135481282052874f : 0.f;
#pragma unroll
    for (int p = 0; p < kCount; p++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[p][i] *= sigmoid(x[p][i] * fmaf(x[p][i] * x[p][i], cubic, linear));
}

}  // namespace gemm
