// y = (sum_i act(scale_i * (gate + gate_bias) + shift_i)) * (up + up_bias)
#include "series.h"

namespace pangu {
template <typename T>
class SeriesGlu : public SeriesBase<T, 2> {
    using Floats = LocalTensor<float>;

  public:
    __aicore__ inline SeriesGlu() {}
    __aicore__ inline void Init(GM_ADDR gate, GM_ADDR up, GM_ADDR *parameters, GM_ADDR y, const SeriesTilingData &tiling) {
        this->InitBase(tiling, parameters);
        this->BindMatrix(gateGm_, gate);
        this->BindMatrix(upGm_, up);
        this->BindMatrix(yGm_, y);
        this->pipe_.InitBuffer(gateQueue_, QUEUE_BUFFERS, this->BlockLength() * sizeof(T));
        this->pipe_.InitBuffer(upQueue_, QUEUE_BUFFERS, this->BlockLength() * sizeof(T));
        this->pipe_.InitBuffer(yQueue_, QUEUE_BUFFERS, this->BlockLength() * sizeof(T));
        for (auto &work : work_) {
            this->pipe_.InitBuffer(work, this->BlockLength() * sizeof(float));
        }
    }

    __aicore__ inline void Process() {
        for (uint32_t tile = this->firstTile_; tile < this->endTile_; ++tile) {
            this->StartTile(tile);
            for (uint32_t block = this->firstBlock_; block < this->endBlock_; ++block) {
                this->StartBlock(block);
                this->CopyIn(gateQueue_, gateGm_);
                this->CopyIn(upQueue_, upGm_);
                Compute();
            }
        }
    }

  private:
    __aicore__ inline void Compute() {
        Floats u = Work(0), sum = Work(1), v = Work(2), gate = Work(3), scratch = Work(4);
        const uint32_t n = this->block_.Length();
        this->Take(gateQueue_, u);
        AddRow(u, u, this->Parameter(0), this->block_);
        ordered::Fill(sum, 0.0f, n);
        for (uint32_t term = 0; term < this->t_.terms; ++term) {
            this->Argument(v, u, term);
            this->activation_.Gate(gate, v, scratch, n);
            ordered::Mul(v, v, gate, n);
            ordered::Add(sum, sum, v, n);
        }
        this->Take(upQueue_, v);
        AddRow(v, v, this->Parameter(1), this->block_);
        ordered::Mul(sum, sum, v, n);
        this->CopyOut(yQueue_, yGm_, sum);
    }

    __aicore__ inline Floats Work(uint32_t i) { return work_[i].template Get<float>(); }

    GlobalTensor<T> gateGm_, upGm_, yGm_;
    TQue<TPosition::VECIN, 1> gateQueue_, upQueue_;
    TQue<TPosition::VECOUT, 1> yQueue_;
    TBuf<TPosition::VECCALC> work_[5];
};
}  // namespace pangu

extern "C" __global__ __aicore__ void series_glu(GM_ADDR gate, GM_ADDR up, GM_ADDR gate_bias, GM_ADDR up_bias, GM_ADDR scale, GM_ADDR shift, GM_ADDR y,
                                                 GM_ADDR workspace, GM_ADDR tiling) {
    GET_TILING_DATA(data, tiling);
    GM_ADDR parameters[] = {gate_bias, up_bias, scale, shift};
    pangu::SeriesGlu<DTYPE_GATE> kernel;
    kernel.Init(gate, up, parameters, y, data);
    kernel.Process();
}
