// Runs Ascend C kernels on a CPU and checks them while they run. Written from the public API reference; it stands where the vendor's
// header of the same name stands, and holds only what the kernels here use. Included directly by the kernels.
#ifndef PANGU_HOST_KERNEL_OPERATOR_H
#define PANGU_HOST_KERNEL_OPERATOR_H

#include <algorithm>
#include <cmath>

#include "tensor.h"

// The tiling class is the one that op_host registers for the operator; on the chip it comes from generated code.
#define GET_TILING_DATA(name, argument)                                                                                             \
    HOST_TILING name;                                                                                                               \
    host::Require(host::ThisCore().launch->tilingBytes == sizeof(name), "GET_TILING_DATA", "the size differs from that of op_host"); \
    std::memcpy(static_cast<void *>(&name), argument, sizeof(name))
#define KERNEL_TASK_TYPE_DEFAULT(type)     \
    HOST_CALL(KernelTaskType, void, void); \
    static_assert(host::type >= 0, "kernel type")

namespace host {
enum KernelType { KERNEL_TYPE_AIV_ONLY, KERNEL_TYPE_MIX_AIV_1_0 };

template <typename D, typename S>
void CheckOverlap(const AscendC::LocalTensor<D> &d, const AscendC::LocalTensor<S> &s, uint64_t count, const char *api) {
    const bool apart = d.buffer != s.buffer || d.offset == s.offset || d.offset + count * sizeof(D) <= s.offset || s.offset + count * sizeof(S) <= d.offset;
    Require(apart, api, "source and destination overlap in part");
}

template <typename T, typename F>
void Unary(const char *api, const AscendC::LocalTensor<T> &d, const AscendC::LocalTensor<T> &s, int32_t n, F f) {
    CheckOverlap(d, s, n, api);
    const T *a = s.Span(0, n, PIPE_V, false, api);
    T *o = d.Span(0, n, PIPE_V, true, api);
    for (int32_t i = 0; i < n; ++i) {
        o[i] = static_cast<T>(f(a[i]));
    }
}

template <typename T, typename F>
void Binary(const char *api, const AscendC::LocalTensor<T> &d, const AscendC::LocalTensor<T> &s, const AscendC::LocalTensor<T> &t, int32_t n, F f) {
    CheckOverlap(d, s, n, api);
    CheckOverlap(d, t, n, api);
    const T *a = s.Span(0, n, PIPE_V, false, api), *b = t.Span(0, n, PIPE_V, false, api);
    T *o = d.Span(0, n, PIPE_V, true, api);
    for (int32_t i = 0; i < n; ++i) {
        o[i] = static_cast<T>(f(a[i], b[i]));
    }
}

template <typename T>
void RequireBlocks(uint64_t count, const char *api) {
    Require(count > 0 && count * sizeof(T) % BLOCK == 0, api, "the length of " + Text(count * sizeof(T)) + " bytes is not a multiple of 32");
}
}  // namespace host

namespace AscendC {
inline GM_ADDR GetUserWorkspace(GM_ADDR workspace) {
    HOST_CALL(GetUserWorkspace, void, void);
    return workspace + host::SYSTEM_WORKSPACE;
}

template <pipe_t P>
void PipeBarrier() {
    HOST_CALL(PipeBarrier, void, void);
    host::Core &core = host::ThisCore();
    P == PIPE_ALL ? ++core.allBarriers : ++core.vectorBarriers;
}

template <bool isAIVOnly = true>
void SyncAll() {
    HOST_CALL(SyncAll, std::enable_if_t<isAIVOnly>, void);
    host::ThisCore().launch->barrier.Wait();
    ++host::ThisCore().epoch;
}
template <bool isAIVOnly = true>
void SyncAll(const GlobalTensor<int32_t> &flags, const LocalTensor<int32_t> &scratch, int32_t cores = 0) {
    HOST_CALL(SyncAllWithFlags, int32_t, int32_t);
    host::Core &core = host::ThisCore();
    const uint64_t needed = (cores ? cores : GetBlockNum()) * host::BLOCK / sizeof(int32_t);
    host::Require(flags.GetSize() >= needed, "SyncAll", "gmWorkspace is shorter than 32 bytes a core");
    host::Require(scratch.GetSize() >= needed, "SyncAll", "ubWorkspace is shorter than 32 bytes a core");
    host::Require(flags.GetPhyAddr()[core.index * host::BLOCK / sizeof(int32_t)] == 0, "SyncAll", "gmWorkspace was not set to zero");
    PipeBarrier<PIPE_ALL>();
    core.launch->barrier.Wait();
    ++core.epoch;
}

// ---- copies
template <typename T>
void DataCopy(const LocalTensor<T> &d, const GlobalTensor<T> &s, uint32_t n) {
    HOST_CALL(DataCopy, T, T);
    host::RequireBlocks<T>(n, "DataCopy");
    std::memcpy(static_cast<void *>(d.Span(0, n, PIPE_MTE2, true, "DataCopy")), s.Read(0, n, "DataCopy"), n * sizeof(T));
}
template <typename T>
void DataCopy(const GlobalTensor<T> &d, const LocalTensor<T> &s, uint32_t n) {
    HOST_CALL(DataCopy, T, T);
    host::RequireBlocks<T>(n, "DataCopy");
    std::memcpy(static_cast<void *>(d.Write(0, n, false, "DataCopy")), s.Span(0, n, PIPE_MTE3, false, "DataCopy"), n * sizeof(T));
}

template <typename T>
void CheckPad(const DataCopyExtParams &p) {
    host::Require(p.blockCount >= 1 && p.blockCount <= 4095, "DataCopyPad", "blockCount must be from 1 to 4095");
    host::Require(p.blockLen >= 1 && p.blockLen % sizeof(T) == 0, "DataCopyPad", "blockLen must be a positive number of whole elements");
}
template <typename T>
void DataCopyPad(const LocalTensor<T> &d, const GlobalTensor<T> &s, const DataCopyExtParams &p, const DataCopyPadExtParams<T> &pad) {
    HOST_CALL(DataCopyPad, T, T);
    CheckPad<T>(p);
    const uint64_t length = p.blockLen / sizeof(T), padded = host::RoundUp(p.blockLen, host::BLOCK) / sizeof(T);
    const uint64_t local = padded + p.dstStride * host::BLOCK / sizeof(T), global = length + p.srcStride / sizeof(T);
    for (uint64_t b = 0; b < p.blockCount; ++b) {
        T *to = d.Span(b * local, padded, PIPE_MTE2, true, "DataCopyPad");
        std::memcpy(static_cast<void *>(to), s.Read(b * global, length, "DataCopyPad"), p.blockLen);
        std::fill(to + length, to + length + (pad.isPad ? pad.rightPadding : 0), pad.paddingValue);
    }
}
template <typename T>
void DataCopyPad(const GlobalTensor<T> &d, const LocalTensor<T> &s, const DataCopyExtParams &p) {
    HOST_CALL(DataCopyPad, T, T);
    CheckPad<T>(p);
    const uint64_t length = p.blockLen / sizeof(T), padded = host::RoundUp(p.blockLen, host::BLOCK) / sizeof(T);
    const uint64_t local = padded + p.srcStride * host::BLOCK / sizeof(T), global = length + p.dstStride / sizeof(T);
    for (uint64_t b = 0; b < p.blockCount; ++b) {
        const T *from = s.Span(b * local, length, PIPE_MTE3, false, "DataCopyPad");
        std::memcpy(static_cast<void *>(d.Write(b * global, length, false, "DataCopyPad")), from, p.blockLen);
    }
}

// ---- vector instructions, form with a count of elements
template <typename T>
void Exp(const LocalTensor<T> &d, const LocalTensor<T> &s, int32_t n) {
    HOST_CALL(Exp, T, T);
    host::Unary("Exp", d, s, n, [](T x) { return std::exp(static_cast<float>(x)); });
}
template <typename T>
void Abs(const LocalTensor<T> &d, const LocalTensor<T> &s, int32_t n) {
    HOST_CALL(Abs, T, T);
    host::Unary("Abs", d, s, n, [](T x) { return std::fabs(static_cast<float>(x)); });
}
template <typename T>
void Adds(const LocalTensor<T> &d, const LocalTensor<T> &s, T v, int32_t n) {
    HOST_CALL(Adds, T, T);
    host::Unary("Adds", d, s, n, [v](T x) { return x + v; });
}
template <typename T>
void Muls(const LocalTensor<T> &d, const LocalTensor<T> &s, T v, int32_t n) {
    HOST_CALL(Muls, T, T);
    host::Unary("Muls", d, s, n, [v](T x) { return x * v; });
}
template <typename T>
void Maxs(const LocalTensor<T> &d, const LocalTensor<T> &s, T v, int32_t n) {
    HOST_CALL(Maxs, T, T);
    host::Unary("Maxs", d, s, n, [v](T x) { return x < v ? v : x; });
}
template <typename T>
void Max(const LocalTensor<T> &d, const LocalTensor<T> &s, const LocalTensor<T> &t, int32_t n) {
    HOST_CALL(Max, T, T);
    host::Binary("Max", d, s, t, n, [](T x, T y) { return x < y ? y : x; });
}
template <typename T>
void Add(const LocalTensor<T> &d, const LocalTensor<T> &s, const LocalTensor<T> &t, int32_t n) {
    HOST_CALL(Add, T, T);
    host::Binary("Add", d, s, t, n, [](T x, T y) { return x + y; });
}
template <typename T>
void Sub(const LocalTensor<T> &d, const LocalTensor<T> &s, const LocalTensor<T> &t, int32_t n) {
    HOST_CALL(Sub, T, T);
    host::Binary("Sub", d, s, t, n, [](T x, T y) { return x - y; });
}
template <typename T>
void Mul(const LocalTensor<T> &d, const LocalTensor<T> &s, const LocalTensor<T> &t, int32_t n) {
    HOST_CALL(Mul, T, T);
    host::Binary("Mul", d, s, t, n, [](T x, T y) { return x * y; });
}
template <typename T>
void Div(const LocalTensor<T> &d, const LocalTensor<T> &s, const LocalTensor<T> &t, int32_t n) {
    HOST_CALL(Div, T, T);
    host::Binary("Div", d, s, t, n, [](T x, T y) { return x / y; });
}
template <typename T>
void Axpy(const LocalTensor<T> &d, const LocalTensor<T> &s, T v, int32_t n) {
    HOST_CALL(Axpy, T, T);
    const bool chunks = n * sizeof(T) >= 2 * 255 * 256;  // two times 255 repeats of 256 bytes
    host::Require(!chunks || HOST_CHIP >= 220, "Axpy", "so many elements are computed wrongly by CANN's ascend910 header; use pieces");
    host::Binary("Axpy", d, d, s, n, [v](T a, T x) { return a + v * x; });
}
template <typename T>
void Duplicate(const LocalTensor<T> &d, T v, int32_t n) {
    HOST_CALL(Duplicate, T, T);
    T *o = d.Span(0, n, PIPE_V, true, "Duplicate");
    std::fill(o, o + n, v);
}
// dst[0] = sum; the work tensor holds one partial sum for each 256 bytes, rounded up to whole blocks
template <typename T>
void ReduceSum(const LocalTensor<T> &d, const LocalTensor<T> &s, const LocalTensor<T> &work, int32_t n) {
    HOST_CALL(ReduceSum, T, T);
    const uint64_t partials = host::RoundUp((n * sizeof(T) + 255) / 256, host::BLOCK / sizeof(T));
    work.Span(0, partials, PIPE_V, true, "ReduceSum");
    const T *a = s.Span(0, n, PIPE_V, false, "ReduceSum");
    float sum = 0;
    for (int32_t i = 0; i < n; ++i) {
        sum += static_cast<float>(a[i]);
    }
    *d.Span(0, 1, PIPE_V, true, "ReduceSum") = static_cast<T>(sum);
}

template <typename D, typename S>
D RoundTo(S x, RoundMode mode) {
    if constexpr (std::is_integral<D>::value && !std::is_integral<S>::value) {
        const float f = static_cast<float>(x);
        switch (mode) {
            case RoundMode::CAST_FLOOR: return static_cast<D>(std::floor(f));
            case RoundMode::CAST_CEIL: return static_cast<D>(std::ceil(f));
            case RoundMode::CAST_TRUNC: return static_cast<D>(std::trunc(f));
            case RoundMode::CAST_ROUND: return static_cast<D>(std::round(f));
            default: return static_cast<D>(std::nearbyint(f));
        }
    } else {
        return static_cast<D>(static_cast<float>(x));  // half and bfloat16_t round to nearest even
    }
}
template <typename D, typename S>
void Cast(const LocalTensor<D> &d, const LocalTensor<S> &s, RoundMode mode, uint32_t n) {
    HOST_CALL(Cast, D, S);
    constexpr bool bf16 = std::is_same<D, bfloat16_t>::value || std::is_same<S, bfloat16_t>::value;
    constexpr bool narrow = sizeof(D) < sizeof(S);
    host::Require(narrow || std::is_integral<D>::value || mode == RoundMode::CAST_NONE, "Cast", "a lossless conversion takes CAST_NONE");
    host::Require(!(narrow && bf16) || mode == RoundMode::CAST_RINT, "Cast", "float to bfloat16_t takes CAST_RINT here, not CAST_NONE");
    host::Require(!(narrow && !bf16 && HOST_CHIP < 220) || mode == RoundMode::CAST_NONE, "Cast", "float to half takes CAST_NONE on ascend910");
    const S *a = s.Span(0, n, PIPE_V, false, "Cast");
    D *o = d.Span(0, n, PIPE_V, true, "Cast");
    for (uint32_t i = 0; i < n; ++i) {
        o[i] = RoundTo<D>(a[i], mode);
    }
}
}  // namespace AscendC
#endif
