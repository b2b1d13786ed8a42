// Measures on an H200 what share of the tensor cores' peak the schedules of the kernels by mma.sync would reach on a
// GeForce card of compute capability 8.9.
//
// A product of 16 x 8 x 32 holds a scheduler's tensor core for 16 clocks on 8.9, for some 6 on an H200. The kernels'
// own sources are compiled with each product issued ISSUES times (include/instructions/base.cuh), which takes 6, 12 or
// 18 clocks; between the last two lies what 16 would be. Schedulers, registers, shared memory and special functions are
// alike per clock; the L2 cache is not. Clocks are counted on each multiprocessor, so that its frequency does not
// matter. A product of bf16, 16 x 8 x 16, holds a tensor core for 32 clocks on 8.9 and for some 6 on an H200: five
// issues are 30. -DPACK_BY_ADDING rounds P as cards older than 8.6 must.
//
//   for i in 1 2 3 5; do nvcc -std=c++17 -O3 -arch=sm_90 -DISSUES=$i -I kernels/bench/include -I kernels/cuda \
//       -o padded$i kernels/bench/padded.cu; done
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cuda_runtime.h>

#include "../cuda/sm80/attention_bf16.cuh"
#include "../cuda/sm80/attention_int8.cuh"
#include "../cuda/sm80/gemm_int8.cuh"

namespace {

struct Clocks {
    unsigned long long start, end;
};

__device__ __forceinline__ unsigned multiprocessor() {
    unsigned number;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(number));
    return number;
}
__device__ __forceinline__ void begin(Clocks* clocks) {
    gpu::padding_begin();
    if (threadIdx.x == 0) atomicMin(&clocks[multiprocessor()].start, (unsigned long long)clock64());
}
__device__ __forceinline__ void end(Clocks* clocks) {
    gpu::padding_end();
    __syncthreads();
    if (threadIdx.x == 0) atomicMax(&clocks[multiprocessor()].end, (unsigned long long)clock64());
}

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    product(const __grid_constant__ int8::Operands operands, const __grid_constant__ gemm::Epilogue epilogue, Clocks* clocks) {
    begin(clocks);
    int8::run<Tile, gemm::kPlain, __nv_bfloat16>(operands, epilogue);
    end(clocks);
}

__global__ void __launch_bounds__(int8_attention::kThreads)
    attention(const __grid_constant__ int8_attention::Arguments arguments, Clocks* clocks) {
    begin(clocks);
    int8_attention::run(arguments);
    end(clocks);
}

__global__ void __launch_bounds__(attention_bf16::kThreads, 1)
    exact_attention(const __grid_constant__ attention_bf16::Arguments arguments, Clocks* clocks) {
    begin(clocks);
    attention_bf16::run(arguments);
    end(clocks);
}

// Issues products alone, with eight sums for each warp.
__global__ void __launch_bounds__(256) peak(int rounds, uint32_t seed, int* never, Clocks* clocks) {
    begin(clocks);
    int sum[8][4] = {};
    const uint32_t a[4] = {seed + threadIdx.x, seed * 3, seed * 5, seed * 7};
    for (int i = 0; i < rounds; i++)
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int c[4] = {sum[j][0], sum[j][1], sum[j][2], sum[j][3]};
            gpu::multiply_s8(sum[j], a, seed * 11, seed * 13, c);
        }
    int all = 0;
    for (auto& s : sum)
        for (int x : s) all ^= x;
    if (all == 0x12345678) *never = all;
    end(clocks);
}

// Issues products from eight warps, and `kRatio` multiply-adds for each product from four more, to see whether both can
// be issued without one waiting for the other.
template <int kRatio>
__global__ void __launch_bounds__(384) beside(int rounds, uint32_t seed, int* never, Clocks* clocks) {
    begin(clocks);
    if (threadIdx.x < 256) {
        int sum[8][4] = {};
        const uint32_t a[4] = {seed + threadIdx.x, seed * 3, seed * 5, seed * 7};
        for (int i = 0; i < rounds; i++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int c[4] = {sum[j][0], sum[j][1], sum[j][2], sum[j][3]};
                gpu::multiply_s8(sum[j], a, seed * 11, seed * 13, c);
            }
        int all = 0;
        for (auto& s : sum)
            for (int x : s) all ^= x;
        if (all == 0x12345678) *never = all;
    } else {
        float x[8];
        for (int j = 0; j < 8; j++) x[j] = 1e-3f * float(threadIdx.x + j);
        const float factor = 1e-9f * float(seed), summand = 1e-9f * float(threadIdx.x);
        for (int i = 0; i < rounds; i++)
#pragma unroll
            for (int j = 0; j < 16 * kRatio; j++)
                asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+f"(x[j % 8]) : "f"(factor), "f"(summand));
        float all = 0;
        for (float y : x) all += y;
        if (all == 0.12345678f) *never = 1;
    }
    end(clocks);
}

void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    std::fprintf(stderr, "padded: %s\n", cudaGetErrorString(error));
    std::exit(1);
}

template <class T>
T* device(const std::vector<T>& values) {
    T* memory;
    check(cudaMalloc(&memory, values.size() * sizeof(T)));
    check(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return memory;
}
std::vector<uint8_t> codes(size_t count, uint64_t seed) {
    std::vector<uint8_t> all(count);
    uint64_t x = seed * 0x9e3779b97f4a7c15 + 1;
    for (auto& code : all) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        // The sum of four uniform numbers is distributed like quantised normal numbers.
        int sum = -255;
        for (int i = 0; i < 4; i++) sum += int(x >> (8 * i + 16) & 127);
        code = uint8_t(int8_t(sum / 2));
    }
    return all;
}

constexpr int kMultiprocessors = 132;
constexpr double kAda = 16, kAdaBf16 = 32;  // clocks of a product
Clocks* clocks;

// Returns the median over launches of the clocks of the multiprocessor that takes longest.
template <class Launch>
double measure(Launch launch) {
    std::vector<double> times;
    for (int i = 0; i < 9; i++) {
        std::vector<Clocks> now(256, Clocks{~0ull, 0});
        check(cudaMemcpy(clocks, now.data(), now.size() * sizeof(Clocks), cudaMemcpyHostToDevice));
        launch();
        check(cudaGetLastError());
        check(cudaDeviceSynchronize());
        check(cudaMemcpy(now.data(), clocks, now.size() * sizeof(Clocks), cudaMemcpyDeviceToHost));
        double longest = 0;
        for (const Clocks& c : now)
            if (c.end > c.start) longest = std::max(longest, double(c.end - c.start));
        times.push_back(longest);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

double peak_clocks;

// Prints one line; `products` counts those of one scheduler of a multiprocessor, which take `ada` clocks on 8.9.
void report(const char* name, double products, double clocks, double ada = kAda) {
    std::printf("%-44s %d issues: %9.0f clocks, %6.2f a product, %5.1f %% of own peak, %5.1f %% at %.0f clocks\n", name,
                gpu::kIssues, clocks, clocks / products, 100 * products * peak_clocks / clocks,
                100 * products * ada / clocks, ada);
}

template <class Tile>
void time_product(const char* name, int rows, int columns, int inner, const uint8_t* a, const uint8_t* b, const float* ones,
                  void* output) {
    check(cudaFuncSetAttribute(product<Tile>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(Tile::kSharedBytes)));
    const int8::Operands operands{a, b, inner, inner, rows, columns, inner};
    const gemm::Epilogue epilogue{ones, ones, ones, nullptr, nullptr, nullptr, nullptr, output, 0, 0, columns, INT32_MAX, 0, 0};
    const int tiles = (rows + Tile::kRows - 1) / Tile::kRows * ((columns + Tile::kColumns - 1) / Tile::kColumns);
    const double all = double(tiles) * Tile::kRows * Tile::kColumns * inner / (16 * 8 * 32);
    report(name, all / kMultiprocessors / 4,
           measure([&] { product<Tile><<<tiles, Tile::kThreads, Tile::kSharedBytes>>>(operands, epilogue, clocks); }));
}

void time_attention(const char* name, const int8_attention::Arguments& arguments, int heads) {
    using namespace int8_attention;
    check(cudaFuncSetAttribute(attention, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kSharedBytes)));
    const dim3 grid((arguments.rows + kRows - 1) / kRows, heads);
    const double all = double(grid.x) * heads * kWarps * (arguments.keys / kKeys) * 128;
    report(name, all / kMultiprocessors / 4,
           measure([&] { attention<<<grid, kThreads, kSharedBytes>>>(arguments, clocks); }));
}

void time_exact_attention(const char* name, const attention_bf16::Arguments& arguments, int heads) {
    using namespace attention_bf16;
    check(cudaFuncSetAttribute(exact_attention, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kSharedBytes)));
    const dim3 grid((arguments.rows + kRows - 1) / kRows, heads);
    const double all = double(grid.x) * heads * kWarps * (arguments.keys / kKeys) * 128;
    report(name, all / kMultiprocessors / 4,
           measure([&] { exact_attention<<<grid, kThreads, kSharedBytes>>>(arguments, clocks); }), kAdaBf16);
}

}  // namespace

int main() {
    check(cudaMalloc(&clocks, 256 * sizeof(Clocks)));
    int* never;
    check(cudaMalloc(&never, 4));
    const int rounds = 4096;
    peak_clocks = measure([&] { peak<<<kMultiprocessors, 256>>>(rounds, 12345, never, clocks); }) / (2.0 * 8 * rounds);
    std::printf("a product, issued %d times, holds a scheduler for %.2f clocks\n", gpu::kIssues, peak_clocks);

    const double both = 2.0 * 8 * rounds;
    report("products and 2 multiply-adds each", both,
           measure([&] { beside<2><<<kMultiprocessors, 384>>>(rounds, 12345, never, clocks); }));
    report("products and 5 multiply-adds each", both,
           measure([&] { beside<5><<<kMultiprocessors, 384>>>(rounds, 12345, never, clocks); }));

    // These shapes give whole waves of blocks on 132 multiprocessors.
    const int heads = 40, rows = 33 * 192, keys = 8192, width = heads * 128;
    const size_t most = size_t(6336) * 13824;
    const uint8_t *a = device(codes(most, 1)), *b = device(codes(size_t(10240) * 13824, 2));
    std::vector<float> scales(1 << 20, 1e-3f);
    const float* ones = device(scales);
    void* output;
    check(cudaMalloc(&output, size_t(6336) * 10240 * 2));
    for (int inner : {5120, 13824}) {
        std::printf("products of K = %d\n", inner);
        time_product<int8::Tile<2, 4, 4>>("128 x 256", 4224, 10240, inner, a, b, ones, output);
    }
    // Scores of white noise have a deviation of 1 / log(2): rows of 50 and 30 a channel.
    std::vector<float> query_scale(size_t(heads) * rows, 8.5e-5f), key_scale(heads * keys / 128, 1.f);
    const int8_attention::Arguments arguments{a, a + (most >> 1), b, device(query_scale), device(key_scale), ones, ones,
                                              static_cast<__nv_bfloat16*>(output), width, rows, keys};
    time_attention("attention in int8, 8192 keys", arguments, heads);
    // Numbers of bf16 between 1 and 2: what they are does not matter. Whole waves again: 33 blocks of 128 rows, 40 heads.
    std::vector<uint16_t> some(size_t(8192) * width);
    for (size_t i = 0; i < some.size(); i++) some[i] = uint16_t(0x3f80 + i * 2654435761u % 128);
    const auto* x = reinterpret_cast<const __nv_bfloat16*>(device(some));
    const attention_bf16::Arguments exact{x, x, x, nullptr, static_cast<__nv_bfloat16*>(output), width, width, width, 0, width,
                                          33 * 128, keys, 0.1275f};
    time_exact_attention("attention in bf16, 8192 keys", exact, heads);
    return 0;
}
