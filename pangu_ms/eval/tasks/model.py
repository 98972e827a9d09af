"""The models that tasks are given to: what a task needs of one, and a checkpoint of this project as one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pangu_ms.checkpoint import store
from pangu_ms.config.load import config_to_dict
from pangu_ms.config.schema import RunConfig
from pangu_ms.core import files
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.decoder import GraphShape
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.load import domains_of, load_decoder, load_scorer, load_tokenizer
from pangu_ms.infer.scoring import ContinuationScore, Item, Scorer
from pangu_ms.infer.window_scorer import WindowScorer

OnScored = Callable[[int], None]


class TaskTokenizer(Protocol):
    """What tasks need of a tokenizer; `data.tokenizer.Tokenizer` is one."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    @property
    def eod_id(self) -> int:
        """The end of a document, which stands for an empty context."""

    @property
    def unk_id(self) -> int:
        """The token of what the vocabulary cannot spell."""

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text from its beginning, with the tokens that begin each prompt of the model."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, without such tokens."""


@dataclass(frozen=True)
class Answer:
    """A generated continuation.

    Attributes:
        text: without a stop string.
        num_tokens: tokens that were generated, a stop token included.
        finish_reason: "stop" or "length".
        error: what went wrong, "" if nothing.
    """

    text: str
    num_tokens: int = 0
    finish_reason: str = "stop"
    error: str = ""


class EvaluatedModel(Protocol):
    """A model that tasks are given to.

    Answers must not depend on what else is asked, nor on the order: a run that was interrupted goes on with the items
    that are missing.
    """

    @property
    def name(self) -> str:
        """What people call it: a path or an address."""

    @property
    def digest(self) -> str:
        """Changes with everything that changes its answers: weights, tokenizer, dtype."""

    @property
    def tokenizer(self) -> TaskTokenizer:
        """Its tokenizer."""

    @property
    def window(self) -> int:
        """Longest sequence that it reads, in tokens."""

    def score(
        self, items: Sequence[Item], on_scored: OnScored = lambda number: None
    ) -> Iterator[tuple[int, list[ContinuationScore]]]:
        """Score items; yields (index of the item, a score for each of its pairs) in any order, as soon as an item is
        complete. `on_scored` is called with the number of continuations that were scored since.

        Raises:
            GenerationError: an item cannot be scored; nothing was computed then.
        """

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Continue prompts; yields (index in `requests`, answer) in any order. A sampled answer depends on the seed and
        on `Request.index` alone, which is not the index in `requests`.

        Raises:
            GenerationError: a prompt cannot be continued; nothing was computed then.
        """


class LocalModel:
    """A checkpoint. Its graphs are compiled when they are first needed; one of the two is in memory at a time: that
    which scores, or that which generates."""

    def __init__(
        self,
        checkpoint: store.Checkpoint,
        config: RunConfig | None = None,
        weights: str = "",
        tokenizer: Path | str | None = None,
        batch_size: int = 8,
        domain: str = "",
    ):
        """Open the model; nothing is loaded yet.

        Args:
            checkpoint: the weights.
            config: device and dtype; by default the checkpoint's own configuration.
            weights: see `infer.load.weights_of`.
            tokenizer: path of a tokenizer; by default the checkpoint's own.
            batch_size: slots: prompts that are continued at a time.
            domain: name of the domain in which it answers, "" for the model's default.
        """
        self.checkpoint, self.config, self.weights = checkpoint, config or checkpoint.config(), weights
        self.tokenizer, self.batch_size = load_tokenizer(checkpoint, tokenizer), batch_size
        self.domain = domains_of(self.config.model).index(domain)
        self.name, self.window = str(checkpoint.path), self.config.model.seq_length
        identity = [checkpoint.manifest, config_to_dict(self.config)["model"], weights, self.tokenizer.fingerprint]
        self.digest = files.sha256_json([*identity, domain] if domain else identity)
        self._scorer: Scorer | WindowScorer | None = None
        self._engine: Engine | None = None

    def score(
        self, items: Sequence[Item], on_scored: OnScored = lambda number: None
    ) -> Iterator[tuple[int, list[ContinuationScore]]]:
        """See EvaluatedModel. Items of a model with domains that name none are of the domain that was given."""
        items = [Item(item.pairs, self.domain, item.is_text) if item.domain is None else item for item in items]
        longest = min(max((item.longest() for item in items), default=1), self.window)
        texts = all(item.is_text for item in items)
        if not self._scorer or self._scorer.window < longest or isinstance(self._scorer, WindowScorer) != texts:
            self._load_scorer(items, texts)
        assert self._scorer
        return self._scorer.score_all(items, on_scored)

    def _load_scorer(self, items: Sequence[Item], texts: bool) -> None:
        if self._scorer and not texts:  # the second one has room for all: large models take long to load
            eod = self.tokenizer.eod_id
            items = [Item.choice([eod] * self.window, [[eod]])]
        self._engine = self._scorer = None  # before the next one is loaded, so that both need not fit
        self._scorer = load_scorer(self.checkpoint, items, self.tokenizer, self.config, self.weights)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See EvaluatedModel."""
        if not requests:
            return
        longest = max(len(request.prompt) + request.sampling.max_new_tokens for request in requests)
        if not self._engine or self._engine.decoder.shape.max_length < min(longest, self.window):
            self._load_engine(requests, longest)
        assert self._engine
        engine, numbers = self._engine, {}
        for index, request in enumerate(requests):
            domain = self.domain if request.domain is None else request.domain
            numbers[engine.submit(_in_domain(request, domain))] = index
        for number, one in engine.run():
            yield numbers[number], Answer(one.text, len(one.ids), one.finish_reason, one.error)

    def _load_engine(self, requests: Sequence[Request], longest: int) -> None:
        # A power of two, so that tasks with other prompts find the graph in the compile cache.
        length = self.window if self._engine else max(64, 1 << (longest - 1).bit_length())
        shape = GraphShape.fitting(self.window, self.batch_size, length)
        for request in requests:
            shape.require_room_for(len(request.prompt), request.index + 1)
        self._engine = self._scorer = None
        decoder = load_decoder(self.checkpoint, shape, self.config, self.weights)
        self._engine = Engine(decoder, self.tokenizer)


def _in_domain(request: Request, domain: int | None) -> Request:
    return Request(request.prompt, request.sampling, request.index, request.sample, domain)
