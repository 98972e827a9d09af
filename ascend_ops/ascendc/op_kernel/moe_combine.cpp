// y[t] = sum_c weights[t, c] * rows[position of slot t * top_k + c], where order[position] = slot
//
// A core owns a range of tokens. It finds the positions of their slots by going through `order` once for each block of tokens (normally once
// in all), which needs no synchronisation; the cost is small beside that of reading the rows. An entry of `order` that is no slot of this range is
// ignored, and a slot that `order` does not name adds nothing.
#include "vector_math.h"

namespace pangu {
template <typename T>
class MoeCombine {
    using Ints = LocalTensor<int32_t>;
    using Floats = LocalTensor<float>;

  public:
    __aicore__ inline MoeCombine() {}
    __aicore__ inline void Init(GM_ADDR rows, GM_ADDR order, GM_ADDR weights, GM_ADDR y, const MoeCombineTilingData &tiling) {
        t_ = tiling;
        const uint32_t slots = t_.tokens * t_.topK;
        rowsGm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(rows), static_cast<uint64_t>(slots) * t_.hiddenSize);
        yGm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(y), static_cast<uint64_t>(t_.tokens) * t_.hiddenSize);
        orderGm_.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t *>(order), slots);
        weightsGm_.SetGlobalBuffer(reinterpret_cast<__gm__ float *>(weights), slots);
        share_.Init(t_.tokens, t_.unitsPerCore);
        InitBuffers();
    }

    __aicore__ inline void Process() {
        for (uint32_t begin = share_.begin; begin < share_.end; begin += t_.blockTokens) {
            const uint32_t end = Min(begin + t_.blockTokens, share_.end);
            FindPositions(begin, end);
            for (uint32_t token = begin; token < end; ++token) {
                for (uint32_t column = 0; column < t_.hiddenSize; column += t_.tileColumns) {
                    Combine(token, token - begin, column, Min(t_.tileColumns, t_.hiddenSize - column));
                }
            }
            PipeBarrier<PIPE_ALL>();
        }
    }

  private:
    __aicore__ inline void InitBuffers() {
        io_.Init(pipe_);
        intIo_.Init(pipe_);
        floatIo_.Init(pipe_);
        pipe_.InitBuffer(rowQueue_, QUEUE_BUFFERS, t_.tileColumns * sizeof(T));
        pipe_.InitBuffer(yQueue_, QUEUE_BUFFERS, t_.tileColumns * sizeof(T));
        pipe_.InitBuffer(sum_, t_.tileColumns * sizeof(float));
        pipe_.InitBuffer(row_, t_.tileColumns * sizeof(float));
        pipe_.InitBuffer(order_, t_.orderLength * sizeof(int32_t));
        pipe_.InitBuffer(position_, t_.blockSlots * sizeof(int32_t));
        pipe_.InitBuffer(weight_, t_.blockSlots * sizeof(float));
    }

    // position_[slot - first slot of the block] and weight_ of the same
    __aicore__ inline void FindPositions(uint32_t begin, uint32_t end) {
        Ints order = order_.Get<int32_t>(), position = position_.Get<int32_t>();
        const uint32_t slots = t_.tokens * t_.topK, first = begin * t_.topK, length = (end - begin) * t_.topK;
        Duplicate(position, -1, t_.blockSlots);
        floatIo_.Load(weight_.Get<float>(), weightsGm_, first, length);
        for (uint32_t start = 0; start < slots; start += t_.orderLength) {
            const uint32_t count = Min(t_.orderLength, slots - start);
            PipeBarrier<PIPE_ALL>();
            intIo_.Load(order, orderGm_, start, count);
            PipeBarrier<PIPE_ALL>();
            for (uint32_t i = 0; i < count; ++i) {
                // as unsigned, slots before the block (and negative ones) become large
                const uint32_t slot = static_cast<uint32_t>(order.GetValue(i)) - first;
                if (slot < length) {
                    position.SetValue(slot, static_cast<int32_t>(start + i));
                }
            }
        }
        PipeBarrier<PIPE_ALL>();
    }

    __aicore__ inline void Combine(uint32_t token, uint32_t index, uint32_t column, uint32_t count) {
        Ints position = position_.Get<int32_t>();
        Floats weight = weight_.Get<float>(), sum = sum_.Get<float>(), row = row_.Get<float>();
        ordered::Fill(sum, 0.0f, count);
        for (uint32_t choice = index * t_.topK; choice < (index + 1) * t_.topK; ++choice) {
            const int32_t at = position.GetValue(choice);
            if (at < 0) {
                continue;
            }
            LocalTensor<T> piece = rowQueue_.template AllocTensor<T>();
            io_.Load(piece, rowsGm_, static_cast<uint64_t>(at) * t_.hiddenSize + column, count);
            rowQueue_.EnQue(piece);
            LocalTensor<T> ready = rowQueue_.template DeQue<T>();
            ordered::Widen(row, ready, count);
            rowQueue_.FreeTensor(ready);
            ordered::Axpy(sum, row, weight.GetValue(choice), count);
        }
        LocalTensor<T> out = yQueue_.template AllocTensor<T>();
        ordered::Narrow(out, sum, count);
        yQueue_.EnQue(out);
        LocalTensor<T> ready = yQueue_.template DeQue<T>();
        io_.Store(yGm_, static_cast<uint64_t>(token) * t_.hiddenSize + column, ready, count);
        yQueue_.FreeTensor(ready);
    }

    TPipe pipe_;
    MoeCombineTilingData t_;
    Share share_;
    RowIo<T> io_;
    RowIo<int32_t> intIo_;
    RowIo<float> floatIo_;
    GlobalTensor<T> rowsGm_, yGm_;
    GlobalTensor<int32_t> orderGm_;
    GlobalTensor<float> weightsGm_;
    TQue<TPosition::VECIN, 1> rowQueue_;
    TQue<TPosition::VECOUT, 1> yQueue_;
    TBuf<TPosition::VECCALC> sum_, row_, order_, position_, weight_;
};
}  // namespace pangu

extern "C" __global__ __aicore__ void moe_combine(GM_ADDR rows, GM_ADDR order, GM_ADDR weights, GM_ADDR y, GM_ADDR workspace, GM_ADDR tiling) {
    GET_TILING_DATA(data, tiling);
    pangu::MoeCombine<DTYPE_ROWS> kernel;
    kernel.Init(rows, order, weights, y, data);
    kernel.Process();
}
