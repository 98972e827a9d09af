// Makes a library out of one kernel source with each dtype once. The driver (a test writes it) includes this and the shared headers of op_kernel,
// and then for each dtype renames class and entry and includes the source again:
//     #define SeriesGlu SeriesGlu_float16
//     #define series_glu series_glu_float16
//     #define DTYPE_GATE half
//     #include "series_glu.cpp"
//     HOST_KERNEL(float16, series_glu_float16)
#ifndef PANGU_HOST_KERNEL_LIBRARY_H
#define PANGU_HOST_KERNEL_LIBRARY_H

#include <map>
#include <utility>

#include "kernel_operator.h"

namespace host {
using KernelCall = void (*)(GM_ADDR *);

inline std::map<std::string, KernelCall> &Kernels() {
    static std::map<std::string, KernelCall> kernels;
    return kernels;
}

template <auto Kernel, size_t... I>
void Call(GM_ADDR *arguments, std::index_sequence<I...>) {
    Kernel(arguments[I]...);
}
template <typename... A>
constexpr size_t Arity(void (*)(A...)) {
    return sizeof...(A);
}
template <auto Kernel>
bool AddKernel(const char *dtype) {
    Kernels()[dtype] = [](GM_ADDR *arguments) { Call<Kernel>(arguments, std::make_index_sequence<Arity(Kernel)>()); };
    return true;
}

// All tensors, then the workspace, then the tiling data, as the kernel entry takes them
struct Run {
    KernelCall kernel;
    std::vector<GM_ADDR> arguments;
};
}  // namespace host

#define HOST_KERNEL(dtype, entry) static const bool added_##entry = host::AddKernel<entry>(#dtype);

extern "C" {
// tensors: inputs, then outputs; names in the same order. Returns the first error, or an empty text; result[0] = peak of the unified buffer.
const char *RunKernel(const char *dtype, uint32_t cores, int inputs, int count, const char **names, uint8_t **tensors, const uint64_t *bytes,
                             const uint8_t *tiling, uint64_t tilingBytes, uint64_t workspaceBytes, uint64_t *result) {
    static thread_local std::string error;
    static uint64_t peak;
    static std::mutex peakMutex;
    host::Launch launch(cores);
    std::vector<uint8_t> workspace(workspaceBytes + host::BLOCK, 0xFF);
    host::Run run{host::Kernels().at(dtype), {}};
    for (int i = 0; i < count; ++i) {
        launch.buffers.push_back({names[i], tensors[i], bytes[i], i >= inputs, false, std::vector<host::GmBuffer::Writer>(bytes[i] / host::BLOCK + 2)});
        run.arguments.push_back(tensors[i]);
    }
    launch.buffers.push_back({"workspace", workspace.data() + host::SYSTEM_WORKSPACE, workspaceBytes - host::SYSTEM_WORKSPACE, true, true,
                              std::vector<host::GmBuffer::Writer>(workspaceBytes / host::BLOCK + 2)});
    run.arguments.push_back(workspace.data());
    run.arguments.push_back(const_cast<GM_ADDR>(tiling));
    launch.tilingBytes = tilingBytes;
    peak = 0;
    error = host::RunCores(
        launch,
        [](void *argument) {
            auto *r = static_cast<host::Run *>(argument);
            r->kernel(r->arguments.data());
            std::lock_guard<std::mutex> lock(peakMutex);
            peak = std::max(peak, host::ThisCore().ubPeak);
        },
        &run);
    result[0] = peak;
    return error.c_str();
}
}
#endif
