// Which call exists for which type on which chip. Every function and class that stands where CANN's stands asks this table (HOST_CALL), so a
// kernel that uses what a chip lacks, or what nobody has looked up, does not compile.
//
// A row: the call, the type it writes, the type it reads, ascend910, ascend910b (with 910_93), and where that is said. Sources, of CANN 9.1:
//   page.md   the page of the Ascend C API reference (SIMD API); "Atlas training series" is ascend910, "Atlas A2/A3 training series" the others
//   c100:     the vendor's headers basic_api/dav_c100 (ascend910), where they say more than the page
// Rows that no kernel uses are traps: calls that look natural, and that ascend910 lacks without saying so when it compiles.
#ifndef PANGU_HOST_SUPPORT_H
#define PANGU_HOST_SUPPORT_H

#include "types.h"

namespace host {
enum Type { NONE, FLOAT, HALF, BFLOAT16, INT32 };

enum class Call {
    Abs, Add, Adds, Axpy, Cast, DataCopy, DataCopyPad, Div, Duplicate, Exp, GetBlockIdx, GetBlockNum, GetUserWorkspace, GlobalTensor,
    KernelTaskType, LocalTensor, Max, Maxs, Mul, Muls, PipeBarrier, ReduceSum, Sub, SyncAll, SyncAllWithFlags, TBuf, TPipe, TQueBind
};

struct Row {
    Call call;
    Type to, from;
    bool ascend910, ascend910b;
};

constexpr Row ROWS[] = {
    {Call::GetBlockIdx, NONE, NONE, true, true},          // GetBlockIdx.md
    {Call::GetBlockNum, NONE, NONE, true, true},          // GetBlockNum.md
    {Call::GetUserWorkspace, NONE, NONE, true, true},     // GetUserWorkspace.md
    {Call::PipeBarrier, NONE, NONE, true, true},          // PipeBarrier(ISASI).md
    {Call::KernelTaskType, NONE, NONE, false, true},      // the page on kernel types: Atlas A2 and A3 only
    {Call::SyncAll, NONE, NONE, false, true},             // SyncAll.md; c100: an assertion "unsupported hardware syncAll" that only its debug build has
    {Call::SyncAllWithFlags, INT32, INT32, true, true},   // SyncAll.md, the form with gmWorkspace and ubWorkspace
    {Call::TPipe, NONE, NONE, true, true},                // InitBuffer.md
    {Call::TBuf, NONE, NONE, true, true},                 // TBuf/Get.md
    {Call::TQueBind, NONE, NONE, true, true},             // AllocTensor.md, EnQue.md, DeQue.md, FreeTensor.md; how many buffers: tensor.h
    {Call::LocalTensor, FLOAT, FLOAT, true, true},        // LocalTensor/GetValue.md, SetValue.md
    {Call::LocalTensor, HALF, HALF, true, true},          // as above
    {Call::LocalTensor, INT32, INT32, true, true},        // as above
    {Call::LocalTensor, BFLOAT16, BFLOAT16, false, true},  // DataCopy names bfloat16_t for Atlas A2 and A3 only
    {Call::GlobalTensor, FLOAT, FLOAT, true, true},       // GlobalTensor/SetGlobalBuffer.md, GetValue.md, SetValue.md
    {Call::GlobalTensor, HALF, HALF, true, true},         // as above
    {Call::GlobalTensor, INT32, INT32, true, true},       // as above
    {Call::GlobalTensor, BFLOAT16, BFLOAT16, false, true},  // as for LocalTensor
    {Call::DataCopy, FLOAT, FLOAT, true, true},           // "GM and UB continuous copy (DataCopy)".md
    {Call::DataCopy, HALF, HALF, true, true},             // as above
    {Call::DataCopy, INT32, INT32, true, true},           // as above
    {Call::DataCopy, BFLOAT16, BFLOAT16, false, true},    // as above
    {Call::DataCopyPad, FLOAT, FLOAT, false, true},       // "GMToUB" and "UBToGM unaligned copy (DataCopyPad)".md; c100: an empty macro, nothing is copied
    {Call::DataCopyPad, HALF, HALF, false, true},         // as above
    {Call::DataCopyPad, INT32, INT32, false, true},       // as above
    {Call::DataCopyPad, BFLOAT16, BFLOAT16, false, true},  // as above
    {Call::Abs, FLOAT, FLOAT, true, true},                // Abs.md
    {Call::Exp, FLOAT, FLOAT, true, true},                // Exp.md
    {Call::Adds, FLOAT, FLOAT, true, true},               // Adds.md
    {Call::Muls, FLOAT, FLOAT, true, true},               // Muls.md
    {Call::Add, FLOAT, FLOAT, true, true},                // Add.md
    {Call::Add, INT32, INT32, true, true},                // Add.md
    {Call::Sub, FLOAT, FLOAT, true, true},                // Sub.md
    {Call::Mul, FLOAT, FLOAT, true, true},                // Mul.md
    {Call::Div, FLOAT, FLOAT, true, true},                // Div.md
    {Call::Axpy, FLOAT, FLOAT, true, true},               // Axpy.md; c100: a second chunk of 255 repeats is written over the first (see Axpy)
    {Call::Duplicate, FLOAT, FLOAT, true, true},          // Duplicate.md
    {Call::Duplicate, INT32, INT32, true, true},          // Duplicate.md
    {Call::Cast, FLOAT, HALF, true, true},                // Cast.md: CAST_NONE on both
    {Call::Cast, HALF, FLOAT, true, true},                // Cast.md: on ascend910 CAST_ODD and CAST_NONE only
    {Call::Cast, FLOAT, BFLOAT16, false, true},           // Cast.md: no bfloat16_t for Atlas training series
    {Call::Cast, BFLOAT16, FLOAT, false, true},           // as above
    {Call::Max, FLOAT, FLOAT, true, true},                // trap's way out: Max.md, of two tensors
    {Call::Maxs, FLOAT, FLOAT, false, true},              // trap: Maxs.md; c100: an empty macro, nothing is computed
    {Call::ReduceSum, FLOAT, FLOAT, false, true},         // trap: ReduceSum.md: Atlas training series sums half only
    {Call::ReduceSum, HALF, HALF, true, true},            // ReduceSum.md
};

template <typename T>
constexpr Type TypeOf() {
    return std::is_same<T, float>::value        ? FLOAT
           : std::is_same<T, half>::value       ? HALF
           : std::is_same<T, bfloat16_t>::value ? BFLOAT16
           : std::is_same<T, int32_t>::value    ? INT32
                                                : NONE;
}

constexpr bool Exists(Call call, Type to, Type from) {
    for (const Row &row : ROWS) {
        if (row.call == call && row.to == to && row.from == from) {
            return HOST_CHIP >= 220 ? row.ascend910b : row.ascend910;
        }
    }
    return false;
}
}  // namespace host

// First statement of every function of the host execution: the call with the types To and From (void: none) must have a row for this chip.
#define HOST_CALL(call, To, From) \
    static_assert(host::Exists(host::Call::call, host::TypeOf<To>(), host::TypeOf<From>()), #call " does not exist in this type on this chip: host/support.h")
#endif
