// Gradient of y = sum_i act(v_i), v_i = scale_i * u + shift_i, u = x + bias, with g_i = dy * act'(v_i):
// dx = sum_i scale_i * g_i; dbias = sum dx, dscale_i = sum g_i * u, dshift_i = sum g_i over the rows (and channels, for a single value)
#include "series.h"

namespace pangu {
template <typename T>
class SeriesActivationGrad : public SeriesGradBase<T, 1> {
    using Floats = LocalTensor<float>;

  public:
    __aicore__ inline SeriesActivationGrad() {}
    __aicore__ inline void Init(GM_ADDR dy, GM_ADDR x, GM_ADDR *parameters, GM_ADDR dx, GM_ADDR *gradients, GM_ADDR workspace,
                                const SeriesTilingData &tiling) {
        this->InitBase(tiling, parameters);
        this->InitSums(gradients, workspace);
        this->BindMatrix(dyGm_, dy);
        this->BindMatrix(xGm_, x);
        this->BindMatrix(dxGm_, dx);
        this->pipe_.InitBuffer(dyQueue_, QUEUE_BUFFERS, this->BlockLength() * sizeof(T));
        this->pipe_.InitBuffer(xQueue_, QUEUE_BUFFERS, this->BlockLength() * sizeof(T));
        this->pipe_.InitBuffer(dxQueue_, QUEUE_BUFFERS, this->BlockLength() * sizeof(T));
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
                this->CopyIn(dyQueue_, dyGm_);
                Compute();
            }
            this->FinishTile();
        }
        this->FinishSums();
    }

  private:
    __aicore__ inline void Compute() {
        Floats u = Work(0), dy = Work(1), dx = Work(2), v = Work(3), g = Work(4), scratch = Work(5);
        const uint32_t n = this->block_.Length();
        this->Take(xQueue_, u);
        AddRow(u, u, this->Parameter(0), this->block_);
        this->Take(dyQueue_, dy);
        ordered::Fill(dx, 0.0f, n);
        for (uint32_t term = 0; term < this->t_.terms; ++term) {
            this->Argument(v, u, term);
            this->activation_.Gate(g, v, scratch, n);
            this->activation_.Slope(g, v, scratch, n);
            ordered::Mul(g, g, dy, n);
            MulRow(v, g, this->Parameter(this->slots_.Scale(term)), this->block_);
            ordered::Add(dx, dx, v, n);
            ordered::Mul(v, g, u, n);
            this->AddToSum(this->slots_.Scale(term), v);
            this->AddToSum(this->slots_.Shift(term), g);
        }
        this->CopyOut(dxQueue_, dxGm_, dx);
        this->AddToSum(0, dx);
    }

    __aicore__ inline Floats Work(uint32_t i) { return work_[i].template Get<float>(); }

    GlobalTensor<T> dyGm_, xGm_, dxGm_;
    TQue<TPosition::VECIN, 1> dyQueue_, xQueue_;
    TQue<TPosition::VECOUT, 1> dxQueue_;
    TBuf<TPosition::VECCALC> work_[6];
};
}  // namespace pangu

extern "C" __global__ __aicore__ void series_activation_grad(GM_ADDR dy, GM_ADDR x, GM_ADDR bias, GM_ADDR scale, GM_ADDR shift, GM_ADDR dx, GM_ADDR dbias,
                                                             GM_ADDR dscale, GM_ADDR dshift, GM_ADDR workspace, GM_ADDR tiling) {
    GET_TILING_DATA(data, tiling);
#if __CCE_AICORE__ >= 220
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // what SyncAll asks for
#endif
    GM_ADDR parameters[] = {bias, scale, shift};
    GM_ADDR gradients[] = {dbias, dscale, dshift};
    pangu::SeriesActivationGrad<DTYPE_X> kernel;
    kernel.Init(dy, x, parameters, dx, gradients, AscendC::GetUserWorkspace(workspace), data);
    kernel.Process();
}
