// The four series kernels share this: which rows and columns a core works on, the parameters of its columns, and the sums over rows that the
// gradients of the parameters are.
//
// x [..., C] is a matrix rows x C. It is cut into blocks of blockRows rows and tiles of tileColumns columns. A core takes some of the blocks
// and some of the tiles; for each tile it loads the parameters once and goes down its blocks.
//
// The parameters are numbered as slots: the biases, then scale[0..n), then shift[0..n). In the unified buffer each slot is a vector over the
// columns of the tile, whether the tensor holds a value per channel or one for all.
#ifndef PANGU_SERIES_H
#define PANGU_SERIES_H

#include "activation.h"

namespace pangu {
// SeriesTilingData is defined by op_host/series_tiling.h and generated for the kernel.
template <uint32_t BIASES>
struct SeriesSlots {
    static constexpr uint32_t TENSORS = BIASES + 2;
    uint32_t terms = 0, channelwise = 0;

    __aicore__ inline uint32_t Count() const { return BIASES + 2 * terms; }
    __aicore__ inline uint32_t Scale(uint32_t term) const { return BIASES + term; }
    __aicore__ inline uint32_t Shift(uint32_t term) const { return BIASES + terms + term; }
    // number of the tensor (in the order of the operator's inputs) and row in it
    __aicore__ inline uint32_t Tensor(uint32_t slot) const { return slot < BIASES ? slot : (slot < BIASES + terms ? BIASES : BIASES + 1); }
    __aicore__ inline uint32_t Row(uint32_t slot) const { return slot < BIASES ? 0 : (slot - BIASES) % terms; }
    __aicore__ inline uint32_t Rows(uint32_t tensor) const { return tensor < BIASES ? 1 : terms; }
    __aicore__ inline bool Channelwise(uint32_t slot) const { return (channelwise >> Tensor(slot) & 1u) != 0; }
};

template <typename T, uint32_t BIASES>
class SeriesBase {
  protected:
    using Floats = LocalTensor<float>;

    __aicore__ inline SeriesBase() {}

    __aicore__ inline void InitBase(const SeriesTilingData &tiling, GM_ADDR *parameters) {
        t_ = tiling;
        slots_.terms = t_.terms;
        slots_.channelwise = t_.channelwise;
        activation_.Init(t_.activation);
        io_.Init(pipe_);
        parameterIo_.Init(pipe_);
        pipe_.InitBuffer(parameters_, slots_.Count() * t_.tileColumns * sizeof(float));
        BindAll(parameterGm_, parameters);
        SetShare();
    }

    // one global tensor for each of the biases, scale and shift, or their gradients
    __aicore__ inline void BindAll(GlobalTensor<float> *tensors, GM_ADDR *addresses) {
        for (uint32_t k = 0; k < SeriesSlots<BIASES>::TENSORS; ++k) {
            const uint32_t columns = (t_.channelwise >> k & 1u) != 0 ? t_.channels : 1;
            tensors[k].SetGlobalBuffer(reinterpret_cast<__gm__ float *>(addresses[k]), static_cast<uint64_t>(slots_.Rows(k)) * columns);
        }
    }

    __aicore__ inline void BindMatrix(GlobalTensor<T> &tensor, GM_ADDR address) {
        tensor.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(address), static_cast<uint64_t>(t_.rows) * t_.channels);
    }

    __aicore__ inline void StartTile(uint32_t tile) {
        column_ = tile * t_.tileColumns;
        block_.columns = Min(t_.tileColumns, t_.channels - column_);
        block_.pitch = RoundUp(block_.columns, SHARE_UNIT);
        LoadParameters(true);
        LoadParameters(false);
        PipeBarrier<PIPE_ALL>();
    }

    __aicore__ inline void StartBlock(uint32_t block) {
        row_ = block * t_.blockRows;
        block_.rows = Min(t_.blockRows, t_.rows - row_);
    }

    __aicore__ inline uint64_t Offset() const { return static_cast<uint64_t>(row_) * t_.channels + column_; }
    __aicore__ inline uint32_t BlockLength() const { return t_.blockRows * t_.tileColumns; }
    __aicore__ inline Floats Parameter(uint32_t slot) { return parameters_.Get<float>()[slot * t_.tileColumns]; }

    template <typename Queue>
    __aicore__ inline void CopyIn(Queue &queue, const GlobalTensor<T> &from) {
        LocalTensor<T> local = queue.template AllocTensor<T>();
        io_.Load(local, from, Offset(), block_.columns, block_.rows, block_.pitch, t_.channels);
        queue.EnQue(local);
    }

    // The next tensor of the queue as float32
    template <typename Queue>
    __aicore__ inline void Take(Queue &queue, const Floats &to) {
        LocalTensor<T> local = queue.template DeQue<T>();
        ordered::Widen(to, local, block_.Length());
        queue.FreeTensor(local);
    }

    template <typename Queue>
    __aicore__ inline void CopyOut(Queue &queue, const GlobalTensor<T> &to, const Floats &from) {
        LocalTensor<T> local = queue.template AllocTensor<T>();
        ordered::Narrow(local, from, block_.Length());
        queue.EnQue(local);
        LocalTensor<T> ready = queue.template DeQue<T>();
        io_.Store(to, Offset(), ready, block_.columns, block_.rows, block_.pitch, t_.channels);
        queue.FreeTensor(ready);
    }

    // v = scale[i] * u + shift[i]
    __aicore__ inline void Argument(const Floats &v, const Floats &u, uint32_t term) {
        MulRow(v, u, Parameter(slots_.Scale(term)), block_);
        AddRow(v, v, Parameter(slots_.Shift(term)), block_);
    }

    TPipe pipe_;
    SeriesTilingData t_;
    SeriesSlots<BIASES> slots_;
    Activation activation_;
    RowIo<T> io_;
    RowIo<float> parameterIo_;
    RowBlock block_;
    uint32_t firstBlock_ = 0, endBlock_ = 0, firstTile_ = 0, endTile_ = 0;
    uint32_t row_ = 0, column_ = 0;

  private:
    __aicore__ inline void SetShare() {
        const uint32_t rowCore = static_cast<uint32_t>(GetBlockIdx()) % t_.rowCores;
        const uint32_t columnCore = static_cast<uint32_t>(GetBlockIdx()) / t_.rowCores;
        const uint32_t blocks = CeilDiv(t_.rows, t_.blockRows);
        const uint32_t tiles = CeilDiv(t_.channels, t_.tileColumns);
        firstBlock_ = Min(rowCore * t_.blocksPerCore, blocks);
        endBlock_ = Min(firstBlock_ + t_.blocksPerCore, blocks);
        firstTile_ = Min(columnCore * t_.tilesPerCore, tiles);
        endTile_ = Min(firstTile_ + t_.tilesPerCore, tiles);
    }

    // The copies first, then the vector instructions, so that two pipes do not write the buffer at the same time.
    __aicore__ inline void LoadParameters(bool channelwise) {
        PipeBarrier<PIPE_ALL>();
        for (uint32_t slot = 0; slot < slots_.Count(); ++slot) {
            const GlobalTensor<float> &gm = parameterGm_[slots_.Tensor(slot)];
            const uint32_t row = slots_.Row(slot);
            if (slots_.Channelwise(slot) != channelwise) {
                continue;
            }
            if (channelwise) {
                parameterIo_.Load(Parameter(slot), gm, static_cast<uint64_t>(row) * t_.channels + column_, block_.columns);
            } else {
                AscendC::Duplicate(Parameter(slot), gm.GetValue(row), block_.pitch);
            }
        }
    }

    TBuf<TPosition::VECCALC> parameters_;
    GlobalTensor<float> parameterGm_[SeriesSlots<BIASES>::TENSORS];
};

// Gradients of the parameters: sums over all rows, and over all columns for a tensor with one value for all channels.
// Each core keeps a sum for every column of its tile, writes its part to the workspace, and after a barrier the parts are added in the order of
// the cores, so that the result does not depend on which core is faster. The parts of a channel-wise slot are rows [slot][rowCore][C], those
// of another one block of LANES values for each core, which add up to its sum.
template <typename T, uint32_t BIASES>
class SeriesGradBase : public SeriesBase<T, BIASES> {
  protected:
    using Floats = LocalTensor<float>;

    __aicore__ inline SeriesGradBase() {}

    __aicore__ inline void InitSums(GM_ADDR *gradients, GM_ADDR workspace) {
        sync_.Init(this->pipe_, workspace);
        this->BindAll(gradientGm_, gradients);
        workspaceGm_.SetGlobalBuffer(reinterpret_cast<__gm__ float *>(workspace), this->t_.workspaceFloats);
        this->pipe_.InitBuffer(sums_, this->slots_.Count() * this->t_.tileColumns * sizeof(float));
        this->pipe_.InitBuffer(part_, Max(this->t_.tileColumns, Cores() * LANES) * sizeof(float));
        ordered::Fill(sums_.template Get<float>(), 0.0f, this->slots_.Count() * this->t_.tileColumns);
    }

    // sums of the slot += rows, which are lost
    __aicore__ inline void AddToSum(uint32_t slot, const Floats &rows) { AddFoldedRows(Sum(slot), rows, this->block_); }

    __aicore__ inline void FinishTile() {
        PipeBarrier<PIPE_ALL>();
        for (uint32_t slot = 0; slot < this->slots_.Count(); ++slot) {
            if (this->slots_.Channelwise(slot)) {
                DataCopy(workspaceGm_[PartOffset(slot, RowCore()) + this->column_], Sum(slot), RoundUp(this->block_.columns, LANES));
            }
        }
        PipeBarrier<PIPE_ALL>();
        for (uint32_t slot = 0; slot < this->slots_.Count(); ++slot) {
            if (this->slots_.Channelwise(slot)) {
                ordered::Fill(Sum(slot), 0.0f, this->t_.tileColumns);
            }
        }
    }

    // Writes what is left of this core's parts, waits for the others and adds the parts up.
    __aicore__ inline void FinishSums() {
        WriteSingleParts();
        sync_.Wait();
        const uint32_t tiles = CeilDiv(this->t_.channels, this->t_.tileColumns);
        for (uint32_t slot = 0; slot < this->slots_.Count(); ++slot) {
            if (!this->slots_.Channelwise(slot)) {
                AddSingleParts(slot);
                continue;
            }
            for (uint32_t tile = 0; tile < tiles; ++tile) {
                AddRowParts(slot, tile);
            }
        }
    }

  private:
    static constexpr uint32_t LANES = BLOCK_BYTES / sizeof(float);

    __aicore__ inline uint32_t Cores() const { return static_cast<uint32_t>(GetBlockNum()); }
    __aicore__ inline uint32_t RowCore() const { return static_cast<uint32_t>(GetBlockIdx()) % this->t_.rowCores; }
    __aicore__ inline Floats Sum(uint32_t slot) { return sums_.template Get<float>()[slot * this->t_.tileColumns]; }
    __aicore__ inline uint64_t PartOffset(uint32_t slot, uint32_t rowCore) const {
        return this->t_.rowParts + (static_cast<uint64_t>(slot) * this->t_.rowCores + rowCore) * this->t_.partPitch;
    }
    __aicore__ inline uint64_t SinglePartOffset(uint32_t slot, uint32_t core) const {
        return this->t_.singleParts + (static_cast<uint64_t>(slot) * Cores() + core) * LANES;
    }

    // The first block becomes the sum of the blocks, lane by lane: float32 has no ReduceSum on ascend910.
    __aicore__ inline void FoldBlocks(const Floats &blocks, uint32_t count) { FoldRows(blocks, RowBlock{count, LANES, LANES}); }

    __aicore__ inline void WriteSingleParts() {
        for (uint32_t slot = 0; slot < this->slots_.Count(); ++slot) {
            if (this->slots_.Channelwise(slot)) {
                continue;
            }
            FoldBlocks(Sum(slot), this->t_.tileColumns / LANES);
            PipeBarrier<PIPE_ALL>();
            DataCopy(workspaceGm_[SinglePartOffset(slot, static_cast<uint32_t>(GetBlockIdx()))], Sum(slot), LANES);
            PipeBarrier<PIPE_ALL>();
        }
    }

    __aicore__ inline void AddSingleParts(uint32_t slot) {
        if (GetBlockIdx() != 0) {
            return;
        }
        Floats part = part_.template Get<float>();
        DataCopy(part, workspaceGm_[SinglePartOffset(slot, 0)], Cores() * LANES);
        PipeBarrier<PIPE_ALL>();
        FoldBlocks(part, Cores());
        PipeBarrier<PIPE_ALL>();
        float total = 0.0f;
        for (uint32_t lane = 0; lane < LANES; ++lane) {
            total += part.GetValue(lane);
        }
        part.SetValue(0, total);
        PipeBarrier<PIPE_ALL>();
        this->parameterIo_.Store(gradientGm_[this->slots_.Tensor(slot)], this->slots_.Row(slot), part, 1);
        PipeBarrier<PIPE_ALL>();
    }

    // Tiles of all slots are dealt out to the cores; where a row does not end at a whole block ascend910 leaves all to one core.
    __aicore__ inline void AddRowParts(uint32_t slot, uint32_t tile) {
        const uint32_t tiles = CeilDiv(this->t_.channels, this->t_.tileColumns);
        const bool shared = __CCE_AICORE__ >= 220 || this->t_.channels % LANES == 0;
        const uint32_t owner = shared ? (slot * tiles + tile) % Cores() : 0;
        if (static_cast<uint32_t>(GetBlockIdx()) != owner) {
            return;
        }
        const uint32_t column = tile * this->t_.tileColumns;
        const uint32_t columns = Min(this->t_.tileColumns, this->t_.channels - column);
        Floats part = part_.template Get<float>();
        Floats total = Sum(0);
        ordered::Fill(total, 0.0f, columns);
        for (uint32_t core = 0; core < this->t_.rowCores; ++core) {
            PipeBarrier<PIPE_ALL>();
            DataCopy(part, workspaceGm_[PartOffset(slot, core) + column], RoundUp(columns, LANES));
            PipeBarrier<PIPE_ALL>();
            ordered::Add(total, total, part, columns);
        }
        PipeBarrier<PIPE_ALL>();
        const uint64_t row = this->slots_.Row(slot);
        this->parameterIo_.Store(gradientGm_[this->slots_.Tensor(slot)], row * this->t_.channels + column, total, columns);
        PipeBarrier<PIPE_ALL>();
    }

    CoreSync sync_;
    TBuf<TPosition::VECCALC> sums_, part_;
    GlobalTensor<float> gradientGm_[SeriesSlots<BIASES>::TENSORS], workspaceGm_;
};
}  // namespace pangu
#endif
