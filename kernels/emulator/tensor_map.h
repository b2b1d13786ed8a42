// The contents of a CUtensorMap in the emulator.
#pragma once

#include <cstdint>

namespace emulator {

struct Map {
    static constexpr uint32_t kMark = 0x70616d74;
    uint32_t mark;
    uint8_t rank, element, swizzled, unused;
    uint64_t address;
    uint64_t strides[4];  // bytes, of the dimensions but the first
    uint32_t last[5];     // the greatest coordinate
    uint16_t box[5];
    uint8_t steps[5];
};
static_assert(sizeof(Map) <= 128);

// Applies the 128-byte swizzle to an address of shared memory.
inline uint32_t swizzle(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

}  // namespace emulator
