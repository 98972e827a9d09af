"""The models of a server, by name: what is known of each before it is loaded, and how to load it."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.decoder import Decoder, GraphShape
from pangu_ms.infer.domains import Domains
from pangu_ms.infer.engine import Engine
from pangu_ms.infer.scheduling.length_predictors import LengthPredictor, Prompt
from pangu_ms.infer.scheduling.state import Scheduler
from pangu_ms.serve.chat_template import ChatTemplate
from pangu_ms.serve.errors import ApiError
from pangu_ms.serve.structured import Grammars


@dataclass
class ServedModel:
    """One model of a server.

    Attributes:
        name: by which requests ask for it.
        tokenizer: the model's.
        shape: slots, and the longest context.
        domains: what it tells apart.
        template: of chats.
        load: builds and compiles the model; called in the engine's thread.
        scheduler: of its engine.
        predictor: of lengths, for the scheduler.
        prefix_cache: whether beginnings of prompts that a slot holds are reused.
        created: when it was opened, in seconds since 1970.
    """

    name: str
    tokenizer: Tokenizer
    shape: GraphShape
    domains: Domains
    template: ChatTemplate
    load: Callable[[], Decoder]
    scheduler: Scheduler | None = None
    predictor: LengthPredictor | None = None
    prefix_cache: bool = True
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.grammars = Grammars(self.tokenizer)
        longest = max(len(self.tokenizer.text_bytes(i)) for i in range(self.tokenizer.vocab_size))
        # Unicode normalisation shrinks a text by less than 4.
        self._most_bytes = 4 * max(1, longest) * self.shape.max_length
        self._most_with_space = 16 * self._most_bytes  # some tokenizers leave out repeated white space

    def engine(self) -> Engine:
        """Load the model, and what the tokenizer loads at its first use."""
        self.tokenizer.encode_prompt("a \u4e2d\u6587")
        return Engine(self.load(), self.tokenizer, self.scheduler, self.prefix_cache)

    def encode(self, text: str, param: str = "prompt") -> tuple[int, ...]:
        """Ids of a prompt.

        Raises:
            ApiError: it is so long that it need not be encoded to know that it does not fit.
            DataError: it is no Unicode.
        """
        self.require_short([text], param)
        return tuple(self.tokenizer.encode_prompt(text))

    def require_short(self, texts: Iterable[str], param: str) -> None:
        """Raise ApiError if texts are far too long for the context: encoding them would take seconds."""
        texts = list(texts)
        size = sum(len("".join(text.split()).encode(errors="replace")) for text in texts)
        if sum(map(len, texts)) > self._most_with_space:
            size = max(size, sum(len(text.encode(errors="replace")) for text in texts))
        if size > self._most_bytes:
            raise ApiError(
                400,
                f"This model's maximum context length is {self.shape.max_length} tokens. The text has {size} bytes,"
                f" which are more than can fit. Please shorten it.",
                param=param,
                code="context_length_exceeded",
            )

    def room(self, num_prompt_tokens: int, max_tokens: int | None, param: str) -> int:
        """How many tokens may be generated behind a prompt.

        Args:
            num_prompt_tokens: of the prompt.
            max_tokens: asked for; None: as many as fit.
            param: the field of the prompt.

        Raises:
            ApiError: they do not fit.
        """
        most = self.shape.max_length
        if not num_prompt_tokens:
            raise ApiError(400, "The prompt is empty. At least one token is needed.", param=param)
        if num_prompt_tokens + (1 if max_tokens is None else max_tokens) > most:
            asked = "" if max_tokens is None else f" and {max_tokens} in the completion"
            raise ApiError(
                400,
                f"This model's maximum context length is {most} tokens. However, you requested"
                f" {num_prompt_tokens + (max_tokens or 0)} tokens ({num_prompt_tokens} in the {param}{asked}). Please"
                f" reduce the length of the {param}{' or completion' if max_tokens else ''}.",
                param=param,
                code="context_length_exceeded",
            )
        return most - num_prompt_tokens if max_tokens is None else max_tokens

    def domain(self, name: str | None) -> int:
        """Index of a domain.

        Raises:
            ApiError: the model has no such domain.
        """
        try:
            return self.domains.index(name or "")
        except GenerationError as error:
            raise ApiError(400, str(error), param="domain") from None

    def predicted(self, requests: Sequence[Request]) -> list[Request]:
        """The requests with their expected lengths."""
        if not self.predictor:
            return list(requests)
        lengths = self.predictor.predict([Prompt(one.prompt, one.template, i) for i, one in enumerate(requests)])
        return [dataclasses.replace(one, predicted_tokens=length) for one, length in zip(requests, lengths)]


class Models(Mapping[str, ServedModel]):
    """The models of a server by name."""

    def __init__(self, models: Iterable[ServedModel]):
        self._models = {model.name: model for model in models}

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def find(self, name: str) -> ServedModel:
        """The model that a request names.

        Raises:
            ApiError: there is none.
        """
        if name in self._models:
            return self._models[name]
        raise ApiError(
            404,
            f"The model {name[:100]!r} does not exist. This server has {', '.join(self._models)}.",
            param="model",
            code="model_not_found",
        )

    def engines(self) -> dict[str, Engine]:
        """Load all models; in the engine's thread."""
        return {name: model.engine() for name, model in self._models.items()}
