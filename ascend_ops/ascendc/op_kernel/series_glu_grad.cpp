// Gradient of y = f * w, f = sum_i act(v_i), v_i = scale_i * u + shift_i, u = gate + gate_bias, w = up + up_bias, with g_i = dy * w * act'(v_i):
// dgate = sum_i scale_i * g_i, dup = dy * f; dgate_bias = sum dgate, dup_bias = sum dup, dscale_i = sum g_i * u, dshift_i = sum g_i
#include "series.h"

namespace pangu {
template <typename T>
class SeriesGluGrad : public SeriesGradBase<T, 2> {
    using Floats = LocalTensor<float>;

  public:
    __aicore__ inline SeriesGluGrad() {}
    __aicore__ inline void Init(GM_ADDR dy, GM_ADDR gate, GM_ADDR up, GM_ADDR *parameters, GM_ADDR dgate, GM_ADDR dup, GM_ADDR *gradients,
                                GM_ADDR workspace, const SeriesTilingData &tiling) {
        this->InitBase(tiling, parameters);
        this->InitSums(gradients, workspace);
        this->BindMatrix(dyGm_, dy);
        this->BindMatrix(gateGm_, gate);
        this->BindMatrix(upGm_, up);
        this->BindMatrix(dgateGm_, dgate);
        this->BindMatrix(dupGm_, dup);
        InitQueues();
    }

    __aicore__ inline void Process() {
        for (uint32_t tile = this->firstTile_; tile < this->endTile_; ++tile) {
            this->StartTile(tile);
            for (uint32_t block = this->firstBlock_; block < this->endBlock_; ++block) {
                this->StartBlock(block);
                this->CopyIn(gateQueue_, gateGm_);
                this->CopyIn(upQueue_, upGm_);
                this->CopyIn(dyQueue_, dyGm_);
                Compute();
            }
            this->FinishTile();
        }
        this->FinishSums();
    }

  private:
    __aicore__ inline void InitQueues() {
        this->pipe_.InitBuffer(dyQueue_, QueueBuffers(3), this->BlockLength() * sizeof(T));
        this->pipe_.InitBuffer(gateQueue_, QueueBuffers(3), this->BlockLength() * sizeof(T));
        this->pipe_.InitBuffer(upQueue_, QueueBuffers(3), this->BlockLength() * sizeof(T));
        this->pipe_.InitBuffer(dgateQueue_, QUEUE_BUFFERS, this->BlockLength() * sizeof(T));
        this->pipe_.InitBuffer(dupQueue_, QUEUE_BUFFERS, this->BlockLength() * sizeof(T));
        for (auto &work : work_) {
            this->pipe_.InitBuffer(work, this->BlockLength() * sizeof(float));
        }
    }

    __aicore__ inline void Compute() {
        Floats u = Work(0), dy = Work(1), df = Work(2), f = Work(3), dgate = Work(4), v = Work(5), g = Work(6), scratch = Work(7);
        const uint32_t n = this->block_.Length();
        this->Take(gateQueue_, u);
        AddRow(u, u, this->Parameter(0), this->block_);
        this->Take(upQueue_, df);
        AddRow(df, df, this->Parameter(1), this->block_);
        this->Take(dyQueue_, dy);
        ordered::Mul(df, df, dy, n);
        ordered::Fill(f, 0.0f, n);
        ordered::Fill(dgate, 0.0f, n);
        for (uint32_t term = 0; term < this->t_.terms; ++term) {
            this->Argument(v, u, term);
            this->activation_.Gate(g, v, scratch, n);
            ordered::Mul(scratch, v, g, n);
            ordered::Add(f, f, scratch, n);
            this->activation_.Slope(g, v, scratch, n);
            ordered::Mul(g, g, df, n);
            MulRow(v, g, this->Parameter(this->slots_.Scale(term)), this->block_);
            ordered::Add(dgate, dgate, v, n);
            ordered::Mul(v, g, u, n);
            this->AddToSum(this->slots_.Scale(term), v);
            this->AddToSum(this->slots_.Shift(term), g);
        }
        ordered::Mul(f, f, dy, n);
        this->CopyOut(dgateQueue_, dgateGm_, dgate);
        this->CopyOut(dupQueue_, dupGm_, f);
        this->AddToSum(0, dgate);
        this->AddToSum(1, f);
    }

    __aicore__ inline Floats Work(uint32_t i) { return work_[i].template Get<float>(); }

    GlobalTensor<T> dyGm_, gateGm_, upGm_, dgateGm_, dupGm_;
    TQue<TPosition::VECIN, 1> dyQueue_, gateQueue_, upQueue_;
    TQue<TPosition::VECOUT, 1> dgateQueue_, dupQueue_;
    TBuf<TPosition::VECCALC> work_[8];
};
}  // namespace pangu

extern "C" __global__ __aicore__ void series_glu_grad(GM_ADDR dy, GM_ADDR gate, GM_ADDR up, GM_ADDR gate_bias, GM_ADDR up_bias, GM_ADDR scale, GM_ADDR shift,
                                                      GM_ADDR dgate, GM_ADDR dup, GM_ADDR dgate_bias, GM_ADDR dup_bias, GM_ADDR dscale, GM_ADDR dshift,
                                                      GM_ADDR workspace, GM_ADDR tiling) {
    GET_TILING_DATA(data, tiling);
#if __CCE_AICORE__ >= 220
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // what SyncAll asks for
#endif
    GM_ADDR parameters[] = {gate_bias, up_bias, scale, shift};
    GM_ADDR gradients[] = {dgate_bias, dup_bias, dscale, dshift};
    pangu::SeriesGluGrad<DTYPE_GATE> kernel;
    kernel.Init(dy, gate, up, parameters, dgate, dup, gradients, AscendC::GetUserWorkspace(workspace), data);
    kernel.Process();
}
