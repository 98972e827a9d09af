// What one simulated core knows, the global memory that all cores share, and the barrier between them.
#ifndef PANGU_HOST_CORE_H
#define PANGU_HOST_CORE_H

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "types.h"

namespace host {
// One tensor (or the workspace) in global memory. Writers are kept for every 32 bytes, so that two cores that touch the same block, or a
// core that reads what another wrote without SyncAll in between, are found.
struct GmBuffer {
    std::string name;
    uint8_t *base;
    uint64_t bytes;
    bool writable, workspace;
    struct Writer {
        int core = -1;
        uint32_t epoch = 0;
        bool scalar = false;
    };
    std::vector<Writer> writers;
};

// Barrier that reports a core which never arrives instead of waiting for ever.
class Barrier {
  public:
    explicit Barrier(uint32_t cores) : active_(cores) {}
    void Wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        Require(!broken_, "SyncAll", "another core stopped before it arrived");
        const uint32_t round = round_;
        if (++waiting_ == active_ && !left_) {
            waiting_ = 0;
            ++round_;
            condition_.notify_all();
            return;
        }
        broken_ = left_;
        condition_.notify_all();
        condition_.wait(lock, [&] { return round_ != round || broken_; });
        Require(round_ != round, "SyncAll", "another core stopped before it arrived");
    }
    void Leave() {
        std::lock_guard<std::mutex> lock(mutex_);
        left_ = true;
        broken_ = broken_ || waiting_ > 0;
        condition_.notify_all();
    }

  private:
    std::mutex mutex_;
    std::condition_variable condition_;
    uint32_t active_, waiting_ = 0, round_ = 0;
    bool left_ = false, broken_ = false;
};

struct Launch {
    explicit Launch(uint32_t cores) : cores(cores), barrier(cores) {}
    uint32_t cores;
    Barrier barrier;
    std::vector<GmBuffer> buffers;
    std::mutex mutex;
    uint64_t tilingBytes = 0;
};

struct Core {
    Launch *launch = nullptr;
    uint32_t index = 0, epoch = 0;      // epoch: number of SyncAll so far
    uint64_t ubUsed = 0, ubPeak = 0;
    uint64_t allBarriers = 1, vectorBarriers = 1;  // number of PipeBarrier so far, from which a missing one is told
    std::vector<std::string> leaks;     // queue buffers that were still taken when their queue ended
};
inline Core &ThisCore() {
    static thread_local Core core;
    return core;
}

inline GmBuffer &FindBuffer(const void *address, const char *api) {
    const auto *p = static_cast<const uint8_t *>(address);
    for (auto &b : ThisCore().launch->buffers) {
        if (p >= b.base && p <= b.base + b.bytes) {
            return b;
        }
    }
    Fail(api, "the address belongs to no tensor in global memory");
}

inline void CheckExtent(const GmBuffer &b, const uint8_t *p, uint64_t bytes, const char *api) {
    const uint64_t begin = p - b.base;
    Require(begin + bytes <= b.bytes, api,
            "bytes " + Text(begin) + " to " + Text(begin + bytes) + " lie beyond the end of " + b.name + " in global memory (" + Text(b.bytes) + " bytes)");
}

inline void CheckRead(GmBuffer &b, const void *address, uint64_t bytes, const char *api) {
    const auto *p = static_cast<const uint8_t *>(address);
    CheckExtent(b, p, bytes, api);
    if (!b.workspace || bytes == 0) {
        return;
    }
    Core &core = ThisCore();
    std::lock_guard<std::mutex> lock(core.launch->mutex);
    for (uint64_t k = (p - b.base) / BLOCK; k <= (p - b.base + bytes - 1) / BLOCK; ++k) {
        const auto &w = b.writers[k];
        Require(w.core >= 0, api, "reads workspace that no core has written");
        Require(w.core == static_cast<int>(core.index) || w.epoch < core.epoch, api, "reads workspace that another core wrote, without SyncAll in between");
    }
}

// On ascend910 a core may not share a 32-byte block of an output with another core. A scalar store goes through the core's data cache, which
// writes back whole lines of 64 bytes: no other core may write the line, and no copy may follow into it.
inline void CheckWrite(GmBuffer &b, const void *address, uint64_t bytes, bool scalar, const char *api) {
    const auto *p = static_cast<const uint8_t *>(address);
    CheckExtent(b, p, bytes, api);
    Require(b.writable, api, "writes to the input " + b.name);
    if (bytes == 0) {
        return;
    }
    Core &core = ThisCore();
    std::lock_guard<std::mutex> lock(core.launch->mutex);
    const uint64_t begin = p - b.base, end = begin + bytes, line = 2 * BLOCK;
    for (uint64_t k = begin / line * line / BLOCK; k < RoundUp(end, line) / BLOCK && k < b.writers.size(); ++k) {
        auto &w = b.writers[k];
        const bool other = w.core >= 0 && w.core != static_cast<int>(core.index);
        const bool touched = k >= begin / BLOCK && k < RoundUp(end, BLOCK) / BLOCK;
        Require(b.workspace || !other || !(scalar || w.scalar), api, "two cores write into the same 64 bytes of " + b.name + ", one of them by scalar stores");
        Require(b.workspace || !other || !touched || HOST_CHIP >= 220, api, "two cores write into the same 32 bytes of " + b.name);
        Require(scalar || !w.scalar, api, "copies into a cache line of " + b.name + " that holds scalar stores");
        if (touched) {
            w = {static_cast<int>(core.index), core.epoch, scalar};
        }
    }
}

inline void RunCore(Launch &launch, uint32_t index, void (*body)(void *), void *argument, std::string &error) {
    ThisCore() = Core{};
    ThisCore().launch = &launch;
    ThisCore().index = index;
    try {
        body(argument);
        Require(ThisCore().leaks.empty(), "FreeTensor", ThisCore().leaks.empty() ? "" : ThisCore().leaks.front());
    } catch (const std::exception &e) {
        error = e.what();
    }
    launch.barrier.Leave();
}

// Runs the body once for each core, at the same time; the first real error wins over those that follow from it.
inline std::string RunCores(Launch &launch, void (*body)(void *), void *argument) {
    std::vector<std::string> errors(launch.cores);
    std::vector<std::thread> threads;
    for (uint32_t c = 0; c < launch.cores; ++c) {
        threads.emplace_back([&, c] { RunCore(launch, c, body, argument, errors[c]); });
    }
    for (auto &t : threads) {
        t.join();
    }
    std::string found;
    for (uint32_t c = 0; c < launch.cores; ++c) {
        const bool consequence = errors[c].find("another core stopped") != std::string::npos;
        if (!errors[c].empty() && (found.empty() || !consequence)) {
            found = "core " + Text(c) + ": " + errors[c];
        }
    }
    return found;
}
}  // namespace host
#endif
