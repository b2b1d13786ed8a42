// The emulator's state, which only its own files include.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace emulator {

struct Thread;
struct Block;

// The sum that a warpgroup's issued matrix products go to; `Product` is such a product.
struct Sum {
    std::vector<float> values;       // 64 rows
    std::vector<int32_t> integers;
    int attached = 0;  // threads whose registers it stands for
};
struct Product {
    Kind kind;
    int columns;
    bool in_registers, b_rows, accumulate;
    uint64_t a, b;
    const uint32_t* registers[128];
    Sum* sum;
    unsigned group;
    uint32_t ranges[2][2];  // of the operands in shared memory
    int issued = 0, passed = 0;
    bool done = false, waited = false;
};
struct Group {
    std::deque<Product> products;
    uint64_t first = 0;  // the number of the first of `products`
    std::vector<std::unique_ptr<Sum>> sums;
    std::vector<Thread*> waiting;
};

struct Warp {
    Block* block;
    Thread* threads[32] = {};
    unsigned ready = 0;
    unsigned priority = 0;
    // The operation in which lanes are meeting.
    const char* what = nullptr;
    unsigned wanted = 0, arrived = 0;
    void* mine[32];
};

// A copy by cp.async, issued by one thread.
struct SmallCopy {
    uint32_t to;
    const void* from;
    bool there, done;
    int group;
};

struct Thread : Here {
    void* stack_pointer;
    Block* owner;
    Warp* warp;
    int number, lane;
    bool ended = false;
    // What a thread that is not ready waits for.
    const char* what = nullptr;
    uint32_t about[2] = {};
    int registers = 0;
    uint32_t fences = 0;
    std::vector<SmallCopy> copies;
    int copy_groups = 0;
    // The numbers of the next product to issue and of the next one to wait for.
    uint64_t issued = 0, passed = 0;
    unsigned groups = 0;
    bool fenced = false;
    struct Active {
        Sum* sum;
        void* place;
        unsigned last;  // group
    };
    std::vector<Active> active;
};

// An mbarrier in shared memory.
struct Barrier {
    uint32_t expected, pending;
    int64_t bytes;
    uint32_t phase;
    bool fenced;
    Thread* maker;
    std::vector<Thread*> waiting;
};
struct NamedBarrier {
    int threads = 0, arrived = 0;
    std::vector<Thread*> waiting;
};

// Flags of 16 bytes of shared memory.
constexpr uint8_t kWritten = 1, kGeneric = 2, kFlight = 4;
struct Granule {
    uint8_t flags = 0;
    Thread* writer = nullptr;
    uint32_t fences = 0;
};

struct Block {
    Index index;
    unsigned rank;
    std::vector<uint8_t> memory;  // from address 0
    std::vector<Granule> granules;
    std::unordered_map<uint32_t, Barrier> barriers;
    NamedBarrier named[16];
    std::vector<Warp> warps;
    std::deque<Group> groups;
    int live = 0;
    int free_registers = 0;
    std::vector<Thread*> want_registers;
};

// A bulk copy under way to one block.
struct Copy {
    Block* to_block;
    uint32_t to, barrier, bytes;
    const void* from;
    std::vector<uint8_t> map;  // empty: contiguous bytes
    int at[5];
};

struct Machine {
    const Kernel* kernel = nullptr;
    void* const* parameters = nullptr;
    std::deque<Block> blocks;  // of the cluster that runs
    std::deque<Thread> threads;
    std::vector<Copy> copies;
    int live = 0;
    int cluster_arrived = 0;
    std::vector<Thread*> cluster_waiting;
    uint32_t shared_base = 0, shared_end = 0;
    // The chances, in 256ths, that copies and products happen early and that threads pause in this launch.
    unsigned copies_early = 0, products_early = 0, pauses = 0;
    bool priorities = false;
    uint64_t random = 1;
    void* scheduler = nullptr;
    std::string failure;
};
extern Machine machine;
inline Thread* self() { return static_cast<Thread*>(here); }

uint32_t random();
inline bool chance(unsigned of256) { return random() % 256 < of256; }

// Lets other threads run until one of them calls `wake` for this thread.
void sleep(const char* what, uint32_t a = 0, uint32_t b = 0);
void wake(Thread* thread);
void wake_all(std::vector<Thread*>& threads);
Block& block_of(unsigned rank);

// Checks that so many bytes, aligned to `alignment`, are in the shared memory of a block.
void check_place(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what);
// Fails if products that are not known to be done read any of these bytes.
void check_products(Block& block, uint32_t address, uint32_t bytes, const char* what);
void finish_copy(size_t number);
void end_of_thread();  // checks what a thread must have done when it ends

// Runs a kernel, and returns an empty string or what went wrong.
std::string launch(const Kernel& kernel, Index grid, Index size, uint32_t shared, void* const* parameters);
const Kernel* find(const std::string& module, const std::string& name);
// Says where an address lies; it is in driver.cpp.
std::string describe(uintptr_t address);

}  // namespace emulator
