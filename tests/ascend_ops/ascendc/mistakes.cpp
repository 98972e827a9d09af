// Small kernels with one mistake each, to see that the host execution finds it. y = 2 x for the correct ones; x and y hold 20 floats a core, which
// is no multiple of a block. Built with host/kernel_library.h in front.
using namespace AscendC;

constexpr uint32_t COUNT = 20, WHOLE = 16, PADDED = 24;

struct Probe {
    TPipe pipe;
    TQue<TPosition::VECIN, 1> in;
    TQue<TPosition::VECOUT, 1> out;
    TBuf<TPosition::VECCALC> buf, other;
    GlobalTensor<float> x, y, workspace;
    GlobalTensor<int32_t> flags;

    Probe(GM_ADDR xa, GM_ADDR ya, GM_ADDR w) {
        const uint32_t cores = static_cast<uint32_t>(GetBlockNum());
        x.SetGlobalBuffer(reinterpret_cast<float *>(xa), COUNT * cores);
        y.SetGlobalBuffer(reinterpret_cast<float *>(ya), COUNT * cores);
        workspace.SetGlobalBuffer(reinterpret_cast<float *>(GetUserWorkspace(w)), 64);
        flags.SetGlobalBuffer(reinterpret_cast<int32_t *>(GetUserWorkspace(w)), 64);
        pipe.InitBuffer(in, 2, 128);
        pipe.InitBuffer(out, 2, 128);
        pipe.InitBuffer(buf, 128);
        pipe.InitBuffer(other, 128);
    }
    bool First() const { return GetBlockIdx() == 0; }
    void Load(bool enqueue = true) {
        LocalTensor<float> t = in.AllocTensor<float>();
        DataCopy(t, x, WHOLE);
        if (enqueue) {
            in.EnQue(t);
        }
    }
    void Double(bool free = true) {
        LocalTensor<float> t = in.DeQue<float>();
        LocalTensor<float> r = out.AllocTensor<float>();
        Muls(r, t, 2.0f, WHOLE);
        out.EnQue(r);
        if (free) {
            in.FreeTensor(t);
        }
    }
    void Store() {
        LocalTensor<float> r = out.DeQue<float>();
        if (First()) {
            DataCopy(y, r, WHOLE);
        }
        out.FreeTensor(r);
    }
};

#define KERNEL(name) \
    void name(Probe &p); \
    extern "C" void run_##name(GM_ADDR x, GM_ADDR y, GM_ADDR w, GM_ADDR) { \
        Probe p(x, y, w); \
        name(p); \
    } \
    HOST_KERNEL(name, run_##name) \
    void name(Probe &p)

KERNEL(correct) {
    p.Load();
    p.Double();
    p.Store();
}
KERNEL(missing_free) {
    for (int i = 0; i < 3; ++i) {
        p.Load();
        p.Double(false);
        p.Store();
    }
}
KERNEL(missing_free_once) {
    p.Load();
    p.Double(false);
    p.Store();
}
KERNEL(double_free) {
    LocalTensor<float> t = p.in.AllocTensor<float>();
    p.in.FreeTensor(t);
    p.in.FreeTensor(t);
}
KERNEL(use_after_free) {
    LocalTensor<float> t = p.in.AllocTensor<float>();
    p.in.FreeTensor(t);
    t.SetValue(0, 1.0f);
}
KERNEL(stale_tensor) {
    LocalTensor<float> t = p.in.AllocTensor<float>();
    p.in.FreeTensor(t);
    LocalTensor<float> fresh = p.in.AllocTensor<float>();
    t.SetValue(0, 1.0f);
    p.in.FreeTensor(fresh);
}
KERNEL(missing_enque) {
    p.Load(false);
    p.Double();
}
KERNEL(foreign_queue) {
    LocalTensor<float> t = p.in.AllocTensor<float>();
    p.out.EnQue(t);
}
KERNEL(beyond_depth) {
    p.Load();
    p.Load();
}
KERNEL(ub_exhausted) {
    TBuf<TPosition::VECCALC> large;
    p.pipe.InitBuffer(large, 256 * 1024);
}
KERNEL(nine_queue_buffers) {
    TQue<TPosition::VECIN, 1> more;
    p.pipe.InitBuffer(more, 7, 32);
}
KERNEL(five_queue_buffers) {
    TQue<TPosition::VECIN, 1> more;
    p.pipe.InitBuffer(more, 3, 32);
}
KERNEL(long_axpy) {
    TBuf<TPosition::VECCALC> large;
    p.pipe.InitBuffer(large, 2 * 255 * 256);
    LocalTensor<float> t = large.Get<float>();
    Axpy(t, t, 1.0f, 2 * 255 * 64);
}
KERNEL(local_overflow) { Duplicate(p.buf.Get<float>(), 0.0f, 33); }
KERNEL(tail_overrun) {
    LocalTensor<float> t = p.in.AllocTensor<float>();
    DataCopy(t, p.x[COUNT * (GetBlockNum() - 1)], PADDED);
}
KERNEL(store_overrun) {
    LocalTensor<float> t = p.buf.Get<float>();
    DataCopy(p.y[COUNT * (GetBlockNum() - 1)], t, PADDED);
}
KERNEL(odd_length) { DataCopy(p.buf.Get<float>(), p.x, COUNT - 1); }
KERNEL(misaligned) {
    LocalTensor<float> t = p.buf.Get<float>();
    Duplicate(t[1], 0.0f, 8);
}
KERNEL(overlap) {
    LocalTensor<float> t = p.buf.Get<float>();
    Adds(t[8], t, 1.0f, 16);
}
KERNEL(write_to_input) {
    if (p.First()) {
        DataCopy(p.x, p.buf.Get<float>(), 8);
    }
}
KERNEL(no_vector_barrier) {
    LocalTensor<float> t = p.buf.Get<float>();
    Duplicate(t, 1.0f, 16);
    Adds(t, t, 1.0f, 16);
}
KERNEL(vector_barrier) {
    LocalTensor<float> t = p.buf.Get<float>();
    Duplicate(t, 1.0f, 16);
    PipeBarrier<PIPE_V>();
    Adds(t, t, 1.0f, 16);
}
KERNEL(no_barrier_after_copy) {
    LocalTensor<float> t = p.buf.Get<float>();
    DataCopy(t, p.x, 16);
    Adds(t, t, 1.0f, 16);
}
KERNEL(scalar_reads_too_early) {
    LocalTensor<float> t = p.in.AllocTensor<float>();
    DataCopy(t, p.x, 16);
    p.in.EnQue(t);
    p.in.DeQue<float>().GetValue(0);
}
KERNEL(copy_over_a_read) {
    LocalTensor<float> t = p.buf.Get<float>(), u = p.other.Get<float>();
    Adds(u, t, 1.0f, 16);
    DataCopy(t, p.x, 16);
}
KERNEL(copy_over_a_scalar_read) {
    LocalTensor<float> t = p.buf.Get<float>();
    t.GetValue(0);
    DataCopy(t, p.x, 16);
}
KERNEL(no_sync) {
    LocalTensor<float> t = p.buf.Get<float>();
    if (p.First()) {
        DataCopy(p.workspace, t, 8);
    } else {
        const volatile int &writer = host::ThisCore().launch->buffers[2].writers[0].core;
        while (writer < 0) {  // the order that goes wrong on the chip, made certain here
        }
        DataCopy(t, p.workspace, 8);
    }
}
KERNEL(unwritten_workspace) { DataCopy(p.buf.Get<float>(), p.workspace, 8); }
KERNEL(one_core_skips_sync) {
    LocalTensor<int32_t> t = p.buf.Get<int32_t>();
    Duplicate(t, 0, 32);
    PipeBarrier<PIPE_ALL>();
    DataCopy(p.flags, t, 16);
    PipeBarrier<PIPE_ALL>();
    if (p.First()) {
        SyncAll(p.flags, t);
    }
}
KERNEL(sync) {
    LocalTensor<int32_t> t = p.buf.Get<int32_t>();
    Duplicate(t, 0, 32);
    PipeBarrier<PIPE_ALL>();
    DataCopy(p.flags, t, 16);
    PipeBarrier<PIPE_ALL>();
    SyncAll(p.flags, t);
}
KERNEL(flags_not_zero) { SyncAll(p.flags, p.buf.Get<int32_t>()); }
KERNEL(shared_block) { DataCopy(p.y[GetBlockIdx() * 4], p.buf.Get<float>(), 8); }
KERNEL(shared_cache_line) { p.y.SetValue(GetBlockIdx() * 8, 1.0f); }
KERNEL(copy_into_a_cached_line) {
    if (p.First()) {
        p.y.SetValue(8, 1.0f);
        DataCopy(p.y, p.buf.Get<float>(), 8);
    }
}
KERNEL(scalar_store_beside_a_copy) {
    if (p.First()) {
        DataCopy(p.y, p.buf.Get<float>(), 8);
        p.y.SetValue(8, 1.0f);
    }
}
KERNEL(wrong_round_mode) {
#if HOST_CHIP >= 220
    Cast(p.buf.Get<bfloat16_t>(), p.other.Get<float>(), RoundMode::CAST_NONE, 16);
#else
    Cast(p.buf.Get<half>(), p.other.Get<float>(), RoundMode::CAST_RINT, 16);
#endif
}
#if HOST_CHIP >= 220
KERNEL(pad_copies_any_length) {
    LocalTensor<float> t = p.buf.Get<float>();
    const DataCopyExtParams copy{1, COUNT * sizeof(float), 0, 0, 0};
    DataCopyPad(t, p.x[COUNT * GetBlockIdx()], copy, DataCopyPadExtParams<float>{false, 0, 0, 0.0f});
    PipeBarrier<PIPE_ALL>();
    DataCopyPad(p.y[COUNT * GetBlockIdx()], t, copy);
}
KERNEL(pad_overrun) {
    const DataCopyExtParams copy{2, 10 * sizeof(float), 4, 0, 0};
    DataCopyPad(p.buf.Get<float>(), p.x[COUNT * (GetBlockNum() - 1)], copy, DataCopyPadExtParams<float>{false, 0, 0, 0.0f});
}
#endif
