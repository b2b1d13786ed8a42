// The part of the emulator that the emulated headers and the kernels' registrations use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

namespace emulator {

struct Index {
    unsigned x, y, z;
};

// The position of the running thread; it is the first part of the thread's state.
struct Here {
    Index thread, block, block_size, grid;
    unsigned rank;  // of its block in the cluster
};
extern Here* here;

// Ends the launch with a message that names the kernel, the block and the thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// A point where the threads of other warps may overtake.
void pause();

// ---- machine.cpp: threads that meet

// The `lanes` of a warp meet in an operation; the last one performs it for all, given what each has passed.
void meet(const char* what, unsigned lanes, void* mine, void (*perform)(void* const* mine, unsigned lanes));
// Performs bar.sync or bar.arrive; if `threads` is 0, all threads of the block take part.
void block_barrier(int id, int threads, bool wait);
void cluster_barrier();
void set_registers(int count);

// ---- machine.cpp: shared memory

uint32_t dynamic_shared();
// Returns the host address of so many bytes of the block's shared memory, for ordinary loads or stores.
void* load_place(uint32_t address, uint32_t bytes);
void* store_place(uint32_t address, uint32_t bytes);
void proxy_fence();

// ---- copies.cpp

void barrier_init(uint32_t address, uint32_t arrivals);
void barrier_init_fence();
void barrier_expect(uint32_t address, uint32_t bytes);
void barrier_arrive(uint32_t address, unsigned rank);
void barrier_wait(uint32_t address, uint32_t parity);
void load_tensor(uint32_t to, const void* map, uint32_t barrier, unsigned blocks, const int* at, int rank);
void load_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier);
void check_map(const void* map);
void copy_async(uint32_t to, const void* from, bool there);
void copy_commit();
void copy_wait(int pending);

// ---- products.cpp

enum class Kind { kBf16, kE4m3, kS8 };
// d (64 x columns) = a * b + (accumulate ? d : 0) by a warpgroup; a is in `registers`, or at `a_descriptor` if they are
// null.
void mma(Kind kind, int columns, void* d, const uint32_t* registers, uint64_t a_descriptor, uint64_t b_descriptor,
         bool b_rows, bool accumulate);
void mma_fence();
void mma_commit();
void mma_wait(int pending);
void load_matrices(uint32_t* x, uint32_t from, bool transposed);
// d (16 x 8) += a * b by a warp.
void multiply(Kind kind, float* d, const uint32_t* a, uint32_t b0, uint32_t b1);
// d (16 x 8) = a * b + c by a warp; a has s8 or u8, b s8.
void multiply_integers(bool is_signed, int* d, const uint32_t* a, uint32_t b0, uint32_t b1, const int* c);

float from_e4m3(uint8_t code);
uint8_t to_e4m3(float x);  // to the nearest, to even in the middle; beyond 448 to 448
uint16_t to_bf16(float x);

// ---- Kernels

struct Kernel {
    const char* module;
    const char* name;
    void (*call)(void* const* parameters);
    // Returns copies of the parameters, for a launch that runs later.
    std::shared_ptr<void* const> (*keep)(void* const* parameters);
    unsigned cluster;
    unsigned threads;  // of its launch bounds
};
bool add(const Kernel& kernel);

template <class... Parameters, size_t... kNumbers>
void call(void (*function)(Parameters...), void* const* parameters, std::index_sequence<kNumbers...>) {
    function(*static_cast<std::remove_const_t<Parameters>*>(parameters[kNumbers])...);
}
template <class... Parameters>
void call(void (*function)(Parameters...), void* const* parameters) {
    call(function, parameters, std::index_sequence_for<Parameters...>());
}

template <class... Parameters>
struct Kept {
    std::tuple<std::remove_const_t<Parameters>...> values;
    void* places[sizeof...(Parameters) + 1];
};
template <class... Parameters, size_t... kNumbers>
std::shared_ptr<void* const> keep(void (*)(Parameters...), void* const* parameters, std::index_sequence<kNumbers...>) {
    using All = Kept<Parameters...>;
    auto kept = std::make_shared<All>(All{{*static_cast<std::remove_const_t<Parameters>*>(parameters[kNumbers])...}, {}});
    ((kept->places[kNumbers] = &std::get<kNumbers>(kept->values)), ...);
    return {kept, kept->places};
}
template <class... Parameters>
std::shared_ptr<void* const> keep(void (*function)(Parameters...), void* const* parameters) {
    return keep(function, parameters, std::index_sequence_for<Parameters...>());
}

}  // namespace emulator

#define EMULATED_KERNEL(MODULE, NAME, CLUSTER, THREADS)                                                                \
    static const bool added_##NAME = emulator::add({MODULE, #NAME, [](void* const* p) { emulator::call(NAME, p); },    \
                                                    [](void* const* p) { return emulator::keep(NAME, p); }, CLUSTER, THREADS});
