// Weighted sums of up to eight tensors, from left to right in f32, each operation rounded, as the reference does it.
// They serve guidance, the samplers' steps and modulations; a sum of one term is a conversion.
#include "rows.cuh"

namespace {

constexpr int kTerms = 8;

struct Term {
    const void* x;
    float factor;
    int is_f32;
};
struct Terms {
    Term terms[kTerms];
};

__device__ __forceinline__ float element(const Term& term, int64_t i) {
    return term.is_f32 ? static_cast<const float*>(term.x)[i]
                       : __bfloat162float(static_cast<const __nv_bfloat16*>(term.x)[i]);
}

__device__ __forceinline__ void store_one(float* to, float x) { *to = x; }
__device__ __forceinline__ void store_one(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }

template <class Output>
__device__ __forceinline__ void combine(const Terms& terms, int count, Output* y, int64_t elements) {
    const int64_t first = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * rows::kVector;
    if (first + rows::kVector > elements) {
        for (int64_t i = first; i < elements; i++) {
            float sum = __fmul_rn(terms.terms[0].factor, element(terms.terms[0], i));
            for (int t = 1; t < count; t++)
                sum = __fadd_rn(sum, __fmul_rn(terms.terms[t].factor, element(terms.terms[t], i)));
            store_one(y + i, sum);
        }
        return;
    }
    float sum[rows::kVector];
#pragma unroll
    for (int t = 0; t < kTerms; t++) {
        if (t >= count) break;
        float x[rows::kVector];
        if (terms.terms[t].is_f32)
            rows::load(x, static_cast<const float*>(terms.terms[t].x) + first);
        else
            rows::load(x, static_cast<const __nv_bfloat16*>(terms.terms[t].x) + first);
#pragma unroll
        for (int i = 0; i < rows::kVector; i++) {
            const float product = __fmul_rn(terms.terms[t].factor, x[i]);
            sum[i] = t == 0 ? product : __fadd_rn(sum[i], product);
        }
    }
    rows::store(y + first, sum);
}

}  // namespace

// y = the sum of factor * x over `count` terms, each [elements]; y may be one of them if it has its type.
// Grid: elements / 2048; 256 threads.
extern "C" __global__ void __launch_bounds__(256) combine_f32(
    const __grid_constant__ Terms terms, int count, float* y, int64_t elements) {
    combine(terms, count, y, elements);
}
extern "C" __global__ void __launch_bounds__(256) combine_bf16(
    const __grid_constant__ Terms terms, int count, __nv_bfloat16* y, int64_t elements) {
    combine(terms, count, y, elements);
}
