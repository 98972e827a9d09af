// The op_host sources as a library for tests: what is registered, and the functions of an operator, through plain C types.
#include <cstdio>
#include <sstream>
#include <stdexcept>

#include "register/op_def_registry.h"

namespace {
const char *TypeName(ge::DataType type) {
    switch (type) {
        case ge::DT_FLOAT: return "float32";
        case ge::DT_FLOAT16: return "float16";
        case ge::DT_BF16: return "bfloat16";
        default: return "int32";
    }
}

void WriteParams(std::ostream &out, const char *kind, const std::vector<std::unique_ptr<ops::OpParamDef>> &params) {
    for (const auto &p : params) {
        out << kind << " " << p->name << " " << (p->option == ops::REQUIRED ? "required" : "optional");
        for (ge::DataType type : p->types) {
            out << " " << TypeName(type);
        }
        out << (p->formats.size() == p->types.size() && p->unknownFormats.size() == p->types.size() ? "" : " formats-missing") << "\n";
    }
}

std::string Describe(const ops::OpDef &op) {
    std::ostringstream out;
    out << "op " << op.name << "\n";
    WriteParams(out, "input", op.params.inputs);
    WriteParams(out, "output", op.params.outputs);
    for (const auto &a : op.attrs) {
        out << "attr " << a->name << " " << (a->option == ops::REQUIRED ? "required" : "optional") << " " << a->type << "\n";
    }
    for (const auto &[soc, config] : op.core.configs) {
        out << "config " << soc << "\n";
        WriteParams(out, "config-input", config.params->inputs);
        WriteParams(out, "config-output", config.params->outputs);
    }
    return out.str();
}

// shapes: for each tensor its number of dimensions, then the dimensions
gert::Shape NextShape(const int64_t *&shapes) {
    gert::Shape shape;
    for (int64_t left = *shapes++; left > 0; --left) {
        shape.AppendDim(*shapes++);
    }
    return shape;
}

const ops::OpDef &Find(const char *name) { return *ops::Registry().at(name); }
}  // namespace

extern "C" {
int describe_ops(char *text, size_t capacity) {
    std::string all;
    for (const auto &[name, op] : ops::Registry()) {
        all += Describe(*op);
    }
    return std::snprintf(text, capacity, "%s", all.c_str());
}

// result: block dim, workspace bytes, tiling bytes, schedule mode. 0 when tiling refuses or throws.
int tile_op(const char *name, uint32_t chip, uint32_t cores, int inputs, const int64_t *shapes, const int *types, int64_t attr, uint8_t *tiling,
            uint64_t *result) {
    gert::TilingContext context;
    context.chip = chip;
    context.cores = cores;
    context.attrs.values = {attr};
    for (int i = 0; i < inputs; ++i) {
        context.shapes.push_back({NextShape(shapes)});
        context.descriptions.push_back({static_cast<ge::DataType>(types[i])});
    }
    try {
        if (Find(name).core.tiling(&context) != ge::GRAPH_SUCCESS) {
            return 0;
        }
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s: tiling threw %s\n", name, e.what());
        return 0;
    }
    std::memcpy(tiling, context.raw.GetData(), context.raw.size);
    result[0] = context.blockDim;
    result[1] = context.workspaces.at(0);
    result[2] = context.raw.size;
    result[3] = context.scheduleMode;
    return 1;
}

// outShapes as shapes; outTypes one for each output
int infer_op(const char *name, int inputs, const int64_t *shapes, const int *types, int64_t *outShapes, int *outTypes) {
    const ops::OpDef &op = Find(name);
    gert::InferShapeContext shapeContext;
    gert::InferDataTypeContext typeContext;
    for (int i = 0; i < inputs; ++i) {
        shapeContext.inputs.push_back(NextShape(shapes));
        typeContext.inputs.push_back(static_cast<ge::DataType>(types[i]));
    }
    shapeContext.outputs.resize(op.params.outputs.size());
    typeContext.outputs.resize(op.params.outputs.size());
    if (op.inferShape(&shapeContext) != ge::GRAPH_SUCCESS || op.inferType(&typeContext) != ge::GRAPH_SUCCESS) {
        return 0;
    }
    for (size_t i = 0; i < op.params.outputs.size(); ++i) {
        const gert::Shape &shape = shapeContext.outputs[i];
        *outShapes++ = static_cast<int64_t>(shape.GetDimNum());
        for (size_t d = 0; d < shape.GetDimNum(); ++d) {
            *outShapes++ = shape.GetDim(d);
        }
        outTypes[i] = typeContext.outputs[i];
    }
    return 1;
}
}
