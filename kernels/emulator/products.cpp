// Matrix products, and conversions of the types of numbers that they use.
//
// A warpgroup's product waits in its queue until all threads have issued it, and is computed at once or when a thread
// waits for it. Until then the sum is kept here, and the threads' registers hold NaN.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "internal.h"
#include "tensor_map.h"

namespace emulator {

namespace {

constexpr int kRows = 64, kWarpgroup = 128, kMostColumns = 256, kStepBytes = 32;
constexpr uint32_t kSwizzled = 1, kPlain = 0;  // of descriptors

struct Descriptor {
    uint32_t start, leading, stride, swizzle;
};

Descriptor decode(uint64_t bits) {
    const Descriptor d{uint32_t(bits & 0x3fff) << 4, uint32_t(bits >> 16 & 0x3fff) << 4, uint32_t(bits >> 32 & 0x3fff) << 4,
                       uint32_t(bits >> 62)};
    if (bits & 0x3fffc000c000c000) fail("a matrix descriptor %#llx has bits that mean nothing here", (unsigned long long)bits);
    if (d.swizzle != kSwizzled && d.swizzle != kPlain) fail("a matrix descriptor asks for swizzle %u", d.swizzle);
    if (d.swizzle == kSwizzled && (d.start & 0x7f) + kStepBytes > 128) fail("a matrix descriptor leaves its rows at %#x", d.start);
    return d;
}

// Finds the bytes of an operand from its descriptor; the operand is contiguous along K and has `rows` rows along M or
// N.
void range_along(const Descriptor& d, int rows, uint32_t (&range)[2]) {
    const uint32_t last = (rows / 8 - 1) * d.stride;
    range[0] = d.swizzle == kSwizzled ? d.start & ~127u : d.start;
    range[1] = range[0] + last + (d.swizzle == kSwizzled ? 1024 : d.leading + 128);
}
void range_across(const Descriptor& d, int columns, uint32_t (&range)[2]) {
    range[0] = d.start;
    range[1] = d.start + (columns / 64 - 1) * d.leading + d.stride + 1024;
}

const uint8_t* read(Block& block, uint32_t address, uint32_t bytes) {
    check_place(address, bytes, bytes, "an operand");
    const Granule& granule = block.granules[address / 16];
    if (granule.flags & kFlight) fail("a product reads address %#x, to which a copy is under way", address);
    if (!(granule.flags & kWritten)) fail("a product reads address %#x, where nothing has been written", address);
    if (granule.flags & kGeneric && granule.fences == granule.writer->fences)
        fail("a product reads address %#x, which has been stored without a fence", address);
    return &block.memory[address];
}

float from_bf16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

template <class T>
void widen(T* to, const uint8_t* from, Kind kind, int bytes) {
    if (kind == Kind::kBf16) {
        for (int i = 0; i < bytes / 2; i++) {
            uint16_t bits;
            memcpy(&bits, from + 2 * i, 2);
            to[i] = T(from_bf16(bits));
        }
    } else {
        for (int i = 0; i < bytes; i++) to[i] = kind == Kind::kE4m3 ? T(from_e4m3(from[i])) : T(int8_t(from[i]));
    }
}

// Reads rows of an operand that is contiguous along K, as [row][k].
template <class T>
void read_along(Block& block, const Descriptor& d, int rows, Kind kind, T* to, int depth) {
    for (int row = 0; row < rows; row++)
        for (int half = 0; half < 2; half++) {
            const uint32_t group = d.start + row / 8 * d.stride;
            const uint32_t at = d.swizzle == kSwizzled ? swizzle(group + row % 8 * 128 + half * 16)
                                                       : group + row % 8 * 16 + half * d.leading;
            widen(to + row * depth + half * depth / 2, read(block, at, 16), kind, 16);
        }
}

// Cuts a sum of e4m3 products off to the bits that the tensor cores keep: kBits beside the leading one.
float keep_bits(float x) {
    constexpr int kBits = 13;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits &= ~0u << (23 - kBits);
    memcpy(&x, &bits, 4);
    return x;
}

// d[64][columns] (+)= a[64][depth] * b[depth][columns]
template <class T>
void accumulate(T* __restrict d, const T* __restrict a, const T* __restrict b, int columns, int depth, bool add, bool short_sums) {
    T sum[kMostColumns];
    for (int row = 0; row < kRows; row++) {
        for (int c = 0; c < columns; c++) sum[c] = 0;
        for (int k = 0; k < depth; k++) {
            const T left = a[row * depth + k];
            const T* right = b + k * columns;
            for (int c = 0; c < columns; c++) sum[c] += left * right[c];
        }
        T* to = d + row * columns;
        if (add)
            for (int c = 0; c < columns; c++) sum[c] += to[c];
        if constexpr (std::is_same_v<T, float>) {
            if (short_sums)
                for (int c = 0; c < columns; c++) sum[c] = keep_bits(sum[c]);
        }
        for (int c = 0; c < columns; c++) to[c] = sum[c];
    }
}

template <class T>
void execute(Block& block, Product& p, std::vector<T>& values) {
    static T a[kRows * kStepBytes], along[kMostColumns * kStepBytes], b[kMostColumns * kStepBytes];
    const int depth = p.kind == Kind::kBf16 ? 16 : 32;
    if (p.in_registers) {
        // Register 0 of a lane has 4 bytes of row lane / 4 from byte 4 (lane % 4) on, 1 those of the row 8 below, 2 and 3
        // the same 16 bytes on.
        for (int t = 0; t < kWarpgroup; t++)
            for (int r = 0; r < 4; r++) {
                const int row = t / 32 * 16 + t % 32 / 4 + r % 2 * 8;
                const int byte = t % 4 * 4 + r / 2 * 16;
                widen(a + row * depth + byte * depth / kStepBytes, reinterpret_cast<const uint8_t*>(p.registers[t] + r), p.kind, 4);
            }
    } else {
        read_along(block, decode(p.a), kRows, p.kind, a, depth);
    }
    const Descriptor d = decode(p.b);
    if (p.b_rows) {
        for (int k = 0; k < depth; k++)
            for (int c = 0; c < p.columns; c += 8) {
                const uint32_t at = d.start + c / 64 * d.leading + k / 8 * d.stride + k % 8 * 128 + c % 64 * 2;
                widen(b + k * p.columns + c, read(block, swizzle(at), 16), p.kind, 16);
            }
    } else {
        read_along(block, d, p.columns, p.kind, along, depth);
        for (int k = 0; k < depth; k++)
            for (int c = 0; c < p.columns; c++) b[k * p.columns + c] = along[c * depth + k];
    }
    accumulate(values.data(), a, b, p.columns, depth, p.accumulate, p.kind == Kind::kE4m3);
}

void execute(Product& p, Block& block) {
    if (p.kind == Kind::kS8)
        execute(block, p, p.sum->integers);
    else
        execute(block, p, p.sum->values);
    p.done = true;
}

// Goes through a sum and a thread's part of it: elements 4j, 4j + 1 are columns 8j + 2 (lane % 4) and the next of row
// lane / 4, and 4j + 2, 4j + 3 are these columns of the row 8 below.
template <class T, class F>
void exchange(std::vector<T>& values, int thread, F f) {
    const int columns = int(values.size()) / kRows;
    for (int i = 0; i < columns / 2; i++) {
        const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8;
        f(i, values[row * columns + i / 4 * 8 + thread % 4 * 2 + i % 2]);
    }
}

Group& group_of(Thread& thread) {
    if (int(thread.owner->warps.size()) < thread.number / kWarpgroup * 4 + 4) fail("a product by less than a warpgroup");
    return thread.owner->groups[thread.number / kWarpgroup];
}

void finish_ready(Group& group, Block& block) {
    for (Product& product : group.products) {
        if (product.issued < kWarpgroup) break;
        if (!product.done) execute(product, block);
    }
}

}  // namespace

float from_e4m3(uint8_t code) {
    static const auto table = [] {
        std::vector<float> all(256);
        for (int i = 0; i < 256; i++) {
            const int exponent = i >> 3 & 15, fraction = i & 7;
            const float magnitude = exponent == 15 && fraction == 7 ? NAN
                                    : exponent == 0                 ? float(fraction) / 512.f
                                                                    : std::ldexp(float(8 + fraction), exponent - 10);
            all[size_t(i)] = i & 128 ? -magnitude : magnitude;
        }
        return all;
    }();
    return table[code];
}

uint8_t to_e4m3(float x) {
    const uint8_t sign = std::signbit(x) ? 0x80 : 0;
    const float magnitude = std::fabs(x);
    if (std::isnan(x)) return 0x7f;
    if (magnitude >= 448.f) return sign | 0x7e;
    // Codes are in the order of their values, so a code follows from the unit of the last place and the number of
    // units.
    const int exponent = magnitude < 0x1p-6f ? -6 : std::ilogb(magnitude);
    const int units = int(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));
    return sign | uint8_t(((exponent + 6) << 3) + units);
}

uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void check_products(Block& block, uint32_t address, uint32_t bytes, const char* what) {
    for (const Group& group : block.groups)
        for (const Product& product : group.products) {
            if (product.waited) continue;
            for (const auto& range : product.ranges)
                if (address < range[1] && range[0] < address + bytes)
                    fail("%s to address %#x, which a product reads that has not been waited for", what, address);
        }
}

void mma(Kind kind, int columns, void* d, const uint32_t* registers, uint64_t a, uint64_t b, bool b_rows, bool accumulate) {
    Thread& thread = *self();
    Block& block = *thread.owner;
    Group& group = group_of(thread);
    const int number = thread.number % kWarpgroup;
    if (!thread.fenced) fail("a product without wgmma.fence since the last wait");
    if (columns % 8 != 0 || columns > kMostColumns || (b_rows && (kind != Kind::kBf16 || columns % 64 != 0)))
        fail("a product of %d columns", columns);
    if (b_rows && decode(b).swizzle != kSwizzled) fail("an operand by rows without swizzle");

    const size_t index = thread.issued++ - group.first;
    Thread::Active* active = nullptr;
    for (auto& one : thread.active)
        if (one.place == d) active = &one;
    if (index == group.products.size()) {
        group.products.emplace_back();
        Product& p = group.products.back();
        p.kind = kind;
        p.columns = columns;
        p.in_registers = registers != nullptr;
        p.b_rows = b_rows;
        p.accumulate = accumulate;
        p.a = a;
        p.b = b;
        p.group = thread.groups;
        p.ranges[0][0] = p.ranges[0][1] = 0;
        if (!registers) range_along(decode(a), kRows, p.ranges[0]);
        if (b_rows)
            range_across(decode(b), columns, p.ranges[1]);
        else
            range_along(decode(b), columns, p.ranges[1]);
        if (active != nullptr) {
            p.sum = active->sum;
        } else {
            group.sums.push_back(std::make_unique<Sum>());
            p.sum = group.sums.back().get();
            if (kind == Kind::kS8)
                p.sum->integers.resize(size_t(kRows) * columns);
            else
                p.sum->values.resize(size_t(kRows) * columns);
        }
    }
    Product& p = group.products[index];
    if (p.kind != kind || p.columns != columns || p.in_registers != (registers != nullptr) || p.b_rows != b_rows ||
        p.accumulate != accumulate || p.a != a || p.b != b || p.group != thread.groups ||
        (active != nullptr && active->sum != p.sum))
        fail("threads of a warpgroup issue different products");
    p.registers[number] = registers;
    if (active == nullptr) {
        // The registers belong to the tensor cores now: no thread may rely on what is in them.
        if (kind == Kind::kS8)
            exchange(p.sum->integers, number, [&](int i, int32_t& value) {
                value = static_cast<int32_t*>(d)[i];
                static_cast<int32_t*>(d)[i] = 0x55555555;
            });
        else
            exchange(p.sum->values, number, [&](int i, float& value) {
                value = static_cast<float*>(d)[i];
                static_cast<float*>(d)[i] = NAN;
            });
        p.sum->attached++;
        thread.active.push_back({p.sum, d, thread.groups});
    } else {
        active->last = thread.groups;
    }
    if (++p.issued == kWarpgroup) {
        if (chance(machine.products_early)) finish_ready(group, block);
        wake_all(group.waiting);
    }
}

void mma_fence() { self()->fenced = true; }
void mma_commit() {
    self()->groups++;
    pause();
}

void mma_wait(int pending) {
    Thread& thread = *self();
    Block& block = *thread.owner;
    Group& group = group_of(thread);
    const unsigned until = thread.groups > unsigned(pending) ? thread.groups - pending : 0;
    // Products complete in order; a product begins when all threads have issued it.
    for (; thread.passed < thread.issued; thread.passed++) {
        for (;;) {
            Product& product = group.products[thread.passed - group.first];
            if (product.group >= until || product.issued == kWarpgroup) break;
            group.waiting.push_back(&thread);
            sleep("a product that not all of the warpgroup have issued");
        }
        Product& product = group.products[thread.passed - group.first];
        if (product.group >= until) break;
        if (!product.done) finish_ready(group, block);
        product.waited = true;
        product.passed++;
    }
    while (!group.products.empty() && group.products.front().passed == kWarpgroup) {
        group.products.pop_front();
        group.first++;
    }
    const int number = thread.number % kWarpgroup;
    auto& active = thread.active;
    for (size_t i = 0; i < active.size();) {
        if (active[i].last >= until) {
            i++;
            continue;
        }
        Sum* sum = active[i].sum;
        if (!sum->integers.empty())
            exchange(sum->integers, number, [&](int j, int32_t& value) { static_cast<int32_t*>(active[i].place)[j] = value; });
        else
            exchange(sum->values, number, [&](int j, float& value) { static_cast<float*>(active[i].place)[j] = value; });
        if (--sum->attached == 0 &&
            std::none_of(group.products.begin(), group.products.end(), [&](const Product& p) { return p.sum == sum; }))
            group.sums.erase(std::find_if(group.sums.begin(), group.sums.end(), [&](const auto& s) { return s.get() == sum; }));
        active.erase(active.begin() + long(i));
    }
    thread.fenced = false;
    pause();
}

void end_of_thread() {
    Thread& thread = *self();
    if (thread.passed != thread.issued) fail("a thread ends with products that it has not waited for");
    if (!thread.copies.empty()) fail("a thread ends with copies that it has not waited for");
}

namespace {

struct Fragments {
    const uint32_t* in;
    uint32_t* out;
    uint32_t from;
};

}  // namespace

void load_matrices(uint32_t* x, uint32_t from, bool transposed) {
    Fragments mine{nullptr, x, from};
    meet(transposed ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, &mine,
         transposed ? +[](void* const* all, unsigned) {
             for (int matrix = 0; matrix < 4; matrix++)
                 for (int row = 0; row < 8; row++) {
                     uint16_t elements[8];
                     memcpy(elements, load_place(static_cast<Fragments*>(all[matrix * 8 + row])->from, 16), 16);
                     for (int column = 0; column < 8; column++) {
                         // Element (row, column) is (column, row) of what the lanes get.
                         auto* out = static_cast<Fragments*>(all[column * 4 + row / 2])->out;
                         reinterpret_cast<uint16_t*>(out + matrix)[row % 2] = elements[column];
                     }
                 }
         } : +[](void* const* all, unsigned) {
             for (int matrix = 0; matrix < 4; matrix++)
                 for (int row = 0; row < 8; row++) {
                     uint32_t pairs[4];
                     memcpy(pairs, load_place(static_cast<Fragments*>(all[matrix * 8 + row])->from, 16), 16);
                     for (int pair = 0; pair < 4; pair++)
                         static_cast<Fragments*>(all[row * 4 + pair])->out[matrix] = pairs[pair];
                 }
         });
}

namespace {

struct Operands {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
};

struct IntegerOperands {
    int* d;
    const uint32_t* a;
    uint32_t b[2];
    const int* c;
};

template <bool kSigned>
void multiply_all_integers(void* const* all, unsigned) {
    constexpr int kDepth = 32;
    int a[16][kDepth], b[kDepth][8], d[16][8] = {};
    for (int lane = 0; lane < 32; lane++) {
        const auto& operands = *static_cast<IntegerOperands*>(all[lane]);
        const int row = lane / 4, k = lane % 4 * 4;
        for (int i = 0; i < 4; i++) {
            for (int part = 0; part < 4; part++) {
                const uint8_t byte = uint8_t(operands.a[part] >> (8 * i));
                a[row + part % 2 * 8][k + part / 2 * 16 + i] = kSigned ? int8_t(byte) : int(byte);
            }
            for (int half = 0; half < 2; half++) b[k + half * 16 + i][row] = int8_t(operands.b[half] >> (8 * i));
        }
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < kDepth; k++)
            for (int c = 0; c < 8; c++) d[row][c] += a[row][k] * b[k][c];
    // The registers of the sum can be those of the summand.
    for (int lane = 0; lane < 32; lane++) {
        const auto& operands = *static_cast<IntegerOperands*>(all[lane]);
        for (int i = 0; i < 4; i++) {
            const int64_t sum = int64_t(operands.c[i]) + d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
            if (sum != int32_t(sum)) fail("a sum of integers leaves 32 bits");
            operands.d[i] = int32_t(sum);
        }
    }
}

template <bool kBf16>
void multiply_all(void* const* all, unsigned) {
    constexpr int kDepth = kBf16 ? 16 : 32, kFour = kDepth / 8;  // elements of 4 bytes
    float a[16][kDepth], b[kDepth][8], d[16][8] = {};
    const auto element = [](uint32_t bits, int i) {
        return kBf16 ? from_bf16(uint16_t(bits >> (16 * i))) : from_e4m3(uint8_t(bits >> (8 * i)));
    };
    for (int lane = 0; lane < 32; lane++) {
        const auto& operands = *static_cast<Operands*>(all[lane]);
        const int row = lane / 4, k = lane % 4 * kFour;
        for (int i = 0; i < kFour; i++) {
            for (int half = 0; half < 2; half++) {
                a[row][k + half * kDepth / 2 + i] = element(operands.a[2 * half], i);
                a[row + 8][k + half * kDepth / 2 + i] = element(operands.a[2 * half + 1], i);
                b[k + half * kDepth / 2 + i][row] = element(operands.b[half], i);
            }
        }
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < kDepth; k++)
            for (int c = 0; c < 8; c++) d[row][c] += a[row][k] * b[k][c];
    for (int lane = 0; lane < 32; lane++) {
        float* to = static_cast<Operands*>(all[lane])->d;
        for (int i = 0; i < 4; i++) {
            const float sum = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] + to[i];
            to[i] = kBf16 ? sum : keep_bits(sum);
        }
    }
}

}  // namespace

void multiply(Kind kind, float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    Operands mine{d, a, {b0, b1}};
    if (kind == Kind::kBf16)
        meet("mma.sync of bf16", 0xffffffffu, &mine, multiply_all<true>);
    else
        meet("mma.sync of e4m3", 0xffffffffu, &mine, multiply_all<false>);
}

void multiply_integers(bool is_signed, int* d, const uint32_t* a, uint32_t b0, uint32_t b1, const int* c) {
    IntegerOperands mine{d, a, {b0, b1}, c};
    if (is_signed)
        meet("mma.sync of s8", 0xffffffffu, &mine, multiply_all_integers<true>);
    else
        meet("mma.sync of u8", 0xffffffffu, &mine, multiply_all_integers<false>);
}

}  // namespace emulator
