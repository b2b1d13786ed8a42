// What the files of the driver's interface share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

namespace emulator {

enum Result { kSuccess = 0, kInvalid = 1, kOutOfMemory = 2, kInvalidImage = 200, kNotFound = 500, kLaunchFailed = 719 };

// ---- driver.cpp: the GPU's memory

// Returns whether so much memory was left, which is then taken.
bool take_memory(size_t bytes);
void return_memory(size_t bytes);

// ---- streams.cpp

struct Span {
    uintptr_t from;
    size_t bytes;
};
// A step of a stream, and the memory that it reads and writes, as far as that is known.
struct Work {
    std::function<int()> run;
    std::vector<Span> spans;
};
// Appends a step to a stream. It runs at once, or when the stream gets there.
int enqueue(void* stream, Work work);
// Runs everything that is enqueued.
int finish_all();
// Ends the program if a copy from or to these bytes has not run: whoever gives them up must wait first.
void check_unused(Span span, const char* what);

}  // namespace emulator
