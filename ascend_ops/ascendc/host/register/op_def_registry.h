// Stands for CANN's registration headers when op_host runs on a CPU: operator definitions, shapes, and the contexts of inference and tiling.
// Only what the op_host sources here use. A definition is kept in a registry, from which the tests read it and call its functions.
#ifndef PANGU_HOST_OP_DEF_REGISTRY_H
#define PANGU_HOST_OP_DEF_REGISTRY_H

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ge {
using graphStatus = uint32_t;
constexpr graphStatus GRAPH_SUCCESS = 0, GRAPH_FAILED = 0xFFFFFFFF;
enum DataType { DT_FLOAT = 0, DT_FLOAT16 = 1, DT_INT32 = 3, DT_BF16 = 27 };
enum Format { FORMAT_ND = 2 };
}  // namespace ge

namespace gert {
class Shape {
  public:
    size_t GetDimNum() const { return dims_.size(); }
    int64_t GetDim(size_t i) const { return dims_.at(i); }
    Shape &AppendDim(int64_t dim) {
        dims_.push_back(dim);
        return *this;
    }
    int64_t GetShapeSize() const {
        int64_t size = 1;
        for (int64_t dim : dims_) {
            size *= dim;
        }
        return size;
    }
    bool operator==(const Shape &other) const { return dims_ == other.dims_; }

  private:
    std::vector<int64_t> dims_;
};

class StorageShape {
  public:
    Shape shape;
    const Shape &GetStorageShape() const { return shape; }
};

class RuntimeAttrs {
  public:
    std::vector<int64_t> values;
    const int64_t *GetInt(size_t i) const { return &values.at(i); }
};

struct CompileTimeTensorDesc {
    ge::DataType type;
    ge::DataType GetDataType() const { return type; }
};

struct RawTilingData {
    std::vector<uint8_t> data = std::vector<uint8_t>(4096);
    size_t size = 0;
    void *GetData() { return data.data(); }
    size_t GetCapacity() const { return data.size(); }
    void SetDataSize(size_t n) { size = n; }
};

class TilingContext {
  public:
    std::vector<StorageShape> shapes;
    std::vector<CompileTimeTensorDesc> descriptions;
    RuntimeAttrs attrs;
    RawTilingData raw;
    uint32_t chip = 220, cores = 1, blockDim = 0, scheduleMode = 0;
    std::vector<size_t> workspaces;

    const StorageShape *GetInputShape(size_t i) const { return &shapes.at(i); }
    const CompileTimeTensorDesc *GetInputDesc(size_t i) const { return &descriptions.at(i); }
    const RuntimeAttrs *GetAttrs() const { return &attrs; }
    RawTilingData *GetRawTilingData() { return &raw; }
    TilingContext *GetPlatformInfo() { return this; }
    ge::graphStatus SetBlockDim(uint32_t n) {
        blockDim = n;
        return ge::GRAPH_SUCCESS;
    }
    ge::graphStatus SetScheduleMode(uint32_t mode) {
        scheduleMode = mode;
        return ge::GRAPH_SUCCESS;
    }
    size_t *GetWorkspaceSizes(size_t n) {
        workspaces.resize(n);
        return workspaces.data();
    }
};

class InferShapeContext {
  public:
    std::vector<Shape> inputs, outputs;
    const Shape *GetInputShape(size_t i) const { return &inputs.at(i); }
    Shape *GetOutputShape(size_t i) { return &outputs.at(i); }
};

class InferDataTypeContext {
  public:
    std::vector<ge::DataType> inputs, outputs;
    ge::DataType GetInputDataType(size_t i) const { return inputs.at(i); }
    ge::graphStatus SetOutputDataType(size_t i, ge::DataType type) {
        outputs.at(i) = type;
        return ge::GRAPH_SUCCESS;
    }
};
}  // namespace gert

namespace ops {
enum Option { OPTIONAL, REQUIRED };

class OpParamDef {
  public:
    std::string name;
    Option option = OPTIONAL;
    std::vector<ge::DataType> types;
    std::vector<ge::Format> formats, unknownFormats;
    OpParamDef &ParamType(Option o) { return option = o, *this; }
    OpParamDef &DataType(std::vector<ge::DataType> t) { return types = t, *this; }
    OpParamDef &Format(std::vector<ge::Format> f) { return formats = f, *this; }
    OpParamDef &UnknownShapeFormat(std::vector<ge::Format> f) { return unknownFormats = f, *this; }
};

class OpAttrDef {
  public:
    std::string name, type;
    Option option = OPTIONAL;
    OpAttrDef &AttrType(Option o) { return option = o, *this; }
    OpAttrDef &Int() { return type = "int", *this; }
    OpAttrDef &Float() { return type = "float", *this; }
};

struct ParamList {
    std::vector<std::unique_ptr<OpParamDef>> inputs, outputs;
    static OpParamDef &Named(std::vector<std::unique_ptr<OpParamDef>> &list, const char *name) {
        list.push_back(std::make_unique<OpParamDef>());
        list.back()->name = name;
        return *list.back();
    }
};

class OpAICoreConfig {
  public:
    std::shared_ptr<ParamList> params = std::make_shared<ParamList>();
    OpParamDef &Input(const char *name) { return ParamList::Named(params->inputs, name); }
    OpParamDef &Output(const char *name) { return ParamList::Named(params->outputs, name); }
};

class OpAICoreDef {
  public:
    using TilingFunc = ge::graphStatus (*)(gert::TilingContext *);
    TilingFunc tiling = nullptr;
    std::map<std::string, OpAICoreConfig> configs;
    OpAICoreDef &SetTiling(TilingFunc f) { return tiling = f, *this; }
    OpAICoreDef &AddConfig(const char *soc) { return configs[soc], *this; }
    OpAICoreDef &AddConfig(const char *soc, OpAICoreConfig &config) { return configs[soc] = config, *this; }
};

class OpDef {
  public:
    using ShapeFunc = ge::graphStatus (*)(gert::InferShapeContext *);
    using TypeFunc = ge::graphStatus (*)(gert::InferDataTypeContext *);
    explicit OpDef(const char *name) : name(name) {}
    std::string name;
    ParamList params;
    std::vector<std::unique_ptr<OpAttrDef>> attrs;
    OpAICoreDef core;
    ShapeFunc inferShape = nullptr;
    TypeFunc inferType = nullptr;

    OpParamDef &Input(const char *n) { return ParamList::Named(params.inputs, n); }
    OpParamDef &Output(const char *n) { return ParamList::Named(params.outputs, n); }
    OpAttrDef &Attr(const char *n) {
        attrs.push_back(std::make_unique<OpAttrDef>());
        attrs.back()->name = n;
        return *attrs.back();
    }
    OpDef &SetInferShape(ShapeFunc f) { return inferShape = f, *this; }
    OpDef &SetInferDataType(TypeFunc f) { return inferType = f, *this; }
    OpAICoreDef &AICore() { return core; }
};

inline std::map<std::string, std::unique_ptr<OpDef>> &Registry() {
    static std::map<std::string, std::unique_ptr<OpDef>> registry;
    return registry;
}
template <typename Op>
bool Register(const char *name) {
    Registry()[name] = std::make_unique<Op>(name);
    return true;
}
}  // namespace ops

#define OP_ADD(Op) static const bool registered##Op = ops::Register<Op>(#Op)
#endif
