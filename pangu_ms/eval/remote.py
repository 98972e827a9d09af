"""A model behind a server with OpenAI's API, as an EvaluatedModel: that of `pangu serve`, or another one whose
/v1/completions returns the log-probabilities of a prompt (`echo` with `logprobs`), and which has vLLM's /tokenize.

Needs httpx, which the extra [eval] brings.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import httpx
import numpy as np

from pangu_ms.core.errors import GenerationError
from pangu_ms.data.tokenizer import Tokenizer
from pangu_ms.eval.tasks.model import Answer, OnScored, TaskTokenizer
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.scoring import ContinuationScore, Item, ScoredSequence

T = TypeVar("T")
CONNECTIONS = 8
"""Requests at a time: as many as a server has slots by default."""
_TRIES, _LONGEST_WAIT_S = 6, 30.0
_BUSY = (429, 503)
_LOST = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""A server closes connections that are idle, perhaps just when one is used again."""
_KEPT_TEXTS = 4096  # whose tokens are remembered
_UNKNOWN_SIZE = 2**31 - 1  # of a vocabulary


class Connection:
    """A server, which several threads may ask.

    Attributes:
        url: of the server, without /v1.
    """

    def __init__(self, url: str, api_key: str = "", client: httpx.Client | None = None):
        """Open a connection.

        Args:
            url: of the server; a /v1 at its end is left out.
            api_key: if the server asks for one.
            client: to use instead of a new one.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = client or httpx.Client(headers=headers, timeout=600)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to GET, or to POST of a body. A server that is busy, or closed the connection, is asked again.

        Raises:
            GenerationError: the server is not there, refuses, or answers something else than JSON.
        """
        answer = self._answer(path, body)
        try:
            value = answer.json()
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise GenerationError(
                f"{self.url}{path}: answers {answer.status_code} without a JSON object; it must be a server with"
                " OpenAI's API, such as `pangu serve`"
            )
        if answer.status_code >= 400:
            error = value.get("error")
            message = error.get("message") if isinstance(error, dict) else error or value.get("detail")
            raise GenerationError(f"{self.url}{path}: answers {answer.status_code}: {message}")
        return value

    def _answer(self, path: str, body: dict[str, Any] | None) -> httpx.Response:
        attempt = 0
        while True:
            attempt += 1
            wait_s = 2.0**attempt
            try:
                answer = self._client.request("POST" if body else "GET", self.url + path, json=body)
                if answer.status_code not in _BUSY or attempt == _TRIES:
                    return answer
                wait_s = max(wait_s, _seconds(answer.headers.get("Retry-After")) or 0.0)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if not isinstance(error, _LOST) or attempt == _TRIES:
                    raise GenerationError(
                        f"{self.url}{path}: {str(error) or type(error).__name__}; start the server with `pangu serve`,"
                        " or give its URL, such as http://localhost:8000"
                    ) from None
            time.sleep(min(_LONGEST_WAIT_S, wait_s))

    def field(self, answer: dict[str, Any], name: str, kind: type[T]) -> T:
        """A part of an answer.

        Raises:
            GenerationError: it is missing or of another type.
        """
        value = answer.get(name)
        if not isinstance(value, kind):
            raise GenerationError(
                f"{self.url}: an answer has no {name} of type {kind.__name__}; it must be a server with OpenAI's API"
                " and vLLM's extensions, such as `pangu serve`"
            )
        return value


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isdecimal() else 0.0


class RemoteTokenizer:
    """The tokenizer of a served model, which is asked through /tokenize."""

    def __init__(self, connection: Connection, model: str, card: dict[str, Any]):
        """`card` is what the server says of the model in /v1/models."""
        self._connection, self._model, self._card = connection, model, card
        # Candidates share their contexts.
        self._ids = lru_cache(_KEPT_TEXTS)(self._ask)

    @cached_property
    def _first_ids(self) -> list[int]:
        """Ids that begin each prompt."""
        return self.encode_prompt("")

    @property
    def eod_id(self) -> int:
        """The token that ends a document."""
        found = self._card.get("eod_token_id")
        if not isinstance(found, int):
            raise GenerationError(
                f"{self._connection.url}: does not say which token ends a document, which stands for an empty context;"
                " name the model's tokenizer with --tokenizer"
            )
        return found

    @property
    def unk_id(self) -> int:
        """The token of what the vocabulary cannot spell; -1 if the server does not say it."""
        found = self._card.get("unk_token_id")
        return found if isinstance(found, int) else -1

    @property
    def vocab_size(self) -> int:
        """Number of tokens; a large number if the server does not say it: it refuses ids that are none."""
        found = self._card.get("vocab_size")
        return found if isinstance(found, int) else _UNKNOWN_SIZE

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that the model is to continue."""
        return list(self._ids(text))

    def _ask(self, text: str) -> list[int]:
        answer = self._connection.ask("/tokenize", {"model": self._model, "prompt": text})
        return self._connection.field(answer, "tokens", list)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The same of several texts, without what begins each prompt."""
        first = len(self._first_ids)
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return [ids[first:] for ids in pool.map(self.encode_prompt, texts)]


class RemoteModel:
    """A model of a server.

    Attributes:
        name: the address and the model's name.
        digest: of both: the weights are not known.
        tokenizer: the model's.
        window: longest sequence that it scores, in tokens.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        api_key: str = "",
        tokenizer: Tokenizer | None = None,
        client: httpx.Client | None = None,
        connections: int = CONNECTIONS,
    ):
        """Ask a server for its models.

        Args:
            url: of the server.
            model: its name there; may be left out if there is one.
            api_key: if the server asks for one.
            tokenizer: the model's; by default the server is asked for the tokens of every text.
            client: see Connection.
            connections: requests at a time.

        Raises:
            GenerationError: there is no such server or model, or it does not say how long its context is.
        """
        self._connection, self._connections = Connection(url, api_key, client), connections
        cards = self._connection.field(self._connection.ask("/v1/models"), "data", list)
        found = {str(card.get("id")): card for card in cards if isinstance(card, dict)}
        if model and model not in found or not model and len(found) != 1:
            asked = f"there is no model {model}" if model else "the name of a model is needed"
            raise GenerationError(
                f"{self._connection.url}: {asked}; the server has {', '.join(found) or 'none'}; name one with"
                " --model-name"
            )
        self._model = model or next(iter(found))
        self.name, card = f"{self._connection.url} {self._model}", found[self._model]
        self.tokenizer: TaskTokenizer = tokenizer or RemoteTokenizer(self._connection, self._model, card)
        # The server reads the last token of a sequence, too, and wants room for one more.
        self.window = self._connection.field(card, "max_model_len", int) - 2
        identity = f"{self.name} {tokenizer.fingerprint if tokenizer else ''}"
        self.digest = hashlib.sha256(identity.encode()).hexdigest()

    def score(
        self, items: Sequence[Item], on_scored: OnScored = lambda number: None
    ) -> Iterator[tuple[int, list[ContinuationScore]]]:
        """See EvaluatedModel."""
        pairs = [(index, number, pair) for index, item in enumerate(items) for number, pair in enumerate(item.pairs)]
        found: dict[int, dict[int, ContinuationScore]] = {}
        for position, score in self._each(lambda one: self._score(*one[2]), pairs):
            index, number, _ = pairs[position]
            scores = found.setdefault(index, {})
            scores[number] = score
            on_scored(1)
            if len(scores) == len(items[index].pairs):
                yield index, [scores[i] for i in range(len(scores))]
                del found[index]

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """See EvaluatedModel."""
        yield from self._each(self._generate, requests)

    def _each(self, work: Callable[[Any], T], wanted: Sequence[Any]) -> Iterator[tuple[int, T]]:
        """(index, result) of each as they end, several at a time; after an error nothing more is asked."""
        stopped = threading.Event()

        def unless_stopped(one: Any) -> T:
            if stopped.is_set():
                raise GenerationError("stopped")
            return work(one)

        with ThreadPoolExecutor(self._connections) as pool:
            try:
                futures = {pool.submit(unless_stopped, one): index for index, one in enumerate(wanted)}
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                stopped.set()

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> ContinuationScore:
        eod = () if len(context) else (self.tokenizer.eod_id,)
        sequence = ScoredSequence.of([*eod, *context], continuation, self.window, 0)
        prompt = [sequence.inputs[0], *sequence.targets]
        body = {"model": self._model, "prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 0}
        found = self._choice(body).get("logprobs") or {}
        own, top = found.get("token_logprobs"), found.get("top_logprobs")
        if not isinstance(own, list) or not isinstance(top, list) or not len(own) == len(top) == len(prompt):
            raise GenerationError(
                f"{self._connection.url}: returns no log-probabilities of a prompt's tokens for echo with logprobs; use"
                " a server that does, such as `pangu serve`"
            )
        scored = slice(1 + sequence.first, None)
        values, targets = np.array(own[scored], np.float64), np.array(sequence.targets[sequence.first :])
        greedy = [value >= max(likely.values()) for value, likely in zip(values, top[scored])]
        return sequence.score(values, np.where(greedy, targets, -1))

    def _generate(self, request: Request) -> Answer:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(map(int, request.prompt)),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # A server knows no numbers of prompts: each has a seed of its own.
            "seed": (sampling.seed * 1_000_003 + request.index) % 2**63,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if sampling.repetition_penalty != 1:
            body["repetition_penalty"] = sampling.repetition_penalty
        choice = self._choice(body)
        return Answer(str(choice.get("text", "")), finish_reason=str(choice.get("finish_reason") or "stop"))

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = self._connection.field(self._connection.ask("/v1/completions", body), "choices", list)
        if len(choices) != 1 or not isinstance(choices[0], dict):
            raise GenerationError(f"{self._connection.url}: answers {len(choices)} choices; one was asked for")
        return choices[0]
