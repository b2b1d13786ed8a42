// Virtual memory of the driver's interface: physical memory is a file without a name, and a mapping of it is one of the
// host's.
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include <sys/mman.h>
#include <unistd.h>

#include "driver.h"

namespace {

using namespace emulator;

struct Physical {
    const int file = memfd_create("animd-emulator", MFD_CLOEXEC);
    const size_t bytes;
    explicit Physical(size_t bytes) : bytes(bytes) {}
    Physical(const Physical&) = delete;
    ~Physical() {
        close(file);
        return_memory(bytes);
    }
};

std::mutex mutex;
std::map<uint64_t, std::shared_ptr<Physical>> handles;
uint64_t next_handle = 1;

struct Mapping {
    size_t bytes;
    std::shared_ptr<Physical> physical;
};
std::map<uint64_t, Mapping> mappings;
std::map<uint64_t, size_t> ranges;

size_t page() { return size_t(sysconf(_SC_PAGESIZE)); }

}  // namespace

API cuMemGetAllocationGranularity(size_t* bytes, const void*, int) { return *bytes = page(), kSuccess; }

API cuMemAddressReserve(uint64_t* address, size_t bytes, size_t, uint64_t, uint64_t) {
    void* from = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (from == MAP_FAILED) return kOutOfMemory;
    const std::lock_guard<std::mutex> lock(mutex);
    ranges[*address = uint64_t(from)] = bytes;
    return kSuccess;
}
API cuMemAddressFree(uint64_t address, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto mapped = mappings.lower_bound(address);
    const auto found = ranges.find(address);
    if (found == ranges.end() || found->second != bytes) return kInvalid;
    if (mapped != mappings.end() && mapped->first < address + bytes) return kInvalid;
    munmap(reinterpret_cast<void*>(address), bytes);
    ranges.erase(found);
    return kSuccess;
}

API cuMemCreate(uint64_t* handle, size_t bytes, const void*, uint64_t) {
    if (bytes == 0 || bytes % page() != 0) return kInvalid;
    if (!take_memory(bytes)) return kOutOfMemory;
    auto physical = std::make_shared<Physical>(bytes);
    if (physical->file < 0 || ftruncate(physical->file, off_t(bytes)) != 0) return kOutOfMemory;
    void* inside = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, physical->file, 0);
    if (inside == MAP_FAILED) return kOutOfMemory;
    memset(inside, 0xff, bytes);
    munmap(inside, bytes);
    const std::lock_guard<std::mutex> lock(mutex);
    handles[*handle = next_handle++] = std::move(physical);
    return kSuccess;
}
// The memory is given back when nothing maps it any more.
API cuMemRelease(uint64_t handle) {
    const std::lock_guard<std::mutex> lock(mutex);
    return handles.erase(handle) == 1 ? kSuccess : kInvalid;
}

API cuMemMap(uint64_t address, size_t bytes, size_t offset, uint64_t handle, uint64_t) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = handles.find(handle);
    if (found == handles.end() || bytes == 0 || bytes % page() != 0 || address % page() != 0) return kInvalid;
    const auto& physical = found->second;
    // Only whole allocations are mapped.
    if (offset != 0 || bytes != physical->bytes) return kInvalid;
    const auto after = mappings.lower_bound(address);
    if (after != mappings.end() && after->first < address + bytes) return kInvalid;
    void* at = reinterpret_cast<void*>(address);
    if (mmap(at, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, physical->file, 0) == MAP_FAILED) return kInvalid;
    mappings[address] = {bytes, physical};
    return kSuccess;
}
API cuMemSetAccess(uint64_t address, size_t bytes, const void*, size_t) {
    return mprotect(reinterpret_cast<void*>(address), bytes, PROT_READ | PROT_WRITE) == 0 ? kSuccess : kInvalid;
}
API cuMemUnmap(uint64_t address, size_t bytes) {
    check_unused({address, bytes}, "memory is unmapped");
    const std::lock_guard<std::mutex> lock(mutex);
    for (auto each = mappings.lower_bound(address); each != mappings.end() && each->first < address + bytes;) {
        if (each->first + each->second.bytes > address + bytes) return kInvalid;
        each = mappings.erase(each);
    }
    void* at = reinterpret_cast<void*>(address);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    return mmap(at, bytes, PROT_NONE, flags, -1, 0) == MAP_FAILED ? kInvalid : kSuccess;
}
