// What the op_host sources share: declaring the ports of an operator, what tiling asks the platform, and refusing a call with a reason.
#ifndef PANGU_OP_HELPERS_H
#define PANGU_OP_HELPERS_H

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <vector>

#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"

namespace pangu_op {
enum class Element { T, FLOAT, INT };  // T: the float type of the call, see ascend_ops/table.py

struct Port {
    const char *name;
    Element element;
};
using Ports = std::vector<Port>;

// One column for each dtype that T may be, in the order of the table; bfloat16 does not exist on ascend910.
inline std::vector<ge::DataType> Column(Element element, const std::vector<ge::DataType> &types) {
    if (element == Element::T) {
        return types;
    }
    return std::vector<ge::DataType>(types.size(), element == Element::FLOAT ? ge::DT_FLOAT : ge::DT_INT32);
}

template <typename Param>
void DeclarePort(Param &param, const Port &port, const std::vector<ge::DataType> &types) {
    const std::vector<ge::Format> formats(types.size(), ge::FORMAT_ND);
    param.ParamType(ops::REQUIRED).DataType(Column(port.element, types)).Format(formats).UnknownShapeFormat(formats);
}

// `definition` is an OpDef or the OpAICoreConfig of one chip.
template <typename Definition>
void DeclarePorts(Definition &definition, const Ports &inputs, const Ports &outputs, const std::vector<ge::DataType> &types) {
    for (const Port &port : inputs) {
        DeclarePort(definition.Input(port.name), port, types);
    }
    for (const Port &port : outputs) {
        DeclarePort(definition.Output(port.name), port, types);
    }
}

inline bool UsesT(const Ports &ports) {
    for (const Port &port : ports) {
        if (port.element == Element::T) {
            return true;
        }
    }
    return false;
}

inline void DeclareOp(ops::OpDef &op, const Ports &inputs, const Ports &outputs) {
    const bool floats = UsesT(inputs);
    const std::vector<ge::DataType> none = {ge::DT_INT32};
    DeclarePorts(op, inputs, outputs, floats ? std::vector<ge::DataType>{ge::DT_FLOAT, ge::DT_FLOAT16, ge::DT_BF16} : none);
    ops::OpAICoreConfig ascend910;
    DeclarePorts(ascend910, inputs, outputs, floats ? std::vector<ge::DataType>{ge::DT_FLOAT, ge::DT_FLOAT16} : none);
    op.AICore().AddConfig("ascend910", ascend910);
    op.AICore().AddConfig("ascend910b");
    op.AICore().AddConfig("ascend910_93");
}

struct Platform {
    uint32_t cores = 1;
    uint64_t ubBytes = 0;
    uint32_t systemWorkspace = 0;
    bool ascend910 = false;

    explicit Platform(gert::TilingContext *context) {
        platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
        cores = platform.GetCoreNumAiv();
        platform.GetCoreMemSize(platform_ascendc::CoreMemType::UB, ubBytes);
        systemWorkspace = platform.GetLibApiWorkSpaceSize();
        ascend910 = platform.GetSocVersion() == platform_ascendc::SocVersion::ASCEND910;
    }
};

// Tiling runs in the framework's process and has no other public channel than its return value; the reason goes to stderr.
inline ge::graphStatus Reject(const char *op, const char *reason) {
    std::fprintf(stderr, "%s: %s\n", op, reason);
    return ge::GRAPH_FAILED;
}

constexpr uint64_t SHARE_UNIT = 16;  // as in op_kernel/tile_io.h
constexpr uint64_t MAX_ELEMENTS = 0x7fffffff;

inline uint64_t CeilDiv(uint64_t a, uint64_t b) { return (a + b - 1) / b; }
inline uint64_t RoundUp(uint64_t a, uint64_t unit) { return CeilDiv(a, unit) * unit; }

inline const gert::Shape &InputShape(gert::TilingContext *context, size_t index) { return context->GetInputShape(index)->GetStorageShape(); }
inline uint64_t Numel(gert::TilingContext *context, size_t index) { return static_cast<uint64_t>(InputShape(context, index).GetShapeSize()); }
inline uint64_t ElementBytes(gert::TilingContext *context, size_t index) {
    return context->GetInputDesc(index)->GetDataType() == ge::DT_FLOAT ? 4 : 2;
}

// Width of the tiles of a row of `columns`: at most `limit`, a multiple of 16 unless one tile takes all, about equal. On ascend910 the last tile
// of a ragged row must not be shorter than a block, for it is stored from its end; 0 when there is no such width.
inline uint64_t TileColumns(uint64_t columns, uint64_t limit, bool ascend910) {
    uint64_t width = RoundUp(CeilDiv(columns, CeilDiv(columns, limit)), SHARE_UNIT);
    if (!ascend910 || columns % SHARE_UNIT == 0 || columns <= width) {
        return width;
    }
    while (width > 0 && columns % width < SHARE_UNIT) {
        width -= SHARE_UNIT;
    }
    return width;
}

// Number of cores and units of SHARE_UNIT elements for each, when cores own contiguous ranges. On ascend910 rows shorter than a block are
// stored element by element through the data cache, which only one core may do.
struct Shares {
    uint64_t cores = 1, units = 1;
    Shares(uint64_t total, const Platform &platform, uint64_t rowLength = SHARE_UNIT) {
        const uint64_t whole = total / SHARE_UNIT;
        const bool single = platform.ascend910 && rowLength < SHARE_UNIT;
        units = whole == 0 ? 1 : CeilDiv(whole, single ? 1 : platform.cores);
        cores = whole == 0 ? 1 : CeilDiv(whole, units);
    }
};

// `synchronised`: the kernel waits for all cores, so they must be scheduled together (batch mode), or two streams could block each other.
template <typename Tiling>
ge::graphStatus Finish(gert::TilingContext *context, Tiling &tiling, uint64_t cores, uint64_t workspaceBytes, bool synchronised) {
    context->SetBlockDim(static_cast<uint32_t>(cores));
    context->SetScheduleMode(synchronised ? 1 : 0);
    tiling.SaveToBuffer(context->GetRawTilingData()->GetData(), context->GetRawTilingData()->GetCapacity());
    context->GetRawTilingData()->SetDataSize(tiling.GetDataSize());
    context->GetWorkspaceSizes(1)[0] = workspaceBytes;
    return ge::GRAPH_SUCCESS;
}
}  // namespace pangu_op
#endif
