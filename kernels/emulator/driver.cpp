// The CUDA driver's interface, as far as the launchers use it: this library takes the place of libcuda.so.1.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

#include "driver.h"
#include "internal.h"
#include "tensor_map.h"

namespace {

using namespace emulator;

struct Piece {
    size_t mapped, bytes;
    uint8_t* from;
};
std::mutex mutex;
std::map<uintptr_t, Piece> pieces;  // by address

struct Module {
    std::string name;
};
struct Function {
    const emulator::Kernel* kernel;
    uint32_t shared = 48 << 10;
};
int number(const char* variable, int otherwise) {
    const char* text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

constexpr size_t kAlignment = 256;

size_t total_memory() { return size_t(number("ANIMD_EMULATOR_MIB", 16384)) << 20; }

size_t taken = 0;

}  // namespace

namespace emulator {

bool take_memory(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (taken + bytes > total_memory()) return false;
    taken += bytes;
    return true;
}

void return_memory(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    taken -= bytes;
}

std::string describe(uintptr_t address) {
    char text[160];
    std::snprintf(text, sizeof text, "address %#zx", size_t(address));
    for (const auto& [start, piece] : pieces) {
        const auto from = reinterpret_cast<uintptr_t>(piece.from);
        if (address < from || address >= from + piece.mapped) continue;
        const long past = long(address) - long(start);
        std::snprintf(text, sizeof text, "byte %ld of a piece of %zu bytes", past, piece.bytes);
    }
    return text;
}

}  // namespace emulator

API cuInit(unsigned) { return kSuccess; }
API cuDriverGetVersion(int* version) { return *version = number("ANIMD_EMULATOR_DRIVER", 13000), kSuccess; }
API cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
API cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? kSuccess : 101; }
API cuDeviceGetName(char* name, int length, int) {
    std::snprintf(name, size_t(length), "emulator");
    return kSuccess;
}
API cuDeviceGetAttribute(int* value, int attribute, int) {
    const char* capability = getenv("ANIMD_EMULATOR_CAPABILITY");
    int major = 9, minor = 0;
    if (capability) std::sscanf(capability, "%d.%d", &major, &minor);
    switch (attribute) {
        case 16: *value = number("ANIMD_EMULATOR_MULTIPROCESSORS", 4); break;
        case 75: *value = major; break;
        case 76: *value = minor; break;
        // The most shared memory of a block that asks for more than 48 KiB.
        case 97: *value = major == 9 ? 232448 : major == 8 && minor == 0 ? 166912 : 101376; break;
        case 102: *value = 1; break;  // virtual memory
        default: *value = 0;
    }
    return kSuccess;
}
API cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = total_memory(), kSuccess; }
API cuMemGetInfo_v2(size_t* free, size_t* total) {
    const std::lock_guard<std::mutex> lock(mutex);
    return *total = total_memory(), *free = taken < *total ? *total - taken : 0, kSuccess;
}
API cuDevicePrimaryCtxRetain(void** context, int) { return *context = &pieces, kSuccess; }
API cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
API cuCtxSetCurrent(void*) { return kSuccess; }
API cuCtxGetCurrent(void** context) { return *context = &pieces, kSuccess; }
API cuCtxSynchronize() { return finish_all(); }

API cuGetErrorName(int code, const char** name) {
    switch (code) {
        case kInvalid: *name = "CUDA_ERROR_INVALID_VALUE"; break;
        case kOutOfMemory: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
        case kInvalidImage: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
        case kNotFound: *name = "CUDA_ERROR_NOT_FOUND"; break;
        case kLaunchFailed: *name = "CUDA_ERROR_LAUNCH_FAILED"; break;
        default: *name = "CUDA_ERROR_UNKNOWN";
    }
    return kSuccess;
}
API cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }

// Each piece of memory ends before a page that cannot be touched.
API cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    if (!take_memory(bytes)) return kOutOfMemory;
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t used = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    const size_t inner = (used + page - 1) / page * page;
    void* from = mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (from == MAP_FAILED) return kOutOfMemory;
    auto* first = static_cast<uint8_t*>(from);
    if (inner > 0 && mprotect(first + page, inner, PROT_READ | PROT_WRITE) != 0) return kOutOfMemory;
    memset(first + page, 0xff, inner);
    *address = uint64_t(first + page + inner - used);
    const std::lock_guard<std::mutex> lock(mutex);
    pieces[*address] = {inner + 2 * page, bytes, first};
    return kSuccess;
}
API cuMemFree_v2(uint64_t address) {
    finish_all();
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = pieces.find(address);
    if (found == pieces.end()) return kInvalid;
    const Piece piece = found->second;
    // The bytes that rounding up has added must be untouched.
    const auto* end = reinterpret_cast<const uint8_t*>(address) + piece.bytes;
    for (size_t i = 0; i < (kAlignment - piece.bytes % kAlignment) % kAlignment; i++)
        if (end[i] != 0xff) {
            std::fprintf(stderr, "emulator: a piece of %zu bytes was written behind its end\n", piece.bytes);
            std::abort();
        }
    munmap(piece.from, piece.mapped);
    taken -= piece.bytes;
    pieces.erase(found);
    return kSuccess;
}
// Loads a module; its image consists of a mark and the module's name.
API cuModuleLoadData(void** module, const void* image) {
    constexpr char kMark[] = "emulated:";
    const auto* text = static_cast<const char*>(image);
    if (strncmp(text, kMark, sizeof kMark - 1) != 0) return kInvalidImage;
    *module = new Module{text + sizeof kMark - 1};
    return kSuccess;
}
API cuModuleUnload(void* module) { return delete static_cast<Module*>(module), kSuccess; }
API cuModuleGetFunction(void** function, void* module, const char* name) {
    const emulator::Kernel* kernel = emulator::find(static_cast<Module*>(module)->name, name);
    if (kernel == nullptr) {
        std::fprintf(stderr, "emulator: `%s` has no kernel `%s`\n", static_cast<Module*>(module)->name.c_str(), name);
        return kNotFound;
    }
    *function = new Function{kernel};
    return kSuccess;
}
API cuFuncSetAttribute(void* function, int attribute, int value) {
    int most;
    cuDeviceGetAttribute(&most, 97, 0);
    if (attribute != 8) return kSuccess;
    if (value > most) return kInvalid;
    static_cast<Function*>(function)->shared = uint32_t(value);
    return kSuccess;
}
API cuFuncGetAttribute(int* value, int, void*) { return *value = 0, kSuccess; }

API cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned x, unsigned y, unsigned z,
                   unsigned shared, void* stream, void** parameters, void**) {
    const Function& f = *static_cast<Function*>(function);
    const emulator::Kernel& kernel = *f.kernel;
    const bool right = grid_x > 0 && grid_y > 0 && grid_z > 0 && grid_x <= 0x7fffffff && grid_y <= 65535 && grid_z <= 65535 &&
                       x > 0 && y == 1 && z == 1 && x <= kernel.threads && grid_x % kernel.cluster == 0 && shared <= f.shared;
    if (!right) {
        std::fprintf(stderr, "emulator: %s: grid (%u, %u, %u), %u threads, %u bytes of shared memory\n", kernel.name, grid_x,
                     grid_y, grid_z, x, shared);
        return kInvalid;
    }
    const std::shared_ptr<void* const> kept = kernel.keep(parameters);
    return enqueue(stream, {[=, &kernel] {
                                const Index grid = {grid_x, grid_y, grid_z};
                                const std::string failure = emulator::launch(kernel, grid, {x, y, z}, shared, kept.get());
                                if (failure.empty()) return int(kSuccess);
                                std::fprintf(stderr, "emulator: %s\n", failure.c_str());
                                return int(kLaunchFailed);
                            },
                            {}});
}

// Makes a tensor map, and refuses what the driver refuses.
API cuTensorMapEncodeTiled(void* map, int type, unsigned rank, void* address, const uint64_t* sizes, const uint64_t* strides,
                           const uint32_t* box, const uint32_t* steps, int interleave, int swizzle, int, int) {
    emulator::Map made = {};
    made.mark = emulator::Map::kMark;
    made.rank = uint8_t(rank);
    made.address = uint64_t(address);
    switch (type) {
        case 0: made.element = 1; break;  // UINT8
        case 9: made.element = 2; break;  // BFLOAT16
        default: return kInvalid;
    }
    const bool swizzled = swizzle == 3;
    made.swizzled = swizzled;
    if (uint64_t(map) % 64 != 0 || rank < 1 || rank > 5 || made.address % 16 != 0 || interleave != 0) return kInvalid;
    if (swizzle != 0 && !swizzled) return kInvalid;
    for (unsigned d = 0; d < rank; d++) {
        if (sizes[d] == 0 || sizes[d] > uint64_t(1) << 32 || box[d] == 0 || box[d] > 256) return kInvalid;
        if (steps[d] == 0 || steps[d] > 8) return kInvalid;
        made.last[d] = uint32_t(sizes[d] - 1);
        made.box[d] = uint16_t(box[d]);
        made.steps[d] = uint8_t(d == 0 ? 1 : steps[d]);
        if (d + 1 == rank) continue;
        if (strides[d] % 16 != 0 || strides[d] >= uint64_t(1) << 40) return kInvalid;
        made.strides[d] = strides[d];
    }
    // The driver also takes rows shorter than the swizzle, but no kernel here has them.
    const uint32_t row = box[0] * made.element;
    if (row % 16 != 0 || (swizzled && row != 128)) return kInvalid;
    memset(map, 0, 128);
    memcpy(map, &made, sizeof made);
    return kSuccess;
}
