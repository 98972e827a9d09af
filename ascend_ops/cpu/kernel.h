// What every CPU kernel sees of a call: its tensors, inputs then attributes then outputs, in the order of table.py.
//
// MindSpore's "aot" custom operators need no header of MindSpore: it calls `int Name(count, data, ranks, shapes, dtypes, stream, extra)`.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace ascend_ops {

struct Half {
  uint16_t bits;
};
struct Bfloat16 {
  uint16_t bits;
};

struct Tensor {
  void *data;
  int rank;
  const int64_t *shape;
  const char *dtype;

  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
  int64_t dim(int i) const { return shape[i < 0 ? rank + i : i]; }
  int64_t last() const { return rank ? shape[rank - 1] : 1; }
  int64_t rows() const { return last() ? size() / last() : 0; }
  template <typename T>
  T *as() const {
    return static_cast<T *>(data);
  }
};

class Call {
 public:
  Call(void **data, int *ranks, int64_t **shapes, const char **dtypes) : data_(data), ranks_(ranks), shapes_(shapes), dtypes_(dtypes) {}
  Tensor operator[](int i) const { return {data_[i], ranks_[i], shapes_[i], dtypes_[i]}; }

 private:
  void **data_;
  int *ranks_;
  int64_t **shapes_;
  const char **dtypes_;
};

// A call that the Python layer should not have let through. MindSpore makes a RuntimeError of it.
inline void require(bool condition, const char *rule) {
  if (!condition) throw std::invalid_argument(rule);
}

// Calls f(T{}) with the element type of a tensor, so that one template serves all float types.
template <typename F>
void with_type(const Tensor &tensor, F f) {
  if (!std::strcmp(tensor.dtype, "float32")) return f(float{});
  if (!std::strcmp(tensor.dtype, "float16")) return f(Half{});
  if (!std::strcmp(tensor.dtype, "bfloat16")) return f(Bfloat16{});
  throw std::invalid_argument(std::string("dtype ") + tensor.dtype + " is none of float32, float16, bfloat16");
}

// Within its scope numbers below 1e-38 count as 0 on this thread. MindSpore's threads compute so, those of Python do not: kernels always do, so that
// their bits do not depend on the thread that calls them or that started the pool.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // flush to zero, denormals are zero
  ~FlushDenormals() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(before_ | 1ull << 24));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#else
  FlushDenormals() {}
#endif
  FlushDenormals(const FlushDenormals &) = delete;

 private:
#if defined(__x86_64__)
  unsigned before_;
#else
  uint64_t before_ = 0;
#endif
};

inline int run(const char *name, void (*kernel)(const Call &), const Call &call) {
  const FlushDenormals scope;
  void (*volatile opaque)(const Call &) = kernel;  // keeps its arithmetic from being inlined and moved out of the scope
  try {
    opaque(call);
    return 0;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "ascend_ops: %s: %s\n", name, error.what());
    return 1;
  }
}

}  // namespace ascend_ops

// Exports `function` (void(const Call &)) to MindSpore under the name that it has in table.py.
#define ASCEND_OPS_KERNEL(Name, function)                                                                                          \
  extern "C" __attribute__((visibility("default"))) int Name(int, void **data, int *ranks, int64_t **shapes,                 \
                                                             const char **dtypes, void *, void *) {                                \
    return ascend_ops::run(#Name, function, ascend_ops::Call(data, ranks, shapes, dtypes));                                 \
  }
