// Registration, tiling and inference of MoeCombine.
#include <algorithm>

#include "moe_combine_tiling.h"

namespace optiling {
REGISTER_TILING_DATA_CLASS(MoeCombine, MoeCombineTilingData)

constexpr uint64_t MAX_BLOCK_SLOTS = 8192, ORDER_LENGTH = 4096, MAX_COLUMNS = 4096;
// Positions and weights of a block, a piece of order, and in float32 two pieces of rows, two of y, a sum and a row share the smaller unified buffer.
static_assert(4 * (2 * MAX_BLOCK_SLOTS + ORDER_LENGTH + 6 * MAX_COLUMNS) <= 190 * 1024, "limits of MoeCombine");

static const char *CheckShapes(gert::TilingContext *context) {
    const gert::Shape &weights = pangu_op::InputShape(context, 2);
    const uint64_t slots = pangu_op::Numel(context, 1);
    if (weights.GetDimNum() != 2 || weights.GetDim(1) < 1 || weights.GetDim(1) > static_cast<int64_t>(MAX_BLOCK_SLOTS)) {
        return "weights must be [tokens, top_k] with 1 <= top_k <= 8192";
    }
    const gert::Shape &rows = pangu_op::InputShape(context, 0);
    if (rows.GetDimNum() != 2 || rows.GetDim(1) < 1 || static_cast<uint64_t>(rows.GetDim(0)) != slots) {
        return "rows must be [tokens * top_k, hidden_size] with one row for each entry of order";
    }
    if (slots != pangu_op::Numel(context, 2) || slots > pangu_op::MAX_ELEMENTS) {
        return "order must have tokens * top_k elements, at most 2^31 - 1";
    }
    return nullptr;
}

static ge::graphStatus TileMoeCombine(gert::TilingContext *context) {
    if (const char *problem = CheckShapes(context)) {
        return pangu_op::Reject("MoeCombine", problem);
    }
    const pangu_op::Platform platform(context);
    const uint64_t tokens = static_cast<uint64_t>(pangu_op::InputShape(context, 2).GetDim(0));
    const uint64_t topK = static_cast<uint64_t>(pangu_op::InputShape(context, 2).GetDim(1));
    const uint64_t hidden = static_cast<uint64_t>(pangu_op::InputShape(context, 0).GetDim(1));
    const pangu_op::Shares shares(tokens, platform, hidden);
    const uint64_t most = shares.units * pangu_op::SHARE_UNIT + pangu_op::SHARE_UNIT - 1;  // tokens of the last core
    const uint64_t block = std::min(most, MAX_BLOCK_SLOTS / topK);
    MoeCombineTilingData tiling;
    tiling.set_tokens(static_cast<uint32_t>(tokens));
    tiling.set_topK(static_cast<uint32_t>(topK));
    tiling.set_hiddenSize(static_cast<uint32_t>(hidden));
    tiling.set_tileColumns(static_cast<uint32_t>(pangu_op::TileColumns(hidden, MAX_COLUMNS, platform.ascend910)));
    tiling.set_unitsPerCore(static_cast<uint32_t>(shares.units));
    tiling.set_blockTokens(static_cast<uint32_t>(block));
    tiling.set_blockSlots(static_cast<uint32_t>(pangu_op::RoundUp(block * topK, pangu_op::SHARE_UNIT)));
    tiling.set_orderLength(static_cast<uint32_t>(ORDER_LENGTH));
    return pangu_op::Finish(context, tiling, shares.cores, platform.systemWorkspace, false);
}
}  // namespace optiling

namespace ge {
static graphStatus InferShapeMoeCombine(gert::InferShapeContext *context) {
    gert::Shape *y = context->GetOutputShape(0);
    *y = gert::Shape();
    y->AppendDim(context->GetInputShape(2)->GetDim(0));
    y->AppendDim(context->GetInputShape(0)->GetDim(1));
    return GRAPH_SUCCESS;
}
static graphStatus InferTypeMoeCombine(gert::InferDataTypeContext *context) {
    context->SetOutputDataType(0, context->GetInputDataType(0));
    return GRAPH_SUCCESS;
}
}  // namespace ge

namespace ops {
class MoeCombine : public OpDef {
  public:
    explicit MoeCombine(const char *name) : OpDef(name) {
        const pangu_op::Ports inputs = {{"rows", pangu_op::Element::T}, {"order", pangu_op::Element::INT}, {"weights", pangu_op::Element::FLOAT}};
        const pangu_op::Ports outputs = {{"y", pangu_op::Element::T}};
        pangu_op::DeclareOp(*this, inputs, outputs);
        this->SetInferShape(ge::InferShapeMoeCombine).SetInferDataType(ge::InferTypeMoeCombine);
        this->AICore().SetTiling(optiling::TileMoeCombine);
    }
};
OP_ADD(MoeCombine);
}  // namespace ops
