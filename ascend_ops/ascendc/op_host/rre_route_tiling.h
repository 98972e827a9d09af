// Tiling of RreRoute.
#ifndef PANGU_RRE_ROUTE_TILING_H
#define PANGU_RRE_ROUTE_TILING_H

#include "op_helpers.h"
#include "register/tilingdata_base.h"

namespace optiling {
BEGIN_TILING_DATA_DEF(RreRouteTilingData)
TILING_DATA_FIELD_DEF(uint32_t, length);        // elements of domain and ids
TILING_DATA_FIELD_DEF(uint32_t, domains);       // table is domains x vocabSize
TILING_DATA_FIELD_DEF(uint32_t, vocabSize);
TILING_DATA_FIELD_DEF(uint32_t, unitsPerCore);  // of 16 elements
TILING_DATA_FIELD_DEF(uint32_t, tileLength);
END_TILING_DATA_DEF;
}  // namespace optiling
#endif
