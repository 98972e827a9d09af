"""llama.cpp through ctypes: a model in a GGUF file, decoded token by token.

Only what stays the same from version to version is assumed of its structures: they are created by llama.cpp's own
functions of defaults, and of the parameters of a context only the first four are set, which is checked afterwards. The
prebuilt library for Linux is in the npm package @node-llama-cpp/linux-x64 (`npm pack`, then its folder `bins`).
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_uint32, c_void_p
from pathlib import Path


class Opaque(ctypes.Structure):
    """Room for any structure of parameters, passed by value: what is behind it on the stack is not read."""

    _fields_ = (("words", c_uint32 * 256),)


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


def library(directory: Path, name: str) -> ctypes.CDLL:
    """The one library of that name, with or without a version, below a directory."""
    found = sorted(directory.rglob(f"lib{name}.so")) + sorted(directory.rglob(f"lib{name}.*.so"))
    if not found:
        raise FileNotFoundError(f"{directory}: holds no lib{name}.so of llama.cpp")
    return ctypes.CDLL(str(found[0]), ctypes.RTLD_GLOBAL)


class LlamaCpp:
    """A model with room for sequences of the same length."""

    def __init__(
        self, directory: Path, model: Path, num_sequences: int, capacity: int, threads: int, exact: bool = False
    ):
        """Load a model.

        Args:
            directory: where the libraries are.
            model: a GGUF file.
            num_sequences: sequences that are decoded together.
            capacity: positions of each.
            threads: that compute.
            exact: compute attention in float32 with a float32 cache; by default both are float16.
        """
        base, ggml, self.llama = (library(directory, name) for name in ("ggml-base", "ggml", "llama"))
        llama = self.llama
        for name in (
            "llama_model_load_from_file",
            "llama_init_from_model",
            "llama_get_memory",
            "llama_model_get_vocab",
        ):
            getattr(llama, name).restype = c_void_p
        for name in ("llama_model_default_params", "llama_context_default_params"):
            getattr(llama, name).restype = Opaque
        llama.llama_batch_init.restype = Batch
        llama.llama_get_logits_ith.restype = POINTER(c_float)
        llama.llama_memory_seq_rm.restype = c_bool
        ggml.ggml_backend_load_all_from_path(str(next(directory.rglob("libggml-base.so")).parent).encode())
        llama.llama_backend_init()
        self.model = c_void_p(llama.llama_model_load_from_file(str(model).encode(), llama.llama_model_default_params()))
        if not self.model:
            raise ValueError(f"{model}: llama.cpp cannot load it")
        parameters = llama.llama_context_default_params()
        # n_ctx of all sequences together, n_batch, n_ubatch, n_seq_max
        parameters.words[:4] = [capacity * num_sequences, 512, 512, num_sequences]
        if exact:
            self._compute_exactly(parameters)
        self.context = c_void_p(llama.llama_init_from_model(self.model, parameters))
        found = [getattr(llama, name)(self.context) for name in ("llama_n_ctx", "llama_n_seq_max")]
        if not capacity * num_sequences <= found[0] < 2 * capacity * num_sequences or found[1] != num_sequences:
            raise ValueError(f"llama.cpp's parameters of a context have changed: it has {found}")
        llama.llama_set_n_threads(self.context, threads, threads)
        self._attach_threads(base, ggml, threads)
        self.memory = c_void_p(llama.llama_get_memory(self.context))
        llama.llama_vocab_n_tokens.restype = c_int32
        self.vocab_size = llama.llama_vocab_n_tokens(c_void_p(llama.llama_model_get_vocab(self.model)))
        self.num_sequences, self.batch = num_sequences, llama.llama_batch_init(512, 0, 1)
        self.length = 0

    def _compute_exactly(self, parameters: Opaque) -> None:
        flash_attention, key_type, value_type = 13, 26, 27
        defaults = [parameters.words[word] for word in (flash_attention, key_type, value_type)]
        if defaults != [2**32 - 1, 1, 1]:  # automatic, float16, float16
            raise ValueError("llama.cpp's parameters of a context are not those of version 0.5.0")
        for word in (flash_attention, key_type, value_type):
            parameters.words[word] = 0

    def _attach_threads(self, base: ctypes.CDLL, ggml: ctypes.CDLL, threads: int) -> None:
        """Threads that live as long as the context, as llama.cpp's own programs have them."""
        ggml.ggml_backend_reg_by_name.restype = base.ggml_backend_reg_get_proc_address.restype = c_void_p
        cpu = c_void_p(ggml.ggml_backend_reg_by_name(b"CPU"))
        new = base.ggml_backend_reg_get_proc_address(cpu, b"ggml_threadpool_new")
        parameters = Opaque()
        base.ggml_threadpool_params_init(ctypes.byref(parameters), threads)
        pool = c_void_p(ctypes.CFUNCTYPE(c_void_p, c_void_p)(new)(ctypes.addressof(parameters)))
        self.llama.llama_attach_threadpool(self.context, pool, None)

    def version(self) -> str:
        """Of the library, if it tells."""
        if not hasattr(self.llama, "llama_version"):
            return ""
        self.llama.llama_version.restype = c_char_p
        return self.llama.llama_version().decode()

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, bos included if the file says so; text that spells a special token is text."""
        vocabulary, content = c_void_p(self.llama.llama_model_get_vocab(self.model)), text.encode()
        room = (c_int32 * (len(content) + 8))()
        number = self.llama.llama_tokenize(
            vocabulary, c_char_p(content), c_int32(len(content)), room, c_int32(len(room)), c_bool(True), c_bool(False)
        )
        if number < 0:
            raise ValueError(f"{number} tokens of a text of {len(content)} bytes")
        return list(room[:number])

    def cut(self, length: int) -> None:
        """Forget what is behind that many tokens of every sequence."""
        for sequence in range(self.num_sequences):
            self.llama.llama_memory_seq_rm(self.memory, sequence, length, -1)
        self.length = length

    def append(self, tokens: Sequence[int]) -> list["ctypes._Pointer[c_float]"]:
        """Append one token to every sequence; the logits behind it, valid until the next call, for each."""
        batch = self.batch
        batch.n_tokens = self.num_sequences
        for row, token in enumerate(tokens):
            batch.token[row], batch.pos[row], batch.logits[row] = token, self.length, 1
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, row
        if self.llama.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        self.length += 1
        return [self.llama.llama_get_logits_ith(self.context, row) for row in range(self.num_sequences)]
