// Registration, tiling and inference of MoeDispatch.
#include <algorithm>

#include "moe_dispatch_tiling.h"

namespace optiling {
REGISTER_TILING_DATA_CLASS(MoeDispatch, MoeDispatchTilingData)

constexpr uint64_t MAX_EXPERTS = 4096, MAX_CHUNK = 4096, SEGMENT = 2048, MAX_COLUMNS = 8192;
// Three vectors over the experts, two over a chunk, one over a segment and two pieces of a row in float32 share the smaller unified buffer.
static_assert(4 * (3 * MAX_EXPERTS + 2 * MAX_CHUNK + SEGMENT + 2 * MAX_COLUMNS) <= 190 * 1024, "limits of MoeDispatch");

static const char *CheckShapes(gert::TilingContext *context) {
    const gert::Shape &x = pangu_op::InputShape(context, 0);
    const uint64_t slots = pangu_op::Numel(context, 1), experts = pangu_op::Numel(context, 2);
    if (x.GetDimNum() != 2 || x.GetDim(0) < 1 || x.GetDim(1) < 1 || x.GetDim(1) > static_cast<int64_t>(pangu_op::MAX_ELEMENTS)) {
        return "x must be [tokens, hidden_size] with at least one of both";
    }
    if (experts < 1 || experts > MAX_EXPERTS) {
        return "experts must have 1 to 4096 elements";
    }
    if (slots == 0 || slots > pangu_op::MAX_ELEMENTS || slots % static_cast<uint64_t>(x.GetDim(0)) != 0) {
        return "expert must have top_k elements for each row of x, at most 2^31 - 1";
    }
    return nullptr;
}

static ge::graphStatus TileMoeDispatch(gert::TilingContext *context) {
    if (const char *problem = CheckShapes(context)) {
        return pangu_op::Reject("MoeDispatch", problem);
    }
    const pangu_op::Platform platform(context);
    const uint64_t tokens = static_cast<uint64_t>(pangu_op::InputShape(context, 0).GetDim(0));
    const uint64_t hidden = static_cast<uint64_t>(pangu_op::InputShape(context, 0).GetDim(1));
    const uint64_t slots = pangu_op::Numel(context, 1), experts = pangu_op::Numel(context, 2);
    const pangu_op::Shares shares(slots, platform, hidden);
    const uint64_t chunk = std::min(MAX_CHUNK, pangu_op::RoundUp(pangu_op::CeilDiv(slots, shares.cores), pangu_op::SHARE_UNIT));
    const uint64_t chunks = pangu_op::CeilDiv(slots, chunk);
    const uint64_t histogram = pangu_op::RoundUp(experts, pangu_op::SHARE_UNIT);
    const uint64_t histograms = shares.cores * 8;  // after the flags of SyncAll
    const uint64_t sorted = histograms + chunks * histogram;
    const uint64_t ints = sorted + chunks * chunk;
    if (ints > pangu_op::MAX_ELEMENTS) {
        return pangu_op::Reject("MoeDispatch", "histograms and sorted slots need more than 8 GiB of workspace");
    }
    MoeDispatchTilingData tiling;
    tiling.set_tokens(static_cast<uint32_t>(tokens));
    tiling.set_topK(static_cast<uint32_t>(slots / tokens));
    tiling.set_slots(static_cast<uint32_t>(slots));
    tiling.set_hiddenSize(static_cast<uint32_t>(hidden));
    tiling.set_numExperts(static_cast<uint32_t>(experts));
    tiling.set_tileColumns(static_cast<uint32_t>(pangu_op::TileColumns(hidden, MAX_COLUMNS, platform.ascend910)));
    tiling.set_chunkLength(static_cast<uint32_t>(chunk));
    tiling.set_chunks(static_cast<uint32_t>(chunks));
    tiling.set_histogramLength(static_cast<uint32_t>(histogram));
    tiling.set_unitsPerCore(static_cast<uint32_t>(shares.units));
    tiling.set_segmentLength(static_cast<uint32_t>(SEGMENT));
    tiling.set_histograms(static_cast<uint32_t>(histograms));
    tiling.set_sortedSlots(static_cast<uint32_t>(sorted));
    tiling.set_workspaceInts(static_cast<uint32_t>(ints));
    return pangu_op::Finish(context, tiling, shares.cores, platform.systemWorkspace + ints * sizeof(int32_t), true);
}
}  // namespace optiling

namespace ge {
// rows: the shape of expert followed by the hidden size; order as expert; counts as experts
static graphStatus InferShapeMoeDispatch(gert::InferShapeContext *context) {
    gert::Shape *rows = context->GetOutputShape(0);
    *rows = *context->GetInputShape(1);
    rows->AppendDim(context->GetInputShape(0)->GetDim(1));
    *context->GetOutputShape(1) = *context->GetInputShape(1);
    *context->GetOutputShape(2) = *context->GetInputShape(2);
    return GRAPH_SUCCESS;
}
static graphStatus InferTypeMoeDispatch(gert::InferDataTypeContext *context) {
    context->SetOutputDataType(0, context->GetInputDataType(0));
    context->SetOutputDataType(1, DT_INT32);
    context->SetOutputDataType(2, DT_INT32);
    return GRAPH_SUCCESS;
}
}  // namespace ge

namespace ops {
class MoeDispatch : public OpDef {
  public:
    explicit MoeDispatch(const char *name) : OpDef(name) {
        const pangu_op::Ports inputs = {{"x", pangu_op::Element::T}, {"expert", pangu_op::Element::INT}, {"experts", pangu_op::Element::INT}};
        const pangu_op::Ports outputs = {{"rows", pangu_op::Element::T}, {"order", pangu_op::Element::INT}, {"counts", pangu_op::Element::INT}};
        pangu_op::DeclareOp(*this, inputs, outputs);
        this->SetInferShape(ge::InferShapeMoeDispatch).SetInferDataType(ge::InferTypeMoeDispatch);
        this->AICore().SetTiling(optiling::TileMoeDispatch);
    }
};
OP_ADD(MoeDispatch);
}  // namespace ops
