// Threads of a cluster as fibers on one thread of the host, in an order drawn at random.
#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

namespace emulator {

Here* here = nullptr;
Machine machine;

namespace {

constexpr size_t kStack = 128 << 10;  // of a thread, with a page that must not be touched
constexpr uint32_t kReserved = 1024;  // of shared memory, by the system
constexpr int kRegisters = 65536;

sigjmp_buf out;
bool running = false;
thread_local char anchor = 0;  // in the library's thread-local memory

// Saves the registers that a function must preserve, and continues on another stack.
extern "C" void emulator_switch(void** save, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
void* first_frame(uint8_t* top, void (*entry)()) {
    auto* frame = reinterpret_cast<void**>(top) - 2;  // the return address at the very top
    frame[0] = reinterpret_cast<void*>(entry);
    return frame - 6;
}
#elif defined(__aarch64__)
asm(R"(
.text
.type emulator_switch, %function
emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch, .-emulator_switch
)");
void* first_frame(uint8_t* top, void (*entry)()) {
    auto* frame = reinterpret_cast<void**>(top) - 20;
    frame[11] = reinterpret_cast<void*>(entry);
    return frame;
}
#else
#error "the emulator switches stacks on x86-64 and aarch64 only"
#endif

uint8_t* stacks(size_t threads) {
    static uint8_t* memory = nullptr;
    static size_t held = 0;
    if (threads > held) {
        const size_t page = sysconf(_SC_PAGESIZE);
        void* more = mmap(nullptr, threads * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (more == MAP_FAILED) abort();
        memory = static_cast<uint8_t*>(more);
        held = threads;
        for (size_t i = 0; i < threads; i++) mprotect(memory + i * kStack, page, PROT_NONE);
    }
    return memory;
}

std::string place() {
    if (here == nullptr) return {};
    char text[160];
    snprintf(text, sizeof text, ", block (%u, %u, %u), thread %d", here->block.x, here->block.y, here->block.z,
             self()->number);
    return text;
}

void entry() {
    machine.kernel->call(machine.parameters);
    end_of_thread();
    Thread& thread = *self();
    Block& block = *thread.owner;
    thread.ended = true;
    thread.warp->ready &= ~(1u << thread.lane);
    block.live--;
    machine.live--;
    // Threads that wait for all threads of the block no longer wait for this one.
    NamedBarrier& all = block.named[0];
    if (all.threads == 0 && all.arrived > 0 && all.arrived == block.live) {
        all.arrived = 0;
        wake_all(all.waiting);
    }
    if (machine.cluster_arrived > 0 && machine.cluster_arrived == machine.live) {
        machine.cluster_arrived = 0;
        wake_all(machine.cluster_waiting);
    }
    void* unused;
    emulator_switch(&unused, machine.scheduler);
    abort();
}

void leave() {
    Thread* thread = self();
    emulator_switch(&thread->stack_pointer, machine.scheduler);
}

[[noreturn]] void deadlock() {
    // The message names threads that wait for the same thing together.
    std::map<std::string, std::vector<int>> groups;
    for (const Thread& thread : machine.threads) {
        if (thread.ended) continue;
        char text[256];
        snprintf(text, sizeof text, "block (%u, %u, %u): ", thread.block.x, thread.block.y, thread.block.z);
        std::string line = text;
        snprintf(text, sizeof text, thread.what, thread.about[0], thread.about[1]);
        line += text;
        if (thread.about[0] != 0) {
            const auto found = thread.owner->barriers.find(thread.about[0]);
            if (found != thread.owner->barriers.end()) {
                const Barrier& barrier = found->second;
                snprintf(text, sizeof text, " (%u of %u arrivals and %lld bytes missing, phase %u)", barrier.pending,
                         barrier.expected, (long long)barrier.bytes, barrier.phase);
                line += text;
            }
        }
        groups[line].push_back(thread.number);
    }
    std::string message = "all threads wait";
    for (const auto& [line, threads] : groups) {
        message += "\n    " + line + ": threads ";
        for (size_t i = 0; i < threads.size();) {
            size_t j = i;
            while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) j++;
            message += (i == 0 ? "" : ", ") + std::to_string(threads[i]);
            if (j > i) message += "-" + std::to_string(threads[j]);
            i = j + 1;
        }
    }
    here = nullptr;
    fail("%s", message.c_str());
}

void schedule() {
    std::vector<Warp*> ready;
    unsigned turns = 0;
    while (machine.live > 0) {
        ready.clear();
        for (Block& block : machine.blocks)
            for (Warp& warp : block.warps)
                if (warp.ready != 0) ready.push_back(&warp);
        if (!machine.copies.empty() && (ready.empty() || chance(machine.copies_early))) {
            finish_copy(random() % machine.copies.size());
            continue;
        }
        if (ready.empty()) deadlock();
        Warp* warp = ready[random() % ready.size()];
        if (machine.priorities) {
            for (Warp* other : ready)
                if (other->priority > warp->priority) warp = other;
            if (++turns % 64 == 0) warp->priority = random() >> 1;
        }
        const unsigned first = random() % 32;
        for (unsigned i = 0; i < 32; i++) {
            const unsigned lane = (first + i) % 32;
            if (!(warp->ready >> lane & 1)) continue;
            here = warp->threads[lane];
            emulator_switch(&machine.scheduler, warp->threads[lane]->stack_pointer);
        }
        here = nullptr;
    }
    if (!machine.copies.empty()) fail("%zu bulk copies are under way when their block has ended", machine.copies.size());
}

// Fills all `__shared__` variables with NaN.
void poison_static_shared() {
    anchor = 1;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) {
            for (int i = 0; i < info->dlpi_phnum; i++) {
                const auto& header = info->dlpi_phdr[i];
                auto* from = static_cast<char*>(info->dlpi_tls_data);
                if (header.p_type != PT_TLS || from == nullptr || &anchor < from || &anchor >= from + header.p_memsz)
                    continue;
                memset(from, 0xff, header.p_memsz);
                return 1;
            }
            return 0;
        },
        nullptr);
}

void run_cluster(Index grid, Index size, Index first, uint32_t shared) {
    const unsigned cluster = machine.kernel->cluster, threads = size.x;
    uint8_t* stack = stacks(size_t(cluster) * threads);
    machine.blocks.clear();
    machine.blocks.resize(cluster);
    machine.threads.clear();
    machine.copies.clear();
    machine.cluster_waiting.clear();
    machine.cluster_arrived = 0;
    machine.live = int(cluster * threads);
    // Dynamic shared memory begins at a random multiple of 16 bytes, the same for all blocks of a cluster.
    machine.shared_base = kReserved + 16 * (random() % 64);
    machine.shared_end = machine.shared_base + shared;
    poison_static_shared();
    const int registers = std::min(255, kRegisters / int(machine.kernel->threads) / 8 * 8);
    for (unsigned rank = 0; rank < cluster; rank++) {
        Block& block = machine.blocks[rank];
        block.index = {first.x + rank, first.y, first.z};
        block.rank = rank;
        block.memory.assign(machine.shared_end, 0xff);
        block.granules.assign(machine.shared_end / 16 + 1, Granule());
        block.warps.resize((threads + 31) / 32);
        block.groups.resize((threads + 127) / 128);
        block.live = int(threads);
        for (unsigned i = 0; i < threads; i++) {
            machine.threads.emplace_back();
            Thread& thread = machine.threads.back();
            thread.thread = {i, 0, 0};
            thread.block = block.index;
            thread.block_size = size;
            thread.grid = grid;
            thread.rank = rank;
            thread.owner = &block;
            thread.number = int(i);
            thread.lane = int(i % 32);
            thread.registers = registers;
            Warp& warp = block.warps[i / 32];
            thread.warp = &warp;
            warp.block = &block;
            warp.threads[thread.lane] = &thread;
            warp.ready |= 1u << thread.lane;
            warp.priority = random() >> 1;
            thread.stack_pointer = first_frame(stack + kStack * (size_t(rank) * threads + i + 1), entry);
        }
    }
    schedule();
    for (Block& block : machine.blocks)
        for (int id = 0; id < 16; id++)
            if (block.named[id].arrived != 0)
                fail("block (%u, %u, %u) ends with %d of %d threads at barrier %d", block.index.x, block.index.y,
                     block.index.z, block.named[id].arrived, block.named[id].threads, id);
}

void on_fault(int signal, siginfo_t* info, void*) {
    if (!running) {
        ::signal(signal, SIG_DFL);
        raise(signal);
        return;
    }
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    if (signal == SIGILL) {
        // The checks that the compiler adds to the kernels end with this signal: see build.rs. The address is that of
        // the instruction.
        Dl_info library;
        const uintptr_t base = dladdr(info->si_addr, &library) ? reinterpret_cast<uintptr_t>(library.dli_fbase) : 0;
        char text[160];
        snprintf(text, sizeof text, "a misaligned access, an index out of bounds, or an overflow (at %#zx of the library)",
                 size_t(address - base));
        machine.failure = text + place();
    } else {
        machine.failure = "access to " + describe(address) + place();
    }
    siglongjmp(out, 1);
}

void catch_faults() {
    static uint8_t stack[64 << 10];
    stack_t alternative = {};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
    sigaction(SIGILL, &action, nullptr);
}

std::vector<Kernel>& kernels() {
    static std::vector<Kernel> all;
    return all;
}

}  // namespace

bool add(const Kernel& kernel) {
    kernels().push_back(kernel);
    return true;
}

const Kernel* find(const std::string& module, const std::string& name) {
    for (const Kernel& kernel : kernels())
        if (module == kernel.module && name == kernel.name) return &kernel;
    return nullptr;
}

// xorshift64*
uint32_t random() {
    uint64_t& x = machine.random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    return uint32_t(x * 0x2545f4914f6cdd1d >> 32);
}

void fail(const char* format, ...) {
    char text[8192];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    machine.failure = text + place();
    siglongjmp(out, 1);
}

void sleep(const char* what, uint32_t a, uint32_t b) {
    Thread& thread = *self();
    thread.what = what;
    thread.about[0] = a;
    thread.about[1] = b;
    thread.warp->ready &= ~(1u << thread.lane);
    leave();
}

void pause() {
    if (chance(machine.pauses)) leave();
}

void wake(Thread* thread) { thread->warp->ready |= 1u << thread->lane; }

void wake_all(std::vector<Thread*>& threads) {
    for (Thread* thread : threads) wake(thread);
    threads.clear();
}

Block& block_of(unsigned rank) {
    if (rank >= machine.blocks.size()) fail("there is no block of rank %u in the cluster", rank);
    return machine.blocks[rank];
}

void meet(const char* what, unsigned lanes, void* mine, void (*perform)(void* const* mine, unsigned lanes)) {
    Thread& thread = *self();
    Warp& warp = *thread.warp;
    if (!(lanes >> thread.lane & 1)) fail("lane %d is not among those of its own %s", thread.lane, what);
    if (warp.arrived == 0) {
        warp.what = what;
        warp.wanted = lanes;
    } else if ((warp.what != what && strcmp(warp.what, what) != 0) || warp.wanted != lanes) {
        fail("lanes of a warp are in %s and in %s at once", warp.what, what);
    }
    warp.mine[thread.lane] = mine;
    warp.arrived |= 1u << thread.lane;
    if (warp.arrived != lanes) {
        sleep(what);
        return;
    }
    if (perform != nullptr) perform(warp.mine, lanes);
    warp.arrived = 0;
    for (int lane = 0; lane < 32; lane++)
        if (lanes >> lane & 1 && warp.threads[lane] != &thread) wake(warp.threads[lane]);
}

void block_barrier(int id, int threads, bool wait) {
    Block& block = *self()->owner;
    if (id < 0 || id > 15 || threads % 32 != 0) fail("barrier %d of %d threads", id, threads);
    NamedBarrier& barrier = block.named[id];
    if (barrier.arrived == 0)
        barrier.threads = threads;
    else if (barrier.threads != threads)
        fail("barrier %d is for %d threads and for %d", id, barrier.threads, threads);
    barrier.arrived++;
    if (barrier.arrived == (threads == 0 ? block.live : threads)) {
        barrier.arrived = 0;
        wake_all(barrier.waiting);
        pause();
    } else if (wait) {
        barrier.waiting.push_back(self());
        sleep("barrier %u of the block", uint32_t(id));
    }
}

void cluster_barrier() {
    if (++machine.cluster_arrived == machine.live) {
        machine.cluster_arrived = 0;
        wake_all(machine.cluster_waiting);
        pause();
    } else {
        machine.cluster_waiting.push_back(self());
        sleep("barrier of the cluster");
    }
}

void set_registers(int count) {
    if (count % 8 != 0 || count < 24 || count > 256) fail("setmaxnreg to %d", count);
    meet("setmaxnreg", 0xffffffffu, nullptr, nullptr);
    Thread& thread = *self();
    Block& block = *thread.owner;
    while (count - thread.registers > block.free_registers) {
        block.want_registers.push_back(&thread);
        sleep("registers");
    }
    block.free_registers -= count - thread.registers;
    thread.registers = count;
    wake_all(block.want_registers);
}

uint32_t dynamic_shared() { return machine.shared_base; }

void check_place(uint32_t address, uint32_t bytes, uint32_t alignment, const char* what) {
    if (address % alignment != 0) fail("%s at address %#x of shared memory, no multiple of %u", what, address, alignment);
    if (address < machine.shared_base || bytes > machine.shared_end || address > machine.shared_end - bytes)
        fail("%s of %u bytes at address %#x of shared memory, which is %#x to %#x", what, bytes, address,
             machine.shared_base, machine.shared_end);
}

void* load_place(uint32_t address, uint32_t bytes) {
    check_place(address, bytes, bytes, "a load");
    Block& block = *self()->owner;
    const uint8_t flags = block.granules[address / 16].flags;
    if (flags & kFlight) fail("a load from address %#x, to which a copy is under way", address);
    if (!(flags & kWritten)) fail("a load from address %#x, where nothing has been written", address);
    return &block.memory[address];
}

void* store_place(uint32_t address, uint32_t bytes) {
    check_place(address, bytes, bytes, "a store");
    Block& block = *self()->owner;
    Granule& granule = block.granules[address / 16];
    if (granule.flags & kFlight) fail("a store to address %#x, to which a copy is under way", address);
    check_products(block, address, bytes, "a store");
    granule.flags |= kWritten | kGeneric;
    granule.writer = self();
    granule.fences = self()->fences;
    return &block.memory[address];
}

void proxy_fence() { self()->fences++; }

std::string launch(const Kernel& kernel, Index grid, Index size, uint32_t shared, void* const* parameters) {
    static std::mutex one;  // all fibers run on one thread of the host at a time
    static uint64_t launches = 0;
    const std::lock_guard<std::mutex> lock(one);
    static const uint64_t seed = getenv("ANIMD_EMULATOR_SEED") ? strtoull(getenv("ANIMD_EMULATOR_SEED"), nullptr, 0) : 1;
    static const bool caught = (catch_faults(), true);
    (void)caught;
    launches++;
    machine.kernel = &kernel;
    machine.parameters = parameters;
    machine.random = (seed << 32 | launches) * 0x9e3779b97f4a7c15 | 1;
    for (int i = 0; i < 8; i++) random();
    // Copies and products happen at once, late or in between; warps take turns, or some of them run far ahead of
    // others.
    static const unsigned kEarly[] = {256, 64, 8, 0};
    machine.copies_early = kEarly[random() % 4];
    machine.products_early = kEarly[random() % 4];
    machine.pauses = random() % 2 ? 32 : 2;
    machine.priorities = random() % 2;
    std::vector<Index> clusters;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x += kernel.cluster) clusters.push_back({x, y, z});
    for (size_t i = clusters.size(); i > 1; i--) std::swap(clusters[i - 1], clusters[random() % i]);
    machine.failure.clear();
    here = nullptr;
    if (sigsetjmp(out, 1) == 0) {
        running = true;
        for (const Index& first : clusters) run_cluster(grid, size, first, shared);
    }
    running = false;
    here = nullptr;
    if (machine.failure.empty()) return {};
    return std::string(kernel.name) + ", launch " + std::to_string(launches) + " of seed " + std::to_string(seed) + ": " +
           machine.failure;
}

}  // namespace emulator
