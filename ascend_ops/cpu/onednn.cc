// The part of oneDNN's C API that a matrix product needs, declared here and looked up in the loaded library. Products keep their primitives.
//
// Source of types, values and signatures: oneDNN 3 public headers, dnnl_common_types.h, dnnl_types.h, dnnl.h, dnnl_threadpool.h and
// dnnl_threadpool_iface.hpp (https://github.com/uxlfoundation/oneDNN, Apache 2.0); they are stable within major version 3.
#include "onednn.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>

#include "parallel.h"

namespace ascend_ops {
namespace {

std::mutex spare_mutex;
std::multimap<size_t, void *> &spare = *new std::multimap<size_t, void *>;  // buffers that no call uses, by size; never freed: threads may run at exit

}  // namespace

Workspace::Workspace(size_t bytes) {
  if (bytes == 0) return;
  {
    std::lock_guard<std::mutex> lock(spare_mutex);
    auto best = spare.lower_bound(bytes);  // the smallest that is large enough, else the largest, which is then replaced
    if (best == spare.end() && !spare.empty()) --best;
    if (best != spare.end()) {
      std::tie(bytes_, data_) = *best;
      spare.erase(best);
    }
  }
  if (bytes_ >= bytes) return;
  std::free(data_);
  bytes_ = (bytes + 4095) / 4096 * 4096;
  data_ = std::aligned_alloc(4096, bytes_);
  if (data_ == nullptr) throw std::bad_alloc();
}

Workspace::~Workspace() {
  if (data_ == nullptr) return;
  std::lock_guard<std::mutex> lock(spare_mutex);
  spare.emplace(bytes_, data_);
}

namespace onednn {
namespace {

struct Version {
  int major, minor, patch;
  const char *hash;
  unsigned cpu_runtime, gpu_runtime;
};
using Handle = void *;  // every object of the API is a pointer to an opaque struct
using Dims = int64_t[12];
struct Argument {
  int name;
  Handle memory;
};
constexpr int kCpu = 1, kUserScratchpad = 1, kQueryImplementation = 8, kQueryScratchpad = 136;
constexpr int kSource = 1, kDestination = 17, kWeights = 33, kBias = 41, kScratchpad = 80;
constexpr unsigned kThreadpoolRuntime = 8;

// Layout of dnnl::threadpool_interop::threadpool_iface. `wait` came in 3.11; it stands behind the others, so older versions do not see it.
struct Threadpool {
  virtual int get_num_threads() const { return num_threads(); }
  virtual bool get_in_parallel() const { return inside; }
  virtual void parallel_for(int n, const std::function<void(int, int)> &task) {
    parallel_tasks(n, [&](int64_t i) {
      const bool before = inside;
      inside = true;
      task(static_cast<int>(i), n);
      inside = before;
    });
  }
  virtual uint64_t get_flags() const { return 0; }  // synchronous
  virtual void wait() {}
  virtual ~Threadpool() = default;
  static thread_local bool inside;
};
thread_local bool Threadpool::inside = false;
Threadpool threadpool;

struct Library {
  const Version *(*version)();
  int (*engine_create)(Handle *, int kind, size_t index);
  int (*stream_create)(Handle *, Handle engine, void *threadpool);
  int (*get_max_concurrency)(int *);
  int (*set_max_concurrency)(int);
  int (*memory_desc_create)(Handle *, int rank, const Dims, int type, const Dims strides);
  int (*memory_desc_destroy)(Handle);
  size_t (*memory_desc_size)(Handle);
  int (*memory_create)(Handle *, Handle desc, Handle engine, void *data);
  int (*memory_destroy)(Handle);
  int (*attr_create)(Handle *);
  int (*attr_destroy)(Handle);
  int (*attr_set_scratchpad_mode)(Handle, int);
  int (*attr_set_post_ops)(Handle, Handle post_ops);
  int (*post_ops_create)(Handle *);
  int (*post_ops_destroy)(Handle);
  int (*post_ops_append_sum)(Handle, float scale, int32_t zero_point, int type);
  int (*matmul_desc_create)(Handle *, Handle engine, Handle a, Handle b, Handle bias, Handle c, Handle attr);
  int (*desc_query)(Handle, int what, int index, void *result);
  Handle (*desc_query_memory)(Handle, int what, int index);
  int (*desc_destroy)(Handle);
  int (*primitive_create)(Handle *, Handle desc);
  int (*primitive_destroy)(Handle);
  int (*primitive_execute)(Handle, Handle stream, int count, const Argument *);
  Handle engine = nullptr;
  std::string missing;  // why it cannot be used

  Library();
};

Library::Library() {
  void *file = dlopen("libdnnl.so.3", RTLD_NOW | RTLD_NOLOAD);  // MindSpore's, by its name inside
  if (file == nullptr) file = dlopen("libdnnl.so.3", RTLD_NOW);
  if (file == nullptr) {
    missing = "no libdnnl.so.3 (oneDNN 3) is loaded or found; MindSpore 2.9 bundles it";
    return;
  }
  auto find = [&](auto &function, const char *name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(file, name));
    if (function == nullptr && missing.empty()) missing = std::string("libdnnl.so.3 has no ") + name + "; a oneDNN 3 with the threadpool runtime is needed";
  };
  find(version, "dnnl_version");
  find(engine_create, "dnnl_engine_create");
  find(stream_create, "dnnl_threadpool_interop_stream_create");
  find(get_max_concurrency, "dnnl_threadpool_interop_get_max_concurrency");
  find(set_max_concurrency, "dnnl_threadpool_interop_set_max_concurrency");
  find(memory_desc_create, "dnnl_memory_desc_create_with_strides");
  find(memory_desc_destroy, "dnnl_memory_desc_destroy");
  find(memory_desc_size, "dnnl_memory_desc_get_size");
  find(memory_create, "dnnl_memory_create");
  find(memory_destroy, "dnnl_memory_destroy");
  find(attr_create, "dnnl_primitive_attr_create");
  find(attr_destroy, "dnnl_primitive_attr_destroy");
  find(attr_set_scratchpad_mode, "dnnl_primitive_attr_set_scratchpad_mode");
  find(attr_set_post_ops, "dnnl_primitive_attr_set_post_ops");
  find(post_ops_create, "dnnl_post_ops_create");
  find(post_ops_destroy, "dnnl_post_ops_destroy");
  find(post_ops_append_sum, "dnnl_post_ops_append_sum");
  find(matmul_desc_create, "dnnl_matmul_primitive_desc_create");
  find(desc_query, "dnnl_primitive_desc_query");
  find(desc_query_memory, "dnnl_primitive_desc_query_md");
  find(desc_destroy, "dnnl_primitive_desc_destroy");
  find(primitive_create, "dnnl_primitive_create");
  find(primitive_destroy, "dnnl_primitive_destroy");
  find(primitive_execute, "dnnl_primitive_execute");
  if (!missing.empty()) return;
  const Version &found = *version();
  if (found.major != 3 || found.cpu_runtime != kThreadpoolRuntime) missing = "libdnnl.so.3 is not a oneDNN 3 with the threadpool runtime";
  else if (engine_create(&engine, kCpu, 0) != 0) missing = "oneDNN gives no CPU engine";
}

const Library &library() {
  static const Library *const one = new Library;  // never destroyed: primitives may outlive static destruction
  return *one;
}

void check(int status, const char *what) {
  if (status != 0) throw std::runtime_error(std::string("oneDNN: ") + what + " failed with status " + std::to_string(status));
}

// An object of the API that destroys itself.
class Owned {
 public:
  explicit Owned(int (*destroy)(Handle)) : destroy_(destroy) {}
  ~Owned() {
    if (handle) destroy_(handle);
  }
  Owned(const Owned &) = delete;
  Owned &operator=(const Owned &) = delete;
  Handle handle = nullptr;

 private:
  int (*destroy_)(Handle);
};

struct MemoryDesc : Owned {
  MemoryDesc(int64_t rows, int64_t columns, Element type, bool transposed) : Owned(library().memory_desc_destroy) {
    const Dims dims = {rows, columns}, strides = {transposed ? 1 : columns, transposed ? rows : 1};
    check(library().memory_desc_create(&handle, 2, dims, type, strides), "memory_desc_create_with_strides");
  }
};

struct Memory : Owned {
  Memory(Handle desc, const void *data) : Owned(library().memory_destroy) {
    check(library().memory_create(&handle, desc, library().engine, const_cast<void *>(data)), "memory_create");
  }
};

// oneDNN plans a primitive for a number of threads that belongs to the thread that makes it; MindSpore's own value is put back.
class Concurrency {
 public:
  Concurrency() {
    library().get_max_concurrency(&before_);
    library().set_max_concurrency(num_threads());
  }
  ~Concurrency() { library().set_max_concurrency(before_); }

 private:
  int before_ = 1;
};

struct Plan {
  MemoryDesc a, b, c, bias;
  Owned desc, primitive;
  Handle scratchpad = nullptr;
  size_t scratchpad_bytes = 0;

  Plan(const Product &p, bool biased)
      : a(p.m, p.k, p.in, p.a_transposed), b(p.k, p.n, p.in, p.b_transposed), c(p.m, p.n, p.out, false), bias(1, p.n, kFloat, false),
        desc(library().desc_destroy), primitive(library().primitive_destroy) {
    const Library &dnn = library();
    const Concurrency ours;
    Owned attr(dnn.attr_destroy), post_ops(dnn.post_ops_destroy);
    check(dnn.attr_create(&attr.handle), "primitive_attr_create");
    check(dnn.attr_set_scratchpad_mode(attr.handle, kUserScratchpad), "primitive_attr_set_scratchpad_mode");
    if (p.accumulate) {
      check(dnn.post_ops_create(&post_ops.handle), "post_ops_create");
      check(dnn.post_ops_append_sum(post_ops.handle, 1.0f, 0, 0), "post_ops_append_sum");
      check(dnn.attr_set_post_ops(attr.handle, post_ops.handle), "primitive_attr_set_post_ops");
    }
    check(dnn.matmul_desc_create(&desc.handle, dnn.engine, a.handle, b.handle, biased ? bias.handle : nullptr, c.handle, attr.handle),
          "matmul_primitive_desc_create");
    check(dnn.primitive_create(&primitive.handle, desc.handle), "primitive_create");
    scratchpad = dnn.desc_query_memory(desc.handle, kQueryScratchpad, 0);
    scratchpad_bytes = scratchpad ? dnn.memory_desc_size(scratchpad) : 0;
  }

  bool reference() const {
    const char *name = "";
    return library().desc_query(desc.handle, kQueryImplementation, 0, &name) != 0 || std::strncmp(name, "ref", 3) == 0;
  }
};

// Making a plan takes about half a millisecond (it compiles), so they are kept; all are forgotten when there are too many, which experts with
// ever new numbers of rows might bring about (a plan is tens of KB).
std::shared_ptr<const Plan> plan_of(const Product &p, bool biased) {
  constexpr size_t kMost = 1024;
  static std::mutex mutex;
  static auto &plans = *new std::map<std::tuple<int64_t, int64_t, int64_t, int>, std::shared_ptr<const Plan>>;
  const int kind = p.in | p.out << 2 | p.a_transposed << 4 | p.b_transposed << 5 | p.accumulate << 6 | biased << 7;
  const auto key = std::make_tuple(p.m, p.n, p.k, kind);
  {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = plans.find(key);
    if (found != plans.end()) return found->second;
  }
  auto plan = std::make_shared<const Plan>(p, biased);
  std::lock_guard<std::mutex> lock(mutex);
  if (plans.size() >= kMost) plans.clear();
  return plans.emplace(key, std::move(plan)).first->second;
}

Handle stream() {
  static thread_local Handle one = nullptr;  // one a thread, for the life of the process
  if (one == nullptr) check(library().stream_create(&one, library().engine, &threadpool), "threadpool_interop_stream_create");
  return one;
}

bool has_kernel(Element type) {
  const int64_t n = 64;
  for (const bool weight_gradient : {false, true}) {
    const Product product{n, n, n, type, weight_gradient ? kFloat : type, weight_gradient, !weight_gradient};
    try {
      if (Plan(product, false).reference()) return false;
    } catch (const std::runtime_error &) {
      return false;  // the type is not supported at all
    }
  }
  return true;
}

}  // namespace

int version() {
  if (!library().missing.empty()) return 0;
  const Version &v = *library().version();
  return 10000 * v.major + 100 * v.minor + v.patch;
}

bool multiplies(Element type) {
  if (version() == 0) throw std::runtime_error(library().missing);
  static const bool half = has_kernel(kHalf), bfloat16 = has_kernel(kBfloat16);
  return type == kHalf ? half : type == kBfloat16 ? bfloat16 : true;
}

void multiply(const Product &product, const void *a, const void *b, void *c, const float *bias) {
  if (version() == 0) throw std::runtime_error(library().missing);
  const auto plan = plan_of(product, bias != nullptr);
  const Workspace scratch(plan->scratchpad_bytes);
  const Memory memory_a(plan->a.handle, a), memory_b(plan->b.handle, b), memory_c(plan->c.handle, c), memory_bias(plan->bias.handle, bias);
  Owned memory_scratch(library().memory_destroy);
  Argument arguments[5] = {{kSource, memory_a.handle}, {kWeights, memory_b.handle}, {kDestination, memory_c.handle}};
  int count = 3;
  if (bias) arguments[count++] = {kBias, memory_bias.handle};
  if (plan->scratchpad_bytes) {
    check(library().memory_create(&memory_scratch.handle, plan->scratchpad, library().engine, scratch.as<void>()), "memory_create");
    arguments[count++] = {kScratchpad, memory_scratch.handle};
  }
  check(library().primitive_execute(plan->primitive.handle, stream(), count, arguments), "primitive_execute");
}

}  // namespace onednn
}  // namespace ascend_ops

extern "C" __attribute__((visibility("default"))) int ascend_ops_onednn_version() { return ascend_ops::onednn::version(); }
