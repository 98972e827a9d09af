// Local and global tensors, queues and the pipe that owns the unified buffer.
#ifndef PANGU_HOST_TENSOR_H
#define PANGU_HOST_TENSOR_H

#include <deque>
#include <exception>

#include "core.h"
#include "support.h"

namespace host {
inline const char *PipeName(pipe_t p) {
    static const char *names[] = {"scalar", "vector", "MTE2 (copy in)", "MTE3 (copy out)", "all"};
    return names[p];
}

// A buffer in the unified buffer. It remembers which pipe wrote and read it last, at which barrier, because on the chip the pipes run side by
// side: data of another pipe needs a queue or PipeBarrier<PIPE_ALL>, and within the vector pipe a result needs PipeBarrier<PIPE_V>.
struct UbBuffer {
    enum State { FREE, ALLOCATED, QUEUED, DEQUEUED, STATIC };
    struct Access {
        bool set = false;
        pipe_t pipe = PIPE_S;
        uint64_t allBarriers = 0;
        uint32_t visible = 0;  // bit for each pipe that a queue has made wait for this access
    };
    struct Range {
        uint64_t begin, end;
    };
    std::vector<uint8_t> data;
    State state = STATIC;
    uint64_t ticket = 0;  // grows with each AllocTensor, so that a tensor kept after FreeTensor is told apart
    Access write, read[4];
    std::vector<Range> pending;  // bytes that the vector pipe wrote since its last barrier
    uint64_t pendingBarriers = 0;

    static bool Ordered(const Access &a, pipe_t pipe) {
        return !a.set || a.allBarriers != ThisCore().allBarriers || (a.visible >> pipe & 1) != 0;
    }
    static Access Now(pipe_t pipe) { return {true, pipe, ThisCore().allBarriers, 0}; }
    static uint64_t VectorBarriers() { return ThisCore().allBarriers + ThisCore().vectorBarriers; }

    void Read(pipe_t pipe, Range range, const char *api) {
        Require(write.pipe == pipe || Ordered(write, pipe), api, std::string("pipe ") + PipeName(pipe) + " reads what pipe " + PipeName(write.pipe) +
                                                                     " wrote, with no EnQue/DeQue and no PipeBarrier<PIPE_ALL> in between");
        const bool stale = pipe != PIPE_V || pendingBarriers != VectorBarriers();
        for (const Range &r : pending) {
            Require(stale || r.end <= range.begin || range.end <= r.begin, api,
                    "reads the result of a vector instruction without PipeBarrier<PIPE_V> in between");
        }
        read[pipe] = Now(pipe);
    }
    void Write(pipe_t pipe, Range range, const char *api) {
        Require(write.pipe == pipe || Ordered(write, pipe), api, std::string("pipe ") + PipeName(pipe) + " overwrites what pipe " +
                                                                     PipeName(write.pipe) + " wrote, with no PipeBarrier<PIPE_ALL> in between");
        for (pipe_t p : {PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3}) {
            Require(p == pipe || Ordered(read[p], pipe), api, std::string("pipe ") + PipeName(pipe) + " overwrites what pipe " + PipeName(p) +
                                                                  " may still read, with no PipeBarrier<PIPE_ALL> in between");
        }
        write = Now(pipe);
        if (pendingBarriers != VectorBarriers()) {
            pending.clear();
            pendingBarriers = VectorBarriers();
        }
        if (pipe == PIPE_V) {
            pending.push_back(range);
        }
    }
    void Forget() {
        write = Access{};
        pending.clear();
        for (auto &r : read) {
            r = Access{};
        }
    }
};
}  // namespace host

namespace AscendC {
inline int64_t GetBlockIdx() {
    HOST_CALL(GetBlockIdx, void, void);
    return host::ThisCore().index;
}
inline int64_t GetBlockNum() {
    HOST_CALL(GetBlockNum, void, void);
    return host::ThisCore().launch->cores;
}

template <typename T>
class LocalTensor {
    HOST_CALL(LocalTensor, T, T);

  public:
    T GetValue(uint32_t i) const { return *Span(i, 1, PIPE_S, false, "LocalTensor::GetValue"); }
    void SetValue(uint32_t i, T v) const { *Span(i, 1, PIPE_S, true, "LocalTensor::SetValue") = v; }
    uint32_t GetSize() const { return static_cast<uint32_t>((buffer->data.size() - offset) / sizeof(T)); }
    LocalTensor operator[](uint32_t i) const {
        LocalTensor t = *this;
        t.offset += i * sizeof(T);
        return t;
    }
    template <typename U>
    LocalTensor<U> ReinterpretCast() const {
        LocalTensor<U> t;
        t.buffer = buffer;
        t.offset = offset;
        t.ticket = ticket;
        return t;
    }
    // The elements [first, first + count), checked for lifetime, extent and order between pipes. Instructions start at whole blocks.
    T *Span(uint64_t first, uint64_t count, pipe_t pipe, bool write, const char *api) const {
        host::Require(buffer != nullptr, api, "LocalTensor has no memory");
        host::Require(buffer->ticket == ticket && buffer->state != host::UbBuffer::FREE, api, "LocalTensor is used after FreeTensor");
        host::Require(pipe == PIPE_S || offset % host::BLOCK == 0, api, "LocalTensor does not start at a multiple of 32 bytes");
        const uint64_t end = offset + (first + count) * sizeof(T);
        host::Require(end <= buffer->data.size(), api, "needs " + host::Text(end) + " of the " + host::Text(buffer->data.size()) + " bytes of its LocalTensor");
        const host::UbBuffer::Range range{end - count * sizeof(T), end};
        write ? buffer->Write(pipe, range, api) : buffer->Read(pipe, range, api);
        return reinterpret_cast<T *>(buffer->data.data() + offset) + first;
    }

    host::UbBuffer *buffer = nullptr;
    uint64_t offset = 0, ticket = 0;
};

template <typename T>
class GlobalTensor {
    HOST_CALL(GlobalTensor, T, T);

  public:
    void SetGlobalBuffer(T *address, uint64_t size) {
        address_ = address;
        size_ = size;
        buffer_ = &host::FindBuffer(address, "SetGlobalBuffer");
        host::CheckExtent(*buffer_, reinterpret_cast<uint8_t *>(address), size * sizeof(T), "SetGlobalBuffer");
    }
    uint64_t GetSize() const { return size_; }
    const T *GetPhyAddr() const { return address_; }
    T GetValue(uint64_t i) const { return *Read(i, 1, "GlobalTensor::GetValue"); }
    void SetValue(uint64_t i, T v) { *Write(i, 1, true, "GlobalTensor::SetValue") = v; }
    GlobalTensor operator[](uint64_t i) const {
        GlobalTensor t;
        t.address_ = address_ + i;
        t.size_ = i <= size_ ? size_ - i : 0;
        t.buffer_ = buffer_;
        return t;
    }
    T *Read(uint64_t first, uint64_t count, const char *api) const {
        host::Require(buffer_ != nullptr, api, "GlobalTensor without SetGlobalBuffer");
        host::CheckRead(*buffer_, address_ + first, count * sizeof(T), api);
        return Inside(first, count, api);
    }
    T *Write(uint64_t first, uint64_t count, bool scalar, const char *api) const {
        host::Require(buffer_ != nullptr, api, "GlobalTensor without SetGlobalBuffer");
        host::CheckWrite(*buffer_, address_ + first, count * sizeof(T), scalar, api);
        return Inside(first, count, api);
    }

  private:
    T *Inside(uint64_t first, uint64_t count, const char *api) const {
        host::Require(first + count <= size_, api, "element " + host::Text(first + count - 1) + " of a GlobalTensor of " + host::Text(size_));
        return address_ + first;
    }
    T *address_ = nullptr;
    uint64_t size_ = 0;
    host::GmBuffer *buffer_ = nullptr;
};

// Queue between two pipes: the buffer goes free -> AllocTensor -> EnQue -> DeQue -> FreeTensor.
template <TPosition SRC, TPosition DST, int32_t DEPTH>
class TQueBind {
    HOST_CALL(TQueBind, void, void);

  public:
    static constexpr pipe_t PRODUCER = SRC == TPosition::VECIN ? PIPE_MTE2 : PIPE_V;
    static constexpr pipe_t CONSUMER = DST == TPosition::VECOUT ? PIPE_MTE3 : PIPE_V;
    template <typename T>
    LocalTensor<T> AllocTensor() {
        for (auto &b : buffers) {
            if (b->state == host::UbBuffer::FREE) {
                b->state = host::UbBuffer::ALLOCATED;
                ++b->ticket;
                b->Forget();
                return Tensor<T>(b.get());
            }
        }
        host::Fail("AllocTensor", "all " + host::Text(buffers.size()) + " buffers of the queue are taken (FreeTensor is missing)");
    }
    template <typename T>
    bool EnQue(const LocalTensor<T> &t) {
        host::UbBuffer &b = Own(t, "EnQue");
        host::Require(b.state == host::UbBuffer::ALLOCATED, "EnQue", "the tensor does not come from AllocTensor of this queue");
        host::Require(queued_.size() < static_cast<size_t>(DEPTH), "EnQue", "more tensors wait than the depth of the queue");
        b.state = host::UbBuffer::QUEUED;
        queued_.push_back(&b);
        return true;
    }
    template <typename T>
    LocalTensor<T> DeQue() {
        host::Require(!queued_.empty(), "DeQue", "the queue is empty (EnQue is missing); the chip would wait for ever");
        host::UbBuffer *b = queued_.front();
        queued_.pop_front();
        b->state = host::UbBuffer::DEQUEUED;
        if (b->write.pipe == PRODUCER) {
            b->write.visible |= 1u << CONSUMER;
        }
        return Tensor<T>(b);
    }
    template <typename T>
    void FreeTensor(LocalTensor<T> &t) {
        host::UbBuffer &b = Own(t, "FreeTensor");
        host::Require(b.state != host::UbBuffer::FREE && b.ticket == t.ticket, "FreeTensor", "the tensor is free already");
        b.state = host::UbBuffer::FREE;
    }
    ~TQueBind() {
        for (auto &b : buffers) {
            if (b->state != host::UbBuffer::FREE && !std::uncaught_exceptions()) {
                host::ThisCore().leaks.push_back("a tensor of a queue is never freed (FreeTensor is missing)");
            }
        }
    }
    std::vector<std::unique_ptr<host::UbBuffer>> buffers;

  private:
    template <typename T>
    static LocalTensor<T> Tensor(host::UbBuffer *b) {
        LocalTensor<T> t;
        t.buffer = b;
        t.ticket = b->ticket;
        return t;
    }
    template <typename T>
    host::UbBuffer &Own(const LocalTensor<T> &t, const char *api) {
        for (auto &b : buffers) {
            if (b.get() == t.buffer) {
                return *b;
            }
        }
        host::Fail(api, "the tensor does not belong to this queue");
    }
    std::deque<host::UbBuffer *> queued_;
};

template <TPosition P, int32_t DEPTH>
class TQue : public TQueBind<P, P, DEPTH> {};  // VECIN: copy in to vector; VECOUT: vector to copy out

template <TPosition P = TPosition::VECCALC>
class TBuf {
    HOST_CALL(TBuf, void, void);

  public:
    template <typename T>
    LocalTensor<T> Get() {
        host::Require(buffer != nullptr, "TBuf::Get", "InitBuffer is missing");
        LocalTensor<T> t;
        t.buffer = buffer.get();
        return t;
    }
    std::unique_ptr<host::UbBuffer> buffer;
};

class TPipe {
    HOST_CALL(TPipe, void, void);

  public:
    TPipe() { host::ThisCore().ubUsed = 0; }
    template <TPosition S, TPosition D, int32_t DEPTH>
    void InitBuffer(TQueBind<S, D, DEPTH> &queue, uint8_t count, uint32_t bytes) {
        uint64_t &events = events_[TQueBind<S, D, DEPTH>::PRODUCER][TQueBind<S, D, DEPTH>::CONSUMER];
        events += count;
        host::Require(events <= host::QUEUE_EVENTS, "InitBuffer", "queues between the same two pipes have " + host::Text(events) + " buffers; the chip has " +
                                                                      host::Text(host::QUEUE_EVENTS) + " events for them");
        for (uint8_t i = 0; i < count; ++i) {
            queue.buffers.push_back(Take(bytes));
            queue.buffers.back()->state = host::UbBuffer::FREE;
        }
    }
    template <TPosition P>
    void InitBuffer(TBuf<P> &buf, uint32_t bytes) {
        buf.buffer = Take(bytes);
    }

  private:
    // Fresh memory is filled with 0xFF, which is NaN in every float type, so that a value never written shows in the result.
    static std::unique_ptr<host::UbBuffer> Take(uint32_t bytes) {
        host::Core &core = host::ThisCore();
        core.ubUsed += host::RoundUp(bytes, host::BLOCK);
        core.ubPeak = core.ubUsed > core.ubPeak ? core.ubUsed : core.ubPeak;
        host::Require(core.ubUsed <= host::UB_BYTES, "InitBuffer", "needs " + host::Text(core.ubUsed) + " of the " + host::Text(host::UB_BYTES) +
                                                                       " bytes of the unified buffer");
        auto b = std::make_unique<host::UbBuffer>();
        b->data.assign(host::RoundUp(bytes, host::BLOCK), 0xFF);
        return b;
    }
    uint64_t events_[PIPE_ALL][PIPE_ALL] = {};  // buffers of queues by producer and consumer
};
}  // namespace AscendC
#endif
