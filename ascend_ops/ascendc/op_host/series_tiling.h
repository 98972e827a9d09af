// Tiling of the four series operators; how it is used stands in op_kernel/series.h.
#ifndef PANGU_SERIES_TILING_H
#define PANGU_SERIES_TILING_H

#include <algorithm>

#include "op_helpers.h"
#include "register/tilingdata_base.h"

namespace optiling {
BEGIN_TILING_DATA_DEF(SeriesTilingData)
TILING_DATA_FIELD_DEF(uint32_t, rows);             // x is rows x channels
TILING_DATA_FIELD_DEF(uint32_t, channels);
TILING_DATA_FIELD_DEF(uint32_t, terms);
TILING_DATA_FIELD_DEF(uint32_t, activation);
TILING_DATA_FIELD_DEF(uint32_t, channelwise);      // bit k: parameter tensor k has a value per channel
TILING_DATA_FIELD_DEF(uint32_t, blockRows);
TILING_DATA_FIELD_DEF(uint32_t, tileColumns);
TILING_DATA_FIELD_DEF(uint32_t, rowCores);         // cores side by side in a column of tiles; core = columnCore * rowCores + rowCore
TILING_DATA_FIELD_DEF(uint32_t, blocksPerCore);
TILING_DATA_FIELD_DEF(uint32_t, tilesPerCore);
TILING_DATA_FIELD_DEF(uint32_t, singleParts);      // workspace, in floats: parts of sums over all channels,
TILING_DATA_FIELD_DEF(uint32_t, rowParts);         // parts of sums per channel, rows of partPitch
TILING_DATA_FIELD_DEF(uint32_t, partPitch);
TILING_DATA_FIELD_DEF(uint32_t, workspaceFloats);
END_TILING_DATA_DEF;

// What differs between the four: which input is the first matrix (x or gate), how many inputs are matrices, biases, whether gradients are
// wanted, and the queues and float32 work buffers of a block in the kernel.
struct SeriesOp {
    const char *name;
    size_t matrices;
    uint32_t biases;
    bool gradient;
    uint64_t queues, works;
};

class SeriesTiler {
  public:
    SeriesTiler(gert::TilingContext *context, const SeriesOp &op) : context_(context), op_(op), platform_(context) {}

    ge::graphStatus Run() {
        const char *problem = ReadShapes();
        problem = problem ? problem : ChooseBlock();
        if (problem) {
            return pangu_op::Reject(op_.name, problem);
        }
        ShareOut();
        return Save();
    }

  private:
    uint64_t Slots() const { return op_.biases + 2 * terms_; }

    const char *ReadShapes() {
        const gert::Shape &shape = pangu_op::InputShape(context_, 0);
        channels_ = shape.GetDimNum() == 0 ? 1 : static_cast<uint64_t>(shape.GetDim(shape.GetDimNum() - 1));
        if (channels_ == 0) {
            return "the last dimension is 0; a series activation needs channels";
        }
        rows_ = pangu_op::Numel(context_, 0) / channels_;
        if (rows_ > pangu_op::MAX_ELEMENTS || channels_ > pangu_op::MAX_ELEMENTS) {
            return "more than 2^31 - 1 rows or channels";
        }
        for (size_t i = 1; i < op_.matrices; ++i) {
            if (!(pangu_op::InputShape(context_, i) == shape)) {
                return "dy, x, gate and up must have one shape";
            }
        }
        activation_ = *context_->GetAttrs()->GetInt(0);
        if (activation_ < 0 || activation_ > 3) {
            return "activation must be 0 (gelu), 1 (gelu_erf), 2 (fast_gelu) or 3 (silu)";
        }
        return ReadParameters();
    }

    const char *ReadParameters() {
        const size_t scale = op_.matrices + op_.biases;
        if (pangu_op::InputShape(context_, scale).GetDimNum() != 2 || pangu_op::InputShape(context_, scale).GetDim(0) < 1) {
            return "scale and shift must be [n, C] or [n, 1] with n >= 1";
        }
        terms_ = static_cast<uint64_t>(pangu_op::InputShape(context_, scale).GetDim(0));
        for (uint32_t k = 0; k < op_.biases + 2; ++k) {
            const uint64_t rows = k < op_.biases ? 1 : terms_;
            const uint64_t numel = pangu_op::Numel(context_, op_.matrices + k);
            if (numel != rows && numel != rows * channels_) {
                return "a bias must be [C] or [1], scale and shift [n, C] or [n, 1]";
            }
            channelwise_ |= static_cast<uint32_t>(numel != rows) << k;
        }
        return nullptr;
    }

    uint64_t ElementCost() const { return 2 * op_.queues * pangu_op::ElementBytes(context_, 0) + sizeof(float) * op_.works; }
    // parameters, and for gradients the sums and one part of them
    uint64_t ColumnCost() const { return sizeof(float) * (Slots() * (op_.gradient ? 2 : 1) + (op_.gradient ? 1 : 0)); }

    const char *ChooseBlock() {
        const uint64_t fixed = 2048 + 64 * platform_.cores;  // staging blocks, flags of SyncAll, one part for each core
        const uint64_t budget = platform_.ubBytes - fixed;
        uint64_t limit = 1024;
        do {
            tileColumns_ = pangu_op::TileColumns(channels_, limit, platform_.ascend910);
            limit /= 2;
        } while (tileColumns_ * (ColumnCost() + ElementCost()) > budget && limit >= pangu_op::SHARE_UNIT);
        if (tileColumns_ == 0 || tileColumns_ * (ColumnCost() + ElementCost()) > budget) {
            return "so many terms n do not fit the unified buffer even for the narrowest tile; use fewer";
        }
        const uint64_t fit = (budget - tileColumns_ * ColumnCost()) / (tileColumns_ * ElementCost());
        const uint64_t fair = pangu_op::CeilDiv(rows_, platform_.cores);
        blockRows_ = std::max<uint64_t>(1, std::min<uint64_t>({fit, fair, 128}));
        return nullptr;
    }

    // On ascend910 cores must not meet inside a block of 32 bytes: where rows are ragged each core gets a multiple of 16 rows and all columns,
    // and where rows are shorter than a block one core gets all.
    void ShareOut() {
        const bool ragged = platform_.ascend910 && channels_ % pangu_op::SHARE_UNIT != 0;
        const uint64_t cores = ragged && channels_ < pangu_op::SHARE_UNIT ? 1 : platform_.cores;
        if (ragged && blockRows_ >= pangu_op::SHARE_UNIT) {
            blockRows_ = blockRows_ / pangu_op::SHARE_UNIT * pangu_op::SHARE_UNIT;
        }
        const uint64_t blocks = std::max<uint64_t>(1, pangu_op::CeilDiv(rows_, blockRows_));
        const uint64_t tiles = pangu_op::CeilDiv(channels_, tileColumns_);
        blocksPerCore_ = pangu_op::CeilDiv(blocks, cores);
        if (ragged && blockRows_ < pangu_op::SHARE_UNIT) {
            blocksPerCore_ = pangu_op::RoundUp(blocksPerCore_, pangu_op::SHARE_UNIT);
        }
        rowCores_ = pangu_op::CeilDiv(blocks, blocksPerCore_);
        tilesPerCore_ = ragged ? tiles : pangu_op::CeilDiv(tiles, std::max<uint64_t>(1, cores / rowCores_));
        columnCores_ = pangu_op::CeilDiv(tiles, tilesPerCore_);
    }

    ge::graphStatus Save() {
        const uint64_t cores = rowCores_ * columnCores_;
        const uint64_t lanes = 8;  // floats in a block
        const uint64_t single = cores * lanes;  // after the flags of SyncAll
        const uint64_t rowParts = single + Slots() * cores * lanes;
        const uint64_t pitch = pangu_op::RoundUp(channels_, pangu_op::SHARE_UNIT);
        const uint64_t floats = rowParts + Slots() * rowCores_ * pitch;
        if (op_.gradient && floats > pangu_op::MAX_ELEMENTS) {
            return pangu_op::Reject(op_.name, "the partial sums need more than 8 GiB of workspace; use fewer terms or channels");
        }
        SeriesTilingData tiling;
        tiling.set_rows(static_cast<uint32_t>(rows_));
        tiling.set_channels(static_cast<uint32_t>(channels_));
        tiling.set_terms(static_cast<uint32_t>(terms_));
        tiling.set_activation(static_cast<uint32_t>(activation_));
        tiling.set_channelwise(channelwise_);
        tiling.set_blockRows(static_cast<uint32_t>(blockRows_));
        tiling.set_tileColumns(static_cast<uint32_t>(tileColumns_));
        tiling.set_rowCores(static_cast<uint32_t>(rowCores_));
        tiling.set_blocksPerCore(static_cast<uint32_t>(blocksPerCore_));
        tiling.set_tilesPerCore(static_cast<uint32_t>(tilesPerCore_));
        tiling.set_singleParts(static_cast<uint32_t>(single));
        tiling.set_rowParts(static_cast<uint32_t>(rowParts));
        tiling.set_partPitch(static_cast<uint32_t>(pitch));
        tiling.set_workspaceFloats(op_.gradient ? static_cast<uint32_t>(floats) : 0);
        const uint64_t workspace = platform_.systemWorkspace + (op_.gradient ? floats * sizeof(float) : 0);
        return pangu_op::Finish(context_, tiling, cores, workspace, op_.gradient);
    }

    gert::TilingContext *context_;
    SeriesOp op_;
    pangu_op::Platform platform_;
    uint64_t rows_ = 0, channels_ = 0, terms_ = 0, blockRows_ = 1, tileColumns_ = 0;
    uint64_t rowCores_ = 1, columnCores_ = 1, blocksPerCore_ = 1, tilesPerCore_ = 1;
    int64_t activation_ = 0;
    uint32_t channelwise_ = 0;
};
}  // namespace optiling

namespace pangu_op {
// output i has the shape of input from[i]
inline ge::graphStatus CopyShapes(gert::InferShapeContext *context, std::initializer_list<size_t> from) {
    size_t output = 0;
    for (size_t input : from) {
        *context->GetOutputShape(output++) = *context->GetInputShape(input);
    }
    return ge::GRAPH_SUCCESS;
}

inline ge::graphStatus CopyTypes(gert::InferDataTypeContext *context, std::initializer_list<size_t> from) {
    size_t output = 0;
    for (size_t input : from) {
        context->SetOutputDataType(output++, context->GetInputDataType(input));
    }
    return ge::GRAPH_SUCCESS;
}
}  // namespace pangu_op
#endif
