// Matrix products by the oneDNN 3 that MindSpore bundles and has loaded (mindspore/lib/libdnnl.so.3); nothing is linked, no header is shipped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernel.h"

namespace ascend_ops {

// A buffer from a list that grows to the largest that calls in flight needed, and stays: fresh pages would cost more than a small product.
class Workspace {
 public:
  explicit Workspace(size_t bytes = 0);
  ~Workspace();
  Workspace(Workspace &&other) noexcept { std::swap(data_, other.data_), std::swap(bytes_, other.bytes_); }
  template <typename T>
  T *as() const {
    return static_cast<T *>(data_);
  }

 private:
  void *data_ = nullptr;  // 64-byte aligned
  size_t bytes_ = 0;
};

namespace onednn {

enum Element { kHalf = 1, kBfloat16 = 2, kFloat = 3 };  // dnnl_data_type_t
constexpr Element element(float) { return kFloat; }
constexpr Element element(Half) { return kHalf; }
constexpr Element element(Bfloat16) { return kBfloat16; }

// Version of the library that was found, as 10000 major + 100 minor + patch; 0 when there is none to use.
int version();

// Whether products of this type have a kernel here: without one oneDNN takes a reference loop, a thousand times slower.
bool multiplies(Element type);

// c = a b, or c += a b, or c = a b + bias (one float for each column, or null).
// All are dense and row-major; `transposed` says that a stored matrix is [columns, rows] of what the product sees. a and b have type `in`.
struct Product {
  int64_t m, n, k;
  Element in, out;
  bool a_transposed = false, b_transposed = false, accumulate = false;
};
void multiply(const Product &product, const void *a, const void *b, void *c, const float *bias = nullptr);

}  // namespace onednn
}  // namespace ascend_ops
