// y = sum_i act(scale_i * (x + bias) + shift_i)
#include "series.h"

namespace pangu {
template <typename T>
class SeriesActivation : public SeriesBase<T, 1> {
    using Floats = LocalTensor<float>;

  public:
    __aicore__ inline SeriesActivation() {}
    __aicore__ inline void Init(GM_ADDR x, GM_ADDR bias, GM_ADDR scale, GM_ADDR shift, GM_ADDR y, const SeriesTilingData &tiling) {
        GM_ADDR parameters[] = {bias, scale, shift};
        this->InitBase(tiling, parameters);
        this->BindMatrix(xGm_, x);
        this->BindMatrix(yGm_, y);
        this->pipe_.InitBuffer(xQueue_, QUEUE_BUFFERS, this->BlockLength() * sizeof(T));
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
                this->CopyIn(xQueue_, xGm_);
                Compute();
            }
        }
    }

  private:
    __aicore__ inline void Compute() {
        Floats u = Work(0), sum = Work(1), v = Work(2), gate = Work(3), scratch = Work(4);
        const uint32_t n = this->block_.Length();
        this->Take(xQueue_, u);
        AddRow(u, u, this->Parameter(0), this->block_);
        ordered::Fill(sum, 0.0f, n);
        for (uint32_t term = 0; term < this->t_.terms; ++term) {
            this->Argument(v, u, term);
            this->activation_.Gate(gate, v, scratch, n);
            ordered::Mul(v, v, gate, n);
            ordered::Add(sum, sum, v, n);
        }
        this->CopyOut(yQueue_, yGm_, sum);
    }

    __aicore__ inline Floats Work(uint32_t i) { return work_[i].template Get<float>(); }

    GlobalTensor<T> xGm_, yGm_;
    TQue<TPosition::VECIN, 1> xQueue_;
    TQue<TPosition::VECOUT, 1> yQueue_;
    TBuf<TPosition::VECCALC> work_[5];
};
}  // namespace pangu

extern "C" __global__ __aicore__ void series_activation(GM_ADDR x, GM_ADDR bias, GM_ADDR scale, GM_ADDR shift, GM_ADDR y, GM_ADDR workspace, GM_ADDR tiling) {
    GET_TILING_DATA(data, tiling);
    pangu::SeriesActivation<DTYPE_X> kernel;
    kernel.Init(x, bias, scale, shift, y, data);
    kernel.Process();
}
