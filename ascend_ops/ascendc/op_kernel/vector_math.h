// Vector instructions in float32 that are complete for the next one, row-wise forms of them, and conversions.
#ifndef PANGU_VECTOR_MATH_H
#define PANGU_VECTOR_MATH_H

#include "tile_io.h"

namespace pangu {
// Every function ends with PipeBarrier<PIPE_V>, so that a result may be used at once whether or not the compiler inserts barriers itself.
namespace ordered {
using Floats = LocalTensor<float>;

__aicore__ inline void Fill(const Floats &d, float v, uint32_t n) { AscendC::Duplicate(d, v, n); PipeBarrier<PIPE_V>(); }
__aicore__ inline void Exp(const Floats &d, const Floats &s, uint32_t n) { AscendC::Exp(d, s, n); PipeBarrier<PIPE_V>(); }
__aicore__ inline void Abs(const Floats &d, const Floats &s, uint32_t n) { AscendC::Abs(d, s, n); PipeBarrier<PIPE_V>(); }
__aicore__ inline void Adds(const Floats &d, const Floats &s, float v, uint32_t n) { AscendC::Adds(d, s, v, n); PipeBarrier<PIPE_V>(); }
__aicore__ inline void Muls(const Floats &d, const Floats &s, float v, uint32_t n) { AscendC::Muls(d, s, v, n); PipeBarrier<PIPE_V>(); }
__aicore__ inline void Add(const Floats &d, const Floats &s, const Floats &t, uint32_t n) { AscendC::Add(d, s, t, n); PipeBarrier<PIPE_V>(); }
__aicore__ inline void Sub(const Floats &d, const Floats &s, const Floats &t, uint32_t n) { AscendC::Sub(d, s, t, n); PipeBarrier<PIPE_V>(); }
__aicore__ inline void Mul(const Floats &d, const Floats &s, const Floats &t, uint32_t n) { AscendC::Mul(d, s, t, n); PipeBarrier<PIPE_V>(); }
__aicore__ inline void Div(const Floats &d, const Floats &s, const Floats &t, uint32_t n) { AscendC::Div(d, s, t, n); PipeBarrier<PIPE_V>(); }
__aicore__ inline void Axpy(const Floats &d, const Floats &s, float v, uint32_t n) { AscendC::Axpy(d, s, v, n); PipeBarrier<PIPE_V>(); }

// dst = src as float32
template <typename T>
__aicore__ inline void Widen(const Floats &d, const LocalTensor<T> &s, uint32_t n) {
    if constexpr (sizeof(T) == sizeof(float)) {
        AscendC::Muls(d, s, 1.0f, n);
    } else {
        AscendC::Cast(d, s, RoundMode::CAST_NONE, n);
    }
    PipeBarrier<PIPE_V>();
}

// dst = src in the type of the call, to nearest even. half: CAST_NONE is the mode that both chips have; bfloat16: only CAST_RINT.
template <typename T>
__aicore__ inline void Narrow(const LocalTensor<T> &d, const Floats &s, uint32_t n) {
    if constexpr (sizeof(T) == sizeof(float)) {
        AscendC::Muls(d, s, 1.0f, n);
    } else if constexpr (std::is_same<T, half>::value) {
        AscendC::Cast(d, s, RoundMode::CAST_NONE, n);
    } else {
        AscendC::Cast(d, s, RoundMode::CAST_RINT, n);
    }
    PipeBarrier<PIPE_V>();
}
}  // namespace ordered

// A block of rows in the unified buffer, `pitch` elements apart, of which the first `columns` count.
struct RowBlock {
    uint32_t rows = 0, columns = 0, pitch = 0;
    __aicore__ inline uint32_t Length() const { return rows * pitch; }
};

// dst[r] = src[r] + row
__aicore__ inline void AddRow(const LocalTensor<float> &d, const LocalTensor<float> &s, const LocalTensor<float> &row, const RowBlock &b) {
    for (uint32_t r = 0; r < b.rows; ++r) {
        AscendC::Add(d[r * b.pitch], s[r * b.pitch], row, b.columns);
    }
    PipeBarrier<PIPE_V>();
}

// dst[r] = src[r] * row
__aicore__ inline void MulRow(const LocalTensor<float> &d, const LocalTensor<float> &s, const LocalTensor<float> &row, const RowBlock &b) {
    for (uint32_t r = 0; r < b.rows; ++r) {
        AscendC::Mul(d[r * b.pitch], s[r * b.pitch], row, b.columns);
    }
    PipeBarrier<PIPE_V>();
}

// The first row becomes the sum of the rows. They are folded onto each other in halves, which is fast, rounds little and destroys them.
__aicore__ inline void FoldRows(const LocalTensor<float> &rows, const RowBlock &b) {
    uint32_t left = b.rows;
    while (left > 1) {
        const uint32_t folded = left / 2;
        ordered::Add(rows, rows, rows[(left - folded) * b.pitch], folded * b.pitch);
        left -= folded;
    }
}

// total += sum of the rows, which are lost
__aicore__ inline void AddFoldedRows(const LocalTensor<float> &total, const LocalTensor<float> &rows, const RowBlock &b) {
    FoldRows(rows, b);
    ordered::Add(total, total, rows, b.columns);
}
}  // namespace pangu
#endif
