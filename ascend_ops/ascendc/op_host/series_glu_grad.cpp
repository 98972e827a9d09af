// Registration, tiling and inference of SeriesGluGrad.
#include "series_tiling.h"

namespace optiling {
REGISTER_TILING_DATA_CLASS(SeriesGluGrad, SeriesTilingData)

static ge::graphStatus TileSeriesGluGrad(gert::TilingContext *context) {
    const SeriesOp op = {"SeriesGluGrad", 3, 2, true, 5, 8};
    return SeriesTiler(context, op).Run();
}
}  // namespace optiling

namespace ge {
static graphStatus InferShapeSeriesGluGrad(gert::InferShapeContext *context) { return pangu_op::CopyShapes(context, {1, 2, 3, 4, 5, 6}); }
static graphStatus InferTypeSeriesGluGrad(gert::InferDataTypeContext *context) { return pangu_op::CopyTypes(context, {1, 2, 3, 4, 5, 6}); }
}  // namespace ge

namespace ops {
class SeriesGluGrad : public OpDef {
  public:
    explicit SeriesGluGrad(const char *name) : OpDef(name) {
        const pangu_op::Ports inputs = {{"dy", pangu_op::Element::T}, {"gate", pangu_op::Element::T}, {"up", pangu_op::Element::T},
                                        {"gate_bias", pangu_op::Element::FLOAT}, {"up_bias", pangu_op::Element::FLOAT},
                                        {"scale", pangu_op::Element::FLOAT}, {"shift", pangu_op::Element::FLOAT}};
        const pangu_op::Ports outputs = {{"dgate", pangu_op::Element::T}, {"dup", pangu_op::Element::T},
                                         {"dgate_bias", pangu_op::Element::FLOAT}, {"dup_bias", pangu_op::Element::FLOAT},
                                         {"dscale", pangu_op::Element::FLOAT}, {"dshift", pangu_op::Element::FLOAT}};
        pangu_op::DeclareOp(*this, inputs, outputs);
        this->Attr("activation").AttrType(REQUIRED).Int();
        this->SetInferShape(ge::InferShapeSeriesGluGrad).SetInferDataType(ge::InferTypeSeriesGluGrad);
        this->AICore().SetTiling(optiling::TileSeriesGluGrad);
    }
};
OP_ADD(SeriesGluGrad);
}  // namespace ops
