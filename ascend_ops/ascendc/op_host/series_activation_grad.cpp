// Registration, tiling and inference of SeriesActivationGrad.
#include "series_tiling.h"

namespace optiling {
REGISTER_TILING_DATA_CLASS(SeriesActivationGrad, SeriesTilingData)

static ge::graphStatus TileSeriesActivationGrad(gert::TilingContext *context) {
    const SeriesOp op = {"SeriesActivationGrad", 2, 1, true, 3, 6};
    return SeriesTiler(context, op).Run();
}
}  // namespace optiling

namespace ge {
static graphStatus InferShapeSeriesActivationGrad(gert::InferShapeContext *context) { return pangu_op::CopyShapes(context, {1, 2, 3, 4}); }
static graphStatus InferTypeSeriesActivationGrad(gert::InferDataTypeContext *context) { return pangu_op::CopyTypes(context, {1, 2, 3, 4}); }
}  // namespace ge

namespace ops {
class SeriesActivationGrad : public OpDef {
  public:
    explicit SeriesActivationGrad(const char *name) : OpDef(name) {
        const pangu_op::Ports inputs = {{"dy", pangu_op::Element::T}, {"x", pangu_op::Element::T},
                                        {"bias", pangu_op::Element::FLOAT}, {"scale", pangu_op::Element::FLOAT}, {"shift", pangu_op::Element::FLOAT}};
        const pangu_op::Ports outputs = {{"dx", pangu_op::Element::T},
                                         {"dbias", pangu_op::Element::FLOAT}, {"dscale", pangu_op::Element::FLOAT}, {"dshift", pangu_op::Element::FLOAT}};
        pangu_op::DeclareOp(*this, inputs, outputs);
        this->Attr("activation").AttrType(REQUIRED).Int();
        this->SetInferShape(ge::InferShapeSeriesActivationGrad).SetInferDataType(ge::InferTypeSeriesActivationGrad);
        this->AICore().SetTiling(optiling::TileSeriesActivationGrad);
    }
};
OP_ADD(SeriesActivationGrad);
}  // namespace ops
