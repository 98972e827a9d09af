// Element types, enumerations and error reporting of the host execution.
#ifndef PANGU_HOST_TYPES_H
#define PANGU_HOST_TYPES_H

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

// HOST_CHIP: 100 = ascend910 (dav_c100), 220 = ascend910b and ascend910_93 (dav_c220)
#ifndef HOST_CHIP
#define HOST_CHIP 220
#endif
#define __CCE_AICORE__ HOST_CHIP
#define __aicore__
#define __global__
#define __gm__

#define GM_ADDR __gm__ uint8_t *  // a macro in CANN too, so `const GM_ADDR` means another type than a typedef would

struct half {
    _Float16 value = 0;
    half() = default;
    half(float f) : value(static_cast<_Float16>(f)) {}
    operator float() const { return static_cast<float>(value); }
};

struct bfloat16_t {
    uint16_t bits = 0;
    bfloat16_t() = default;
    bfloat16_t(float f) {
        uint32_t u;
        std::memcpy(&u, &f, sizeof(u));
        const bool nan = (u & 0x7fffffffu) > 0x7f800000u;
        bits = nan ? static_cast<uint16_t>(u >> 16 | 0x40) : static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
    operator float() const {
        const uint32_t u = static_cast<uint32_t>(bits) << 16;
        float f;
        std::memcpy(&f, &u, sizeof(f));
        return f;
    }
};

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };

namespace AscendC {
enum class TPosition { GM, VECIN, VECOUT, VECCALC };
using QuePosition = TPosition;
enum class RoundMode { CAST_NONE, CAST_RINT, CAST_FLOOR, CAST_CEIL, CAST_ROUND, CAST_TRUNC, CAST_ODD };

struct DataCopyParams {
    uint16_t blockCount, blockLen, srcStride, dstStride;  // lengths and strides in units of 32 bytes
};
struct DataCopyExtParams {
    uint16_t blockCount;
    uint32_t blockLen, srcStride, dstStride, rsv;  // bytes, but strides on the local side in units of 32 bytes
};
template <typename T>
struct DataCopyPadExtParams {
    bool isPad;
    uint8_t leftPadding, rightPadding;
    T paddingValue;
};
}  // namespace AscendC

namespace host {
constexpr uint64_t BLOCK = 32;
constexpr uint64_t UB_BYTES = HOST_CHIP >= 220 ? 192 * 1024 : 256 * 1024;
// Events between two pipes (QUE_MAX_EVENT in CANN). A buffer of a queue holds one from FreeTensor until it is allocated again, so that all
// queues between the same two pipes together may have no more buffers (AllocTensor.md).
constexpr uint64_t QUEUE_EVENTS = HOST_CHIP >= 220 ? 8 : 4;
constexpr uint64_t SYSTEM_WORKSPACE = 4096;  // stands for the part of the workspace that belongs to the library

[[noreturn]] inline void Fail(const std::string &api, const std::string &rule) { throw std::runtime_error(api + ": " + rule); }
inline void Require(bool ok, const char *api, const std::string &rule) {
    if (!ok) {
        Fail(api, rule);
    }
}
inline std::string Text(uint64_t n) { return std::to_string(n); }
inline uint64_t RoundUp(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }
}  // namespace host
#endif
