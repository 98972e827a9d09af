// Tiling of MoeDispatch; how it is used stands in op_kernel/moe_dispatch.cpp.
#ifndef PANGU_MOE_DISPATCH_TILING_H
#define PANGU_MOE_DISPATCH_TILING_H

#include "op_helpers.h"
#include "register/tilingdata_base.h"

namespace optiling {
BEGIN_TILING_DATA_DEF(MoeDispatchTilingData)
TILING_DATA_FIELD_DEF(uint32_t, tokens);
TILING_DATA_FIELD_DEF(uint32_t, topK);
TILING_DATA_FIELD_DEF(uint32_t, slots);            // tokens * topK
TILING_DATA_FIELD_DEF(uint32_t, hiddenSize);
TILING_DATA_FIELD_DEF(uint32_t, numExperts);
TILING_DATA_FIELD_DEF(uint32_t, tileColumns);
TILING_DATA_FIELD_DEF(uint32_t, chunkLength);      // slots that are sorted at a time
TILING_DATA_FIELD_DEF(uint32_t, chunks);
TILING_DATA_FIELD_DEF(uint32_t, histogramLength);  // numExperts in whole units
TILING_DATA_FIELD_DEF(uint32_t, unitsPerCore);     // output positions of a core, in units of 16
TILING_DATA_FIELD_DEF(uint32_t, segmentLength);    // output positions that are collected at a time
TILING_DATA_FIELD_DEF(uint32_t, histograms);       // workspace, in int32: [chunks, histogramLength],
TILING_DATA_FIELD_DEF(uint32_t, sortedSlots);      // [chunks, chunkLength]
TILING_DATA_FIELD_DEF(uint32_t, workspaceInts);
END_TILING_DATA_DEF;
}  // namespace optiling
#endif
