// Registration, tiling and inference of SeriesGlu.
#include "series_tiling.h"

namespace optiling {
REGISTER_TILING_DATA_CLASS(SeriesGlu, SeriesTilingData)

static ge::graphStatus TileSeriesGlu(gert::TilingContext *context) {
    const SeriesOp op = {"SeriesGlu", 2, 2, false, 3, 5};
    return SeriesTiler(context, op).Run();
}
}  // namespace optiling

namespace ge {
static graphStatus InferShapeSeriesGlu(gert::InferShapeContext *context) { return pangu_op::CopyShapes(context, {0}); }
static graphStatus InferTypeSeriesGlu(gert::InferDataTypeContext *context) { return pangu_op::CopyTypes(context, {0}); }
}  // namespace ge

namespace ops {
class SeriesGlu : public OpDef {
  public:
    explicit SeriesGlu(const char *name) : OpDef(name) {
        const pangu_op::Ports inputs = {{"gate", pangu_op::Element::T}, {"up", pangu_op::Element::T},
                                        {"gate_bias", pangu_op::Element::FLOAT}, {"up_bias", pangu_op::Element::FLOAT},
                                        {"scale", pangu_op::Element::FLOAT}, {"shift", pangu_op::Element::FLOAT}};
        const pangu_op::Ports outputs = {{"y", pangu_op::Element::T}};
        pangu_op::DeclareOp(*this, inputs, outputs);
        this->Attr("activation").AttrType(REQUIRED).Int();
        this->SetInferShape(ge::InferShapeSeriesGlu).SetInferDataType(ge::InferTypeSeriesGlu);
        this->AICore().SetTiling(optiling::TileSeriesGlu);
    }
};
OP_ADD(SeriesGlu);
}  // namespace ops
