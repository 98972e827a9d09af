// Stands for CANN's header of the same name: the chip is the one that the tiling context names.
#ifndef PANGU_HOST_PLATFORM_ASCENDC_H
#define PANGU_HOST_PLATFORM_ASCENDC_H

#include "register/op_def_registry.h"

namespace platform_ascendc {
enum class CoreMemType { L0_A, L0_B, L0_C, L1, L2, UB, HBM };
enum class SocVersion { ASCEND910, ASCEND910B };

class PlatformAscendC {
  public:
    explicit PlatformAscendC(gert::TilingContext *context) : context_(context) {}
    uint32_t GetCoreNumAiv() const { return context_->cores; }
    void GetCoreMemSize(CoreMemType, uint64_t &bytes) const { bytes = (context_->chip >= 220 ? 192 : 256) * 1024; }
    uint32_t GetLibApiWorkSpaceSize() const { return 4096; }  // as host::SYSTEM_WORKSPACE
    SocVersion GetSocVersion() const { return context_->chip >= 220 ? SocVersion::ASCEND910B : SocVersion::ASCEND910; }

  private:
    gert::TilingContext *context_;
};
}  // namespace platform_ascendc
#endif
