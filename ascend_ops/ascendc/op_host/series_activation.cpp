// Registration, tiling and inference of SeriesActivation.
#include "series_tiling.h"

namespace optiling {
REGISTER_TILING_DATA_CLASS(SeriesActivation, SeriesTilingData)

static ge::graphStatus TileSeriesActivation(gert::TilingContext *context) {
    const SeriesOp op = {"SeriesActivation", 1, 1, false, 2, 5};
    return SeriesTiler(context, op).Run();
}
}  // namespace optiling

namespace ge {
static graphStatus InferShapeSeriesActivation(gert::InferShapeContext *context) { return pangu_op::CopyShapes(context, {0}); }
static graphStatus InferTypeSeriesActivation(gert::InferDataTypeContext *context) { return pangu_op::CopyTypes(context, {0}); }
}  // namespace ge

namespace ops {
class SeriesActivation : public OpDef {
  public:
    explicit SeriesActivation(const char *name) : OpDef(name) {
        const pangu_op::Ports inputs = {{"x", pangu_op::Element::T},
                                        {"bias", pangu_op::Element::FLOAT}, {"scale", pangu_op::Element::FLOAT}, {"shift", pangu_op::Element::FLOAT}};
        const pangu_op::Ports outputs = {{"y", pangu_op::Element::T}};
        pangu_op::DeclareOp(*this, inputs, outputs);
        this->Attr("activation").AttrType(REQUIRED).Int();
        this->SetInferShape(ge::InferShapeSeriesActivation).SetInferDataType(ge::InferTypeSeriesActivation);
        this->AICore().SetTiling(optiling::TileSeriesActivation);
    }
};
OP_ADD(SeriesActivation);
}  // namespace ops
