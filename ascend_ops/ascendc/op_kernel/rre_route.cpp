// expert[i] = table[domain[i], ids[i]]; an index outside the table is moved to its nearest edge, so that nothing beyond it is read.
#include "tile_io.h"

namespace pangu {
class RreRoute {
  public:
    __aicore__ inline RreRoute() {}
    __aicore__ inline void Init(GM_ADDR domain, GM_ADDR ids, GM_ADDR table, GM_ADDR expert, const RreRouteTilingData &tiling) {
        t_ = tiling;
        Bind(domainGm_, domain, t_.length);
        Bind(idsGm_, ids, t_.length);
        Bind(tableGm_, table, t_.domains * t_.vocabSize);
        Bind(expertGm_, expert, t_.length);
        share_.Init(t_.length, t_.unitsPerCore);
        io_.Init(pipe_);
        pipe_.InitBuffer(domain_, t_.tileLength * sizeof(int32_t));
        pipe_.InitBuffer(ids_, t_.tileLength * sizeof(int32_t));
        pipe_.InitBuffer(expert_, t_.tileLength * sizeof(int32_t));
    }

    __aicore__ inline void Process() {
        for (uint32_t begin = share_.begin; begin < share_.end; begin += t_.tileLength) {
            Route(begin, Min(t_.tileLength, share_.end - begin));
        }
    }

  private:
    __aicore__ inline void Bind(GlobalTensor<int32_t> &tensor, GM_ADDR address, uint32_t length) {
        tensor.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t *>(address), length);
    }

    __aicore__ inline uint32_t Clamp(int32_t index, uint32_t size) const {
        return index < 0 ? 0 : Min(static_cast<uint32_t>(index), size - 1);
    }

    // The table is far larger than the unified buffer and read at random, so the scalar unit reads it where it is.
    __aicore__ inline void Route(uint32_t begin, uint32_t count) {
        LocalTensor<int32_t> domain = domain_.Get<int32_t>(), ids = ids_.Get<int32_t>(), expert = expert_.Get<int32_t>();
        io_.Load(domain, domainGm_, begin, count);
        io_.Load(ids, idsGm_, begin, count);
        PipeBarrier<PIPE_ALL>();
        for (uint32_t i = 0; i < count; ++i) {
            const uint32_t row = Clamp(domain.GetValue(i), t_.domains);
            expert.SetValue(i, tableGm_.GetValue(row * t_.vocabSize + Clamp(ids.GetValue(i), t_.vocabSize)));
        }
        PipeBarrier<PIPE_ALL>();
        io_.Store(expertGm_, begin, expert, count);
        PipeBarrier<PIPE_ALL>();
    }

    TPipe pipe_;
    RreRouteTilingData t_;
    Share share_;
    RowIo<int32_t> io_;
    GlobalTensor<int32_t> domainGm_, idsGm_, tableGm_, expertGm_;
    TBuf<TPosition::VECCALC> domain_, ids_, expert_;
};
}  // namespace pangu

extern "C" __global__ __aicore__ void rre_route(GM_ADDR domain, GM_ADDR ids, GM_ADDR table, GM_ADDR expert, GM_ADDR workspace, GM_ADDR tiling) {
    GET_TILING_DATA(data, tiling);
    pangu::RreRoute kernel;
    kernel.Init(domain, ids, table, expert, data);
    kernel.Process();
}
