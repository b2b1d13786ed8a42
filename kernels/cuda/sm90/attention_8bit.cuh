// Constants that the 8-bit attention of Hopper and the kernels that prepare its operands share.
#pragma once

#include "../any/attention_rows.cuh"
#include "hopper.cuh"

namespace eight_bit {

constexpr int kKeys = 96;  // keys of a tile: one scale of K, one image of V

}  // namespace eight_bit
