// What all kernels share: copies of any length on both chips, shares of the work, and the synchronisation of cores.
#ifndef PANGU_TILE_IO_H
#define PANGU_TILE_IO_H

#include "kernel_operator.h"

namespace pangu {
using namespace AscendC;

constexpr uint32_t BLOCK_BYTES = 32;  // unit of every copy between global memory and the unified buffer
constexpr uint32_t QUEUE_BUFFERS = 2;
// Shares of cores are multiples of this many rows or elements: with 4-byte elements one cache line, so that no two cores touch the same.
constexpr uint32_t SHARE_UNIT = 16;

// Buffers of each of `queues` queues between the same two pipes: two, so that copies and vector instructions overlap, where the events of the
// chip suffice (a buffer holds one of 4 on ascend910, of 8 on ascend910b, while it is free).
__aicore__ constexpr uint32_t QueueBuffers(uint32_t queues) {
    return (__CCE_AICORE__ >= 220 ? 8 : 4) / queues >= QUEUE_BUFFERS ? QUEUE_BUFFERS : 1;
}

__aicore__ inline uint32_t CeilDiv(uint32_t a, uint32_t b) { return (a + b - 1) / b; }
__aicore__ inline uint32_t RoundUp(uint32_t a, uint32_t unit) { return CeilDiv(a, unit) * unit; }
__aicore__ inline uint32_t Min(uint32_t a, uint32_t b) { return a < b ? a : b; }
__aicore__ inline uint32_t Max(uint32_t a, uint32_t b) { return a > b ? a : b; }

// The share [begin, end) of this core in `total` elements: `units` times SHARE_UNIT for each core, what is left over goes to the last one at work.
struct Share {
    uint32_t begin = 0, end = 0;
    __aicore__ inline void Init(uint32_t total, uint32_t units) {
        const uint32_t whole = total / SHARE_UNIT;
        const uint32_t core = static_cast<uint32_t>(GetBlockIdx());
        const uint32_t last = whole == 0 ? 0 : (whole - 1) / units;
        begin = Min(core * units, whole) * SHARE_UNIT;
        end = core == last ? total : Min((core + 1) * units, whole) * SHARE_UNIT;
        if (core > last) {
            begin = end;
        }
    }
};

// Copies rows of any length between global memory and the unified buffer, touching nothing beside them.
// ascend910b: DataCopyPad takes any number of bytes. ascend910: only multiples of 32 bytes exist. A load reads on into the next row where there
// is one and takes the last elements of a tensor one by one. A store writes whole blocks, then the last 32 bytes of the row once more from a
// staging block; a row shorter than a block goes element by element, for which the tiling must leave the tensor to a single core.
template <typename T>
class RowIo {
  public:
    static constexpr uint32_t LENGTH = BLOCK_BYTES / sizeof(T);

    __aicore__ inline RowIo() {}
    __aicore__ inline void Init(TPipe &pipe) {
#if __CCE_AICORE__ < 220
        pipe.InitBuffer(staging_, BLOCK_BYTES);
#endif
    }

    // `rows` pieces of `count` elements, `stride` apart in global memory and `pitch` (a multiple of a block) apart in the unified buffer
    __aicore__ inline void Load(const LocalTensor<T> &to, const GlobalTensor<T> &from, uint64_t offset, uint32_t count, uint32_t rows = 1,
                                uint32_t pitch = 0, uint32_t stride = 0) {
#if __CCE_AICORE__ >= 220
        const uint32_t gap = rows > 1 ? stride - count : 0;
        const uint32_t pad = rows > 1 ? (pitch - RoundUp(count, LENGTH)) / LENGTH : 0;
        DataCopyExtParams copy{static_cast<uint16_t>(rows), static_cast<uint32_t>(count * sizeof(T)), static_cast<uint32_t>(gap * sizeof(T)), pad, 0};
        DataCopyPadExtParams<T> padding{false, 0, 0, static_cast<T>(0)};
        DataCopyPad(to, from[offset], copy, padding);
#else
        for (uint32_t row = 0; row < rows; ++row) {
            LoadRow(to[row * pitch], from, offset + static_cast<uint64_t>(row) * stride, count);
        }
#endif
    }

    __aicore__ inline void Store(const GlobalTensor<T> &to, uint64_t offset, const LocalTensor<T> &from, uint32_t count, uint32_t rows = 1,
                                 uint32_t pitch = 0, uint32_t stride = 0) {
#if __CCE_AICORE__ >= 220
        const uint32_t gap = rows > 1 ? stride - count : 0;
        const uint32_t pad = rows > 1 ? (pitch - RoundUp(count, LENGTH)) / LENGTH : 0;
        DataCopyExtParams copy{static_cast<uint16_t>(rows), static_cast<uint32_t>(count * sizeof(T)), pad, static_cast<uint32_t>(gap * sizeof(T)), 0};
        DataCopyPad(to[offset], from, copy);
#else
        for (uint32_t row = 0; row < rows; ++row) {
            StoreRow(to, offset + static_cast<uint64_t>(row) * stride, from[row * pitch], count);
        }
#endif
    }

  private:
#if __CCE_AICORE__ < 220
    __aicore__ inline void LoadRow(const LocalTensor<T> &to, const GlobalTensor<T> &from, uint64_t offset, uint32_t count) {
        const uint32_t rounded = RoundUp(count, LENGTH);
        if (offset + rounded <= from.GetSize()) {
            DataCopy(to, from[offset], rounded);
            return;
        }
        const uint32_t whole = count / LENGTH * LENGTH;
        if (whole > 0) {
            DataCopy(to, from[offset], whole);
        }
        PipeBarrier<PIPE_ALL>();
        for (uint32_t i = whole; i < count; ++i) {
            to.SetValue(i, from.GetValue(offset + i));
        }
        PipeBarrier<PIPE_ALL>();
    }

    __aicore__ inline void StoreRow(const GlobalTensor<T> &to, uint64_t offset, const LocalTensor<T> &from, uint32_t count) {
        const uint32_t whole = count / LENGTH * LENGTH;
        if (whole > 0) {
            DataCopy(to[offset], from, whole);
        }
        if (whole == count) {
            return;
        }
        PipeBarrier<PIPE_ALL>();
        if (whole == 0) {
            GlobalTensor<T> target = to;  // SetValue is no const member
            for (uint32_t i = 0; i < count; ++i) {
                target.SetValue(offset + i, from.GetValue(i));
            }
        } else {
            LocalTensor<T> block = staging_.template Get<T>();
            for (uint32_t i = 0; i < LENGTH; ++i) {
                block.SetValue(i, from.GetValue(count - LENGTH + i));
            }
            PipeBarrier<PIPE_ALL>();
            DataCopy(to[offset + count - LENGTH], block, LENGTH);
        }
        PipeBarrier<PIPE_ALL>();
    }

    TBuf<TPosition::VECCALC> staging_;
#endif
};

// One barrier of all cores. ascend910b has it in hardware; ascend910 needs a flag of 32 bytes for each core at the start of the workspace,
// which every core sets to zero (SyncAll writes its own flag again until all have arrived, so a late zero does no harm).
class CoreSync {
  public:
    __aicore__ inline CoreSync() {}
    __aicore__ inline void Init(TPipe &pipe, GM_ADDR workspace) {
#if __CCE_AICORE__ < 220
        const uint32_t length = static_cast<uint32_t>(GetBlockNum()) * BLOCK_BYTES / sizeof(int32_t);
        flags_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t *>(workspace), length);
        pipe.InitBuffer(scratch_, length * sizeof(int32_t));
        LocalTensor<int32_t> zero = scratch_.Get<int32_t>();
        Duplicate(zero, 0, length);
        PipeBarrier<PIPE_ALL>();
        DataCopy(flags_, zero, length);
        PipeBarrier<PIPE_ALL>();
#endif
    }
    __aicore__ inline void Wait() {
        PipeBarrier<PIPE_ALL>();
#if __CCE_AICORE__ >= 220
        SyncAll();
#else
        LocalTensor<int32_t> scratch = scratch_.Get<int32_t>();
        SyncAll(flags_, scratch);
#endif
        PipeBarrier<PIPE_ALL>();
    }

  private:
#if __CCE_AICORE__ < 220
    GlobalTensor<int32_t> flags_;
    TBuf<TPosition::VECCALC> scratch_;
#endif
};
}  // namespace pangu
#endif
