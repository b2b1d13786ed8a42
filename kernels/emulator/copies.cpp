// Barriers in shared memory, and the copies that arrive at them.
#include <algorithm>
#include <cstring>

#include "internal.h"
#include "tensor_map.h"

namespace emulator {

namespace {

constexpr uint64_t kMark = 0x7ff4baddbaddbadd;  // what an initialised barrier has in memory

Barrier& barrier_at(Block& block, uint32_t address, const char* what) {
    const auto found = block.barriers.find(address);
    if (found == block.barriers.end()) fail("%s at address %#x, where no barrier has been initialised", what, address);
    uint64_t mark;
    memcpy(&mark, &block.memory[address], 8);
    if (mark != kMark) fail("%s at address %#x, where the barrier has been overwritten", what, address);
    return found->second;
}

void complete(Barrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.pending = barrier.expected;
    barrier.phase++;
    wake_all(barrier.waiting);
}

void add_bytes(Barrier& barrier, int64_t bytes) {
    barrier.bytes += bytes;
    if (std::abs(barrier.bytes) >= 1 << 20) fail("a barrier expects %lld bytes", (long long)barrier.bytes);
}

void arrive(Barrier& barrier, uint32_t address) {
    if (barrier.pending == 0)
        fail("more than %u arrivals at the barrier at %#x, which still waits for %lld bytes", barrier.expected, address,
             (long long)barrier.bytes);
    barrier.pending--;
    complete(barrier);
}

const Map& decode(const void* map) {
    const Map& known = *static_cast<const Map*>(map);
    if (known.mark != Map::kMark) fail("%p is no tensor map", map);
    return known;
}

void mark_flight(Block& block, uint32_t to, uint32_t bytes) {
    check_products(block, to, bytes, "a copy");
    for (uint32_t at = to / 16; at < (to + bytes + 15) / 16; at++) {
        if (block.granules[at].flags & kFlight) fail("two copies to address %#x are under way", at * 16);
        block.granules[at].flags |= kFlight;
    }
    memset(&block.memory[to], 0xff, bytes);
}

void start(Copy copy) {
    check_place(copy.to, copy.bytes, 16, "a bulk copy");
    const Barrier& barrier = barrier_at(*copy.to_block, copy.barrier, "a bulk copy");
    if (!barrier.fenced) fail("a bulk copy arrives at the barrier at %#x, whose maker has not fenced it", copy.barrier);
    mark_flight(*copy.to_block, copy.to, copy.bytes);
    machine.copies.push_back(std::move(copy));
}

void write(Block& block, uint32_t to, const uint8_t* from, uint32_t bytes) {
    memcpy(&block.memory[to], from, bytes);
    for (uint32_t at = to / 16; at < (to + bytes + 15) / 16; at++) {
        Granule& granule = block.granules[at];
        granule.flags = kWritten;
    }
}

void write_box(const Copy& copy) {
    const Map& map = *reinterpret_cast<const Map*>(copy.map.data());
    const uint32_t row_bytes = map.box[0] * map.element;
    uint32_t counts[5] = {1, 1, 1, 1, 1}, rows = 1;
    for (int d = 1; d < map.rank; d++) rows *= counts[d] = (map.box[d] + map.steps[d] - 1) / map.steps[d];
    std::vector<uint8_t> row(row_bytes);
    for (uint32_t number = 0; number < rows; number++) {
        bool inside = true;
        uint64_t offset = 0;
        for (uint32_t d = 1, rest = number; d < map.rank; rest /= counts[d], d++) {
            const int64_t at = int64_t(copy.at[d]) + int64_t(rest % counts[d]) * map.steps[d];
            inside &= at >= 0 && at < int64_t(map.last[d]) + 1;
            offset += uint64_t(at) * map.strides[d - 1];
        }
        for (uint32_t x = 0; x < map.box[0]; x++) {
            const int64_t at = int64_t(copy.at[0]) + x;
            if (inside && at >= 0 && at < int64_t(map.last[0]) + 1)
                memcpy(&row[x * map.element], reinterpret_cast<const uint8_t*>(map.address + offset) + at * map.element,
                       map.element);
            else
                memset(&row[x * map.element], 0, map.element);
        }
        // The swizzle permutes 16-byte units by the bits of the address above those of a row.
        const uint32_t to = copy.to + number * row_bytes;
        for (uint32_t unit = 0; unit < row_bytes; unit += 16)
            write(*copy.to_block, map.swizzled ? swizzle(to + unit) : to + unit, &row[unit], 16);
    }
}

}  // namespace

void barrier_init(uint32_t address, uint32_t arrivals) {
    check_place(address, 8, 8, "a barrier");
    if (arrivals == 0 || arrivals >= 1 << 20) fail("a barrier of %u arrivals", arrivals);
    Block& block = *self()->owner;
    if (block.barriers.count(address)) fail("the barrier at %#x is initialised twice", address);
    memcpy(&block.memory[address], &kMark, 8);
    block.granules[address / 16].flags |= kWritten;
    block.barriers[address] = {arrivals, arrivals, 0, 0, false, self(), {}};
}

void barrier_init_fence() {
    for (auto& [address, barrier] : self()->owner->barriers)
        if (barrier.maker == self()) barrier.fenced = true;
}

void barrier_expect(uint32_t address, uint32_t bytes) {
    Barrier& barrier = barrier_at(*self()->owner, address, "an arrival");
    add_bytes(barrier, bytes);
    arrive(barrier, address);
    pause();
}

void barrier_arrive(uint32_t address, unsigned rank) {
    Block& block = block_of(rank);
    if (block.live == 0) fail("an arrival at the barrier at %#x of a block that has ended", address);
    Barrier& barrier = barrier_at(block, address, "an arrival");
    if (rank != here->rank && !barrier.fenced) fail("an arrival at the barrier at %#x, whose maker has not fenced it", address);
    arrive(barrier, address);
    pause();
}

void barrier_wait(uint32_t address, uint32_t parity) {
    Block& block = *self()->owner;
    for (;;) {
        Barrier& barrier = barrier_at(block, address, "a wait");
        if ((barrier.phase & 1) != parity) break;
        barrier.waiting.push_back(self());
        sleep("the barrier at %#x, parity %u", address, parity);
    }
    pause();
}

void check_map(const void* map) { decode(map); }

void load_tensor(uint32_t to, const void* map, uint32_t barrier, unsigned blocks, const int* at, int rank) {
    const Map& known = decode(map);
    if (known.rank != rank) fail("a copy by %d coordinates from a tensor of %u dimensions", rank, known.rank);
    if (to % (known.swizzled ? 128 : 16) != 0) fail("a bulk copy to address %#x of shared memory", to);
    uint32_t bytes = known.box[0] * known.element;
    for (int d = 1; d < rank; d++) bytes *= (known.box[d] + known.steps[d] - 1) / known.steps[d];
    Copy copy{nullptr, to, barrier, bytes, nullptr, std::vector<uint8_t>(sizeof(Map)), {}};
    memcpy(copy.map.data(), map, sizeof(Map));
    std::copy(at, at + rank, copy.at);
    if (blocks == 0) blocks = 1u << here->rank;
    for (unsigned i = 0; i < 16; i++) {
        if (!(blocks >> i & 1)) continue;
        copy.to_block = &block_of(i);
        if (copy.to_block->live == 0) fail("a bulk copy to a block that has ended");
        start(copy);
    }
    pause();
}

void load_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier) {
    if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("a bulk copy of %u bytes from %p", bytes, from);
    start({self()->owner, to, barrier, bytes, from, {}, {}});
    pause();
}

void finish_copy(size_t number) {
    const Copy copy = std::move(machine.copies[number]);
    machine.copies.erase(machine.copies.begin() + long(number));
    if (copy.map.empty())
        write(*copy.to_block, copy.to, static_cast<const uint8_t*>(copy.from), copy.bytes);
    else
        write_box(copy);
    Barrier& barrier = barrier_at(*copy.to_block, copy.barrier, "a bulk copy's end");
    add_bytes(barrier, -int64_t(copy.bytes));
    complete(barrier);
}

namespace {

void perform(Block& block, SmallCopy& copy) {
    if (copy.done) return;
    copy.done = true;
    if (copy.there)
        memcpy(&block.memory[copy.to], copy.from, 16);
    else
        memset(&block.memory[copy.to], 0, 16);
}

}  // namespace

// Starts a copy of 16 bytes, which no thread may read before the copying thread has waited.
void copy_async(uint32_t to, const void* from, bool there) {
    Thread& thread = *self();
    check_place(to, 16, 16, "a copy");
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("a copy of 16 bytes from %p", from);
    mark_flight(*thread.owner, to, 16);
    thread.copies.push_back({to, from, there, false, thread.copy_groups});
    if (chance(machine.copies_early)) perform(*thread.owner, thread.copies.back());
}

void copy_commit() { self()->copy_groups++; }

void copy_wait(int pending) {
    Thread& thread = *self();
    auto& copies = thread.copies;
    for (SmallCopy& copy : copies) {
        if (copy.group >= thread.copy_groups - pending) continue;
        perform(*thread.owner, copy);
        thread.owner->granules[copy.to / 16].flags = kWritten;
    }
    copies.erase(std::remove_if(copies.begin(), copies.end(),
                                [&](const SmallCopy& copy) { return copy.group < thread.copy_groups - pending; }),
                 copies.end());
    pause();
}

}  // namespace emulator
