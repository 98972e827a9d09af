// Registration, tiling and inference of RreRoute.
#include "rre_route_tiling.h"

namespace optiling {
REGISTER_TILING_DATA_CLASS(RreRoute, RreRouteTilingData)

static ge::graphStatus TileRreRoute(gert::TilingContext *context) {
    const gert::Shape &table = pangu_op::InputShape(context, 2);
    const uint64_t length = pangu_op::Numel(context, 1);
    if (table.GetDimNum() != 2 || pangu_op::Numel(context, 2) == 0 || pangu_op::Numel(context, 2) > pangu_op::MAX_ELEMENTS) {
        return pangu_op::Reject("RreRoute", "table must be [domains, vocab_size] with 1 to 2^31 - 1 entries");
    }
    if (pangu_op::Numel(context, 0) != length || length > pangu_op::MAX_ELEMENTS) {
        return pangu_op::Reject("RreRoute", "domain and ids must have one shape of at most 2^31 - 1 elements");
    }
    const pangu_op::Shares shares(length, pangu_op::Platform(context));
    RreRouteTilingData tiling;
    tiling.set_length(static_cast<uint32_t>(length));
    tiling.set_domains(static_cast<uint32_t>(table.GetDim(0)));
    tiling.set_vocabSize(static_cast<uint32_t>(table.GetDim(1)));
    tiling.set_unitsPerCore(static_cast<uint32_t>(shares.units));
    tiling.set_tileLength(1024);
    return pangu_op::Finish(context, tiling, shares.cores, pangu_op::Platform(context).systemWorkspace, false);
}
}  // namespace optiling

namespace ge {
static graphStatus InferShapeRreRoute(gert::InferShapeContext *context) {
    *context->GetOutputShape(0) = *context->GetInputShape(1);
    return GRAPH_SUCCESS;
}
static graphStatus InferTypeRreRoute(gert::InferDataTypeContext *context) {
    context->SetOutputDataType(0, DT_INT32);
    return GRAPH_SUCCESS;
}
}  // namespace ge

namespace ops {
class RreRoute : public OpDef {
  public:
    explicit RreRoute(const char *name) : OpDef(name) {
        const pangu_op::Ports inputs = {{"domain", pangu_op::Element::INT}, {"ids", pangu_op::Element::INT}, {"table", pangu_op::Element::INT}};
        const pangu_op::Ports outputs = {{"expert", pangu_op::Element::INT}};
        pangu_op::DeclareOp(*this, inputs, outputs);
        this->SetInferShape(ge::InferShapeRreRoute).SetInferDataType(ge::InferTypeRreRoute);
        this->AICore().SetTiling(optiling::TileRreRoute);
    }
};
OP_ADD(RreRoute);
}  // namespace ops
