// What Hopper's kernels share beside the instructions: the size of a warpgroup, and descriptors of matrices in shared
// memory.
#pragma once

#include <instructions/hopper.cuh>

namespace hopper {

constexpr int kWarpgroup = 128;  // threads that issue one wgmma together

// Returns the matrix descriptor of a tile in shared memory whose rows of 128 bytes are swizzled as the copy engine
// writes them. `group_stride`: bytes from 8 rows to the next 8. `panel_stride`: bytes from one 128-byte column panel to
// the next; only read for operands that are contiguous along M or N.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t group_stride, uint32_t panel_stride) {
    constexpr uint64_t kSwizzle128 = uint64_t(1) << 62;
    return kSwizzle128 | (uint64_t(group_stride >> 4) << 32) | (uint64_t(panel_stride >> 4) << 16) |
           ((address & 0x3ffff) >> 4);
}

// Returns the descriptor of a tile without swizzle, of blocks of 8 rows by 16 bytes: `block_stride` bytes to the next
// 16 bytes of the same rows.
__device__ __forceinline__ uint64_t descriptor_unswizzled(uint32_t address, uint32_t group_stride, uint32_t block_stride) {
    return (uint64_t(group_stride >> 4) << 32) | (uint64_t(block_stride >> 4) << 16) | ((address & 0x3ffff) >> 4);
}

}  // namespace hopper
