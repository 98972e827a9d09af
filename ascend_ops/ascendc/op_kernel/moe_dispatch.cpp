// Stable counting sort of the slots (token * top_k + choice) by expert, and the rows of their tokens in that order.
//
// 1. The slots are cut into chunks. A core sorts its chunks and writes the sorted slots and the histogram of each to the workspace.
// 2. After a barrier every core adds the histograms up and knows where each expert begins. It then owns a range of output positions, picks
//    the slots of that range from the sorted chunks in order, and copies their rows. Owning positions rather than slots makes every write of a
//    core one whole, aligned range, which ascend910 needs, and shares the copying out evenly however uneven the experts are.
//
// An expert id outside [0, num_experts) counts as the nearest one: each slot has a place, so order is always a permutation.
#include "tile_io.h"

namespace pangu {
template <typename T>
class MoeDispatch {
    using Ints = LocalTensor<int32_t>;

  public:
    __aicore__ inline MoeDispatch() {}
    __aicore__ inline void Init(GM_ADDR x, GM_ADDR expert, GM_ADDR rows, GM_ADDR order, GM_ADDR counts, GM_ADDR workspace,
                                const MoeDispatchTilingData &tiling) {
        t_ = tiling;
        xGm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(x), static_cast<uint64_t>(t_.tokens) * t_.hiddenSize);
        rowsGm_.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(rows), static_cast<uint64_t>(t_.slots) * t_.hiddenSize);
        Bind(expertGm_, expert, t_.slots);
        Bind(orderGm_, order, t_.slots);
        Bind(countsGm_, counts, t_.numExperts);
        Bind(workspaceGm_, workspace, t_.workspaceInts);
        sync_.Init(pipe_, workspace);
        share_.Init(t_.slots, t_.unitsPerCore);
        InitBuffers();
    }

    __aicore__ inline void Process() {
        for (uint32_t chunk = static_cast<uint32_t>(GetBlockIdx()); chunk < t_.chunks; chunk += static_cast<uint32_t>(GetBlockNum())) {
            SortChunk(chunk);
        }
        sync_.Wait();
        AddHistograms();
        for (uint32_t begin = share_.begin; begin < share_.end; begin += t_.segmentLength) {
            const uint32_t end = Min(begin + t_.segmentLength, share_.end);
            CollectOrder(begin, end);
            CopyRows(begin, end);
        }
    }

  private:
    __aicore__ inline void Bind(GlobalTensor<int32_t> &tensor, GM_ADDR address, uint32_t length) {
        tensor.SetGlobalBuffer(reinterpret_cast<__gm__ int32_t *>(address), length);
    }

    __aicore__ inline void InitBuffers() {
        io_.Init(pipe_);
        intIo_.Init(pipe_);
        pipe_.InitBuffer(rowQueue_, QUEUE_BUFFERS, t_.tileColumns * sizeof(T));
        pipe_.InitBuffer(ids_, t_.chunkLength * sizeof(int32_t));
        pipe_.InitBuffer(sorted_, t_.chunkLength * sizeof(int32_t));
        pipe_.InitBuffer(order_, t_.segmentLength * sizeof(int32_t));
        pipe_.InitBuffer(histogram_, t_.histogramLength * sizeof(int32_t));
        pipe_.InitBuffer(begin_, t_.histogramLength * sizeof(int32_t));
        pipe_.InitBuffer(cursor_, t_.histogramLength * sizeof(int32_t));
    }

    __aicore__ inline uint32_t Expert(const Ints &ids, uint32_t i) const {
        const int32_t id = ids.GetValue(i);
        return id < 0 ? 0 : Min(static_cast<uint32_t>(id), t_.numExperts - 1);
    }

    // to[e] = counts of the experts before e
    __aicore__ inline void Scan(const Ints &to, const Ints &counts) {
        int32_t sum = 0;
        for (uint32_t e = 0; e < t_.numExperts; ++e) {
            const int32_t count = counts.GetValue(e);
            to.SetValue(e, sum);
            sum += count;
        }
    }

    __aicore__ inline void SortChunk(uint32_t chunk) {
        Ints ids = ids_.Get<int32_t>(), sorted = sorted_.Get<int32_t>(), histogram = histogram_.Get<int32_t>(), cursor = cursor_.Get<int32_t>();
        const uint32_t first = chunk * t_.chunkLength;
        const uint32_t count = Min(t_.chunkLength, t_.slots - first);
        intIo_.Load(ids, expertGm_, first, count);
        Duplicate(histogram, 0, t_.histogramLength);
        PipeBarrier<PIPE_ALL>();
        for (uint32_t i = 0; i < count; ++i) {
            const uint32_t e = Expert(ids, i);
            histogram.SetValue(e, histogram.GetValue(e) + 1);
        }
        Scan(cursor, histogram);
        for (uint32_t i = 0; i < count; ++i) {
            const uint32_t e = Expert(ids, i);
            const int32_t place = cursor.GetValue(e);
            sorted.SetValue(place, static_cast<int32_t>(first + i));
            cursor.SetValue(e, place + 1);
        }
        PipeBarrier<PIPE_ALL>();
        DataCopy(workspaceGm_[HistogramOffset(chunk)], histogram, t_.histogramLength);
        DataCopy(workspaceGm_[SortedOffset(chunk)], sorted, RoundUp(count, SHARE_UNIT));
        PipeBarrier<PIPE_ALL>();
    }

    // begin_ = first position of each expert; core 0 also writes the counts.
    __aicore__ inline void AddHistograms() {
        Ints histogram = histogram_.Get<int32_t>(), total = cursor_.Get<int32_t>(), begin = begin_.Get<int32_t>();
        Duplicate(total, 0, t_.histogramLength);
        for (uint32_t chunk = 0; chunk < t_.chunks; ++chunk) {
            DataCopy(histogram, workspaceGm_[HistogramOffset(chunk)], t_.histogramLength);
            PipeBarrier<PIPE_ALL>();
            Add(total, total, histogram, t_.histogramLength);
            PipeBarrier<PIPE_ALL>();
        }
        PipeBarrier<PIPE_ALL>();
        if (GetBlockIdx() == 0) {
            intIo_.Store(countsGm_, 0, total, t_.numExperts);
        }
        Scan(begin, total);
        PipeBarrier<PIPE_ALL>();
    }

    // order[begin..end): goes through the chunks in order and takes from each the part of every expert's slots that falls into the range
    __aicore__ inline void CollectOrder(uint32_t begin, uint32_t end) {
        Ints order = order_.Get<int32_t>(), sorted = sorted_.Get<int32_t>(), histogram = histogram_.Get<int32_t>();
        Ints cursor = cursor_.Get<int32_t>(), start = begin_.Get<int32_t>();
        for (uint32_t e = 0; e < t_.numExperts; ++e) {
            cursor.SetValue(e, start.GetValue(e));
        }
        for (uint32_t chunk = 0; chunk < t_.chunks; ++chunk) {
            const uint32_t count = Min(t_.chunkLength, t_.slots - chunk * t_.chunkLength);
            PipeBarrier<PIPE_ALL>();
            DataCopy(histogram, workspaceGm_[HistogramOffset(chunk)], t_.histogramLength);
            DataCopy(sorted, workspaceGm_[SortedOffset(chunk)], RoundUp(count, SHARE_UNIT));
            PipeBarrier<PIPE_ALL>();
            CollectChunk(order, begin, end);
        }
        PipeBarrier<PIPE_ALL>();
        intIo_.Store(orderGm_, begin, order, end - begin);
        PipeBarrier<PIPE_ALL>();
    }

    __aicore__ inline void CollectChunk(const Ints &order, uint32_t begin, uint32_t end) {
        Ints sorted = sorted_.Get<int32_t>(), histogram = histogram_.Get<int32_t>(), cursor = cursor_.Get<int32_t>();
        uint32_t taken = 0;
        for (uint32_t e = 0; e < t_.numExperts; ++e) {
            const uint32_t length = static_cast<uint32_t>(histogram.GetValue(e));
            const uint32_t position = static_cast<uint32_t>(cursor.GetValue(e));
            for (uint32_t p = Max(position, begin); p < Min(position + length, end); ++p) {
                order.SetValue(p - begin, sorted.GetValue(taken + p - position));
            }
            cursor.SetValue(e, static_cast<int32_t>(position + length));
            taken += length;
        }
    }

    __aicore__ inline void CopyRows(uint32_t begin, uint32_t end) {
        Ints order = order_.Get<int32_t>();
        for (uint32_t position = begin; position < end; ++position) {
            const uint32_t token = static_cast<uint32_t>(order.GetValue(position - begin)) / t_.topK;
            for (uint32_t column = 0; column < t_.hiddenSize; column += t_.tileColumns) {
                CopyPiece(token, position, column, Min(t_.tileColumns, t_.hiddenSize - column));
            }
        }
    }

    __aicore__ inline void CopyPiece(uint32_t token, uint32_t position, uint32_t column, uint32_t count) {
        LocalTensor<T> piece = rowQueue_.template AllocTensor<T>();
        io_.Load(piece, xGm_, static_cast<uint64_t>(token) * t_.hiddenSize + column, count);
        rowQueue_.EnQue(piece);
        LocalTensor<T> ready = rowQueue_.template DeQue<T>();
        io_.Store(rowsGm_, static_cast<uint64_t>(position) * t_.hiddenSize + column, ready, count);
        rowQueue_.FreeTensor(ready);
    }

    __aicore__ inline uint64_t HistogramOffset(uint32_t chunk) const { return t_.histograms + static_cast<uint64_t>(chunk) * t_.histogramLength; }
    __aicore__ inline uint64_t SortedOffset(uint32_t chunk) const { return t_.sortedSlots + static_cast<uint64_t>(chunk) * t_.chunkLength; }

    TPipe pipe_;
    MoeDispatchTilingData t_;
    Share share_;
    CoreSync sync_;
    RowIo<T> io_;
    RowIo<int32_t> intIo_;
    GlobalTensor<T> xGm_, rowsGm_;
    GlobalTensor<int32_t> expertGm_, orderGm_, countsGm_, workspaceGm_;
    TQueBind<TPosition::VECIN, TPosition::VECOUT, 1> rowQueue_;
    TBuf<TPosition::VECCALC> ids_, sorted_, order_, histogram_, begin_, cursor_;
};
}  // namespace pangu

extern "C" __global__ __aicore__ void moe_dispatch(GM_ADDR x, GM_ADDR expert, GM_ADDR experts, GM_ADDR rows, GM_ADDR order, GM_ADDR counts, GM_ADDR workspace,
                                                   GM_ADDR tiling) {
    GET_TILING_DATA(data, tiling);
#if __CCE_AICORE__ >= 220
    KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIV_1_0);  // what SyncAll asks for
#endif
    pangu::MoeDispatch<DTYPE_X> kernel;
    kernel.Init(x, expert, rows, order, counts, AscendC::GetUserWorkspace(workspace), data);
    kernel.Process();
}
