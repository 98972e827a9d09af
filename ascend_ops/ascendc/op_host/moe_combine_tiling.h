// Tiling of MoeCombine; how it is used stands in op_kernel/moe_combine.cpp.
#ifndef PANGU_MOE_COMBINE_TILING_H
#define PANGU_MOE_COMBINE_TILING_H

#include "op_helpers.h"
#include "register/tilingdata_base.h"

namespace optiling {
BEGIN_TILING_DATA_DEF(MoeCombineTilingData)
TILING_DATA_FIELD_DEF(uint32_t, tokens);
TILING_DATA_FIELD_DEF(uint32_t, topK);
TILING_DATA_FIELD_DEF(uint32_t, hiddenSize);
TILING_DATA_FIELD_DEF(uint32_t, tileColumns);
TILING_DATA_FIELD_DEF(uint32_t, unitsPerCore);  // tokens of a core, in units of 16
TILING_DATA_FIELD_DEF(uint32_t, blockTokens);   // tokens whose slots are looked up at a time
TILING_DATA_FIELD_DEF(uint32_t, blockSlots);    // their slots, in whole units
TILING_DATA_FIELD_DEF(uint32_t, orderLength);   // entries of `order` that are read at a time
END_TILING_DATA_DEF;
}  // namespace optiling
#endif
