// Streams, events and copies of the driver's interface.
//
// The steps of a stream run in their order: as a rule each one as soon as it is enqueued, unless it waits for an event
// of a stream that is held. A held stream (`emulator_hold`) runs only what somebody waits for: the host, or another
// stream's step that runs. So a wait that is missing shows: with the copies held, what nobody waits for is never copied;
// with the kernels held, what waits for no kernel overwrites what it still reads.
#include "driver.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>

namespace {

using namespace emulator;

struct Stream;

// The state of an event, which steps keep.
struct Mark {
    uint64_t recorded = 0, passed = 0;
    std::weak_ptr<Stream> on;
    std::chrono::steady_clock::time_point at;
};
struct Event {
    std::shared_ptr<Mark> mark = std::make_shared<Mark>();
};

struct Step {
    Work work;
    // The event that the step records or waits for, and which of its records.
    std::shared_ptr<Mark> mark;
    uint64_t number = 0;
    bool records = false;
};

struct Stream {
    std::deque<Step> steps;
    bool held = false, running = false;
    int failure = kSuccess;
};

// One thread at a time runs steps.
std::recursive_mutex mutex;
std::set<std::shared_ptr<Stream>> streams;
std::map<uintptr_t, size_t> pinned;

using Lock = std::lock_guard<std::recursive_mutex>;

std::shared_ptr<Stream> find(void* stream) {
    for (const auto& each : streams)
        if (each.get() == stream) return each;
    return nullptr;
}

bool is_pinned(const void* memory, size_t bytes) {
    const auto from = reinterpret_cast<uintptr_t>(memory);
    auto after = pinned.upper_bound(from);
    if (after == pinned.begin()) return false;
    --after;
    return from + bytes <= after->first + after->second;
}

void advance(Stream& stream, bool forced, const std::function<bool()>& enough);

void advance_others() {
    for (const auto& each : std::set<std::shared_ptr<Stream>>(streams))
        if (!each->held) advance(*each, false, [] { return false; });
}

// Runs steps until there are enough or none is left; if it is not forced, also until one waits for another stream.
void advance(Stream& stream, bool forced, const std::function<bool()>& enough) {
    if (stream.running) return;
    stream.running = true;
    while (!stream.steps.empty() && !enough()) {
        const Step& next = stream.steps.front();
        if (next.mark && !next.records && next.mark->passed < next.number) {
            if (!forced) break;
            if (const auto on = next.mark->on.lock())
                advance(*on, true, [&] { return next.mark->passed >= next.number; });
            if (next.mark->passed < next.number) {
                std::fprintf(stderr, "emulator: streams wait for each other\n");
                std::abort();
            }
        }
        const Step step = std::move(stream.steps.front());
        stream.steps.pop_front();
        if (step.work.run) {
            const int result = step.work.run();
            if (stream.failure == kSuccess) stream.failure = result;
        }
        if (step.records) {
            step.mark->passed = step.number;
            step.mark->at = std::chrono::steady_clock::now();
            advance_others();
        }
    }
    stream.running = false;
}

int append(const std::shared_ptr<Stream>& stream, Step step) {
    stream->steps.push_back(std::move(step));
    if (!stream->held) advance(*stream, false, [] { return false; });
    return stream->failure;
}

int finish(const std::shared_ptr<Stream>& stream) {
    advance(*stream, true, [] { return false; });
    return stream->failure;
}

void* at(uint64_t address) { return reinterpret_cast<void*>(address); }

}  // namespace

namespace emulator {

int enqueue(void* handle, Work work) {
    const Lock lock(mutex);
    const auto stream = find(handle);
    return stream ? append(stream, {std::move(work), nullptr}) : work.run();
}

int finish_all() {
    const Lock lock(mutex);
    int failure = kSuccess;
    for (const auto& each : std::set<std::shared_ptr<Stream>>(streams))
        if (const int result = finish(each)) failure = result;
    return failure;
}

void check_unused(Span given, const char* what) {
    const Lock lock(mutex);
    for (const auto& each : streams)
        for (const Step& step : each->steps)
            for (const Span& span : step.work.spans)
                if (span.from < given.from + given.bytes && given.from < span.from + span.bytes) {
                    std::fprintf(stderr, "emulator: %s while a copy of %zu bytes of it has not run\n", what, span.bytes);
                    std::abort();
                }
}

}  // namespace emulator

// Holds a stream, or lets it go; tests ask for it.
extern "C" __attribute__((visibility("default"))) void emulator_hold(void* handle, int held) {
    const Lock lock(mutex);
    if (const auto stream = find(handle)) {
        stream->held = held != 0;
        if (!held) advance(*stream, false, [] { return false; });
    }
}

API cuStreamCreate(void** handle, unsigned) {
    const Lock lock(mutex);
    return *handle = streams.insert(std::make_shared<Stream>()).first->get(), kSuccess;
}
API cuStreamDestroy_v2(void* handle) {
    const Lock lock(mutex);
    const auto stream = find(handle);
    if (!stream) return kInvalid;
    finish(stream);
    streams.erase(stream);
    return kSuccess;
}
API cuStreamSynchronize(void* handle) {
    const Lock lock(mutex);
    const auto stream = find(handle);
    return stream ? finish(stream) : finish_all();
}
API cuStreamWaitEvent(void* handle, void* event, unsigned) {
    const Lock lock(mutex);
    const auto& mark = static_cast<Event*>(event)->mark;
    const auto stream = find(handle);
    return stream ? append(stream, {{}, mark, mark->recorded}) : kInvalid;
}
API cuLaunchHostFunc(void* stream, void (*function)(void*), void* argument) {
    return enqueue(stream, {[=] { return function(argument), int(kSuccess); }, {}});
}

API cuEventCreate(void** event, unsigned) { return *event = new Event, kSuccess; }
API cuEventDestroy_v2(void* event) { return delete static_cast<Event*>(event), kSuccess; }
API cuEventRecord(void* event, void* handle) {
    const Lock lock(mutex);
    const auto& mark = static_cast<Event*>(event)->mark;
    const auto stream = find(handle);
    if (!stream) return kInvalid;
    mark->on = stream;
    return append(stream, {{}, mark, ++mark->recorded, true});
}
API cuEventSynchronize(void* event) {
    const Lock lock(mutex);
    const auto& mark = static_cast<Event*>(event)->mark;
    const auto on = mark->on.lock();
    if (!on) return kSuccess;
    const uint64_t number = mark->recorded;
    advance(*on, true, [&] { return mark->passed >= number; });
    return on->failure;
}
API cuEventQuery(void* event) {
    const Lock lock(mutex);
    const auto& mark = static_cast<Event*>(event)->mark;
    return mark->passed < mark->recorded ? 600 : kSuccess;  // not ready
}
API cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    const auto difference = static_cast<Event*>(to)->mark->at - static_cast<Event*>(from)->mark->at;
    *milliseconds = std::chrono::duration<float, std::milli>(difference).count();
    return kSuccess;
}

API cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    *memory = std::malloc(bytes);
    const Lock lock(mutex);
    pinned[reinterpret_cast<uintptr_t>(*memory)] = bytes;
    return kSuccess;
}
API cuMemFreeHost(void* memory) {
    const Lock lock(mutex);
    const auto found = pinned.find(reinterpret_cast<uintptr_t>(memory));
    if (found == pinned.end()) return kInvalid;
    check_unused({found->first, found->second}, "pinned memory is freed");
    pinned.erase(found);
    return std::free(memory), kSuccess;
}
API cuMemHostRegister_v2(void* memory, size_t bytes, unsigned) {
    const Lock lock(mutex);
    pinned[reinterpret_cast<uintptr_t>(memory)] = bytes;
    return kSuccess;
}
API cuMemHostUnregister(void* memory) {
    const Lock lock(mutex);
    const auto found = pinned.find(reinterpret_cast<uintptr_t>(memory));
    if (found == pinned.end()) return kInvalid;
    check_unused({found->first, found->second}, "pinned memory is given back");
    pinned.erase(found);
    return kSuccess;
}

API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    const Lock lock(mutex);
    const std::vector<Span> spans = {{to, bytes}, {reinterpret_cast<uintptr_t>(from), bytes}};
    if (is_pinned(from, bytes)) return enqueue(stream, {[=] { return memcpy(at(to), from, bytes), int(kSuccess); }, spans});
    // The driver reads ordinary memory before it returns.
    const auto* first = static_cast<const uint8_t*>(from);
    const auto copy = std::make_shared<std::vector<uint8_t>>(first, first + bytes);
    return enqueue(stream, {[=] { return memcpy(at(to), copy->data(), bytes), int(kSuccess); }, {spans[0]}});
}
API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* handle) {
    const Lock lock(mutex);
    const std::vector<Span> spans = {{from, bytes}, {reinterpret_cast<uintptr_t>(to), bytes}};
    const int result = enqueue(handle, {[=] { return memcpy(to, at(from), bytes), int(kSuccess); }, spans});
    const auto stream = find(handle);
    // The driver has written ordinary memory when it returns.
    return is_pinned(to, bytes) || !stream ? result : finish(stream);
}
API cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) { return memcpy(at(to), from, bytes), kSuccess; }
API cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) { return memcpy(to, at(from), bytes), kSuccess; }
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    return enqueue(stream, {[=] { return memmove(at(to), at(from), bytes), int(kSuccess); }, {{to, bytes}, {from, bytes}}});
}
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* stream) {
    return enqueue(stream, {[=] { return memset(at(to), value, bytes), int(kSuccess); }, {{to, bytes}}});
}
