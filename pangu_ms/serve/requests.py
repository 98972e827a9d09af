"""Makes the engine's requests of those of the API."""

import dataclasses
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from pangu_ms.core.errors import DataError, GenerationError
from pangu_ms.infer.continuation import Request
from pangu_ms.infer.sampling import Guide, SamplingConfig
from pangu_ms.serve.chat_template import TemplateError
from pangu_ms.serve.errors import ApiError
from pangu_ms.serve.models import ServedModel
from pangu_ms.serve.protocol import ChatRequest, CompletionRequest, Message, Sampled

MakeGuide = Callable[[], Guide]
_SMALLEST_TOP_P = 1e-9  # with OpenAI's top_p=0, which keeps the likeliest token


def completion_requests(
    model: ServedModel, body: CompletionRequest, most: int, guide: MakeGuide | None = None
) -> tuple[list[Request], list[str]]:
    """The requests of a body, those of each prompt together, and the text of each one's prompt.

    Args:
        model: that is asked.
        body: of POST /v1/completions.
        most: requests of one body.
        guide: makes what says which tokens may come; see Grammars.

    Raises:
        ApiError: something in it cannot be done.
    """
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens=0 needs echo=true: the answer would be empty.", param="max_tokens")
    prompts = _prompts(body)
    if not prompts:
        raise ApiError(400, "prompt: there is none. Give a text or tokens.", param="prompt")
    _require_few(len(prompts) * (body.n or 1), most)
    model.require_short([prompt for prompt in prompts if isinstance(prompt, str)], "prompt")
    requests: list[Request] = []
    texts: list[str] = []
    for prompt in prompts:
        try:
            ids = model.encode(prompt) if isinstance(prompt, str) else tuple(prompt)
            texts += [prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt)] * (body.n or 1)
        except DataError as error:
            raise ApiError(400, str(error), param="prompt") from None
        logprobs, wanted = _or(body.logprobs, -1), 1 if body.max_tokens == 0 else body.max_tokens
        made = _requests(model, body, ids, wanted, "prompt", guide, logprobs=logprobs)
        if body.echo:
            only = body.max_tokens == 0
            made = [dataclasses.replace(one, prompt_logprobs=logprobs, prompt_only=only) for one in made]
        requests += made
    return model.predicted(requests), texts


def chat_requests(model: ServedModel, body: ChatRequest, most: int, guide: MakeGuide | None = None) -> list[Request]:
    """The requests of a body of POST /v1/chat/completions; see `completion_requests`."""
    _require_few(body.n or 1, most)
    ids = chat_ids(model, body.messages, None if body.tool_choice == "none" else body.tools)
    logprobs = (body.top_logprobs or 0) if body.logprobs else -1
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    stops = model.template.stop_ids
    made = _requests(model, body, ids, wanted, "messages", guide, logprobs=logprobs, stop_token_ids=stops)
    return model.predicted(made)


def chat_ids(model: ServedModel, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> tuple[int, ...]:
    """Ids of a chat.

    Raises:
        ApiError: the template does not take it.
    """
    trees = []
    for message in messages:
        tree = message.model_dump(exclude_none=True) | {"content": message.text()}
        trees.append(tree | {"role": "system"} if message.role == "developer" else tree)
    model.require_short([json.dumps(trees, ensure_ascii=False), json.dumps(tools or "")], "messages")
    try:
        return model.template.encode(trees, tools)
    except (TemplateError, DataError) as error:
        raise ApiError(400, str(error), param="tools" if str(error).startswith("tools:") else "messages") from None


def _prompts(body: CompletionRequest) -> list[str] | list[list[int]]:
    prompt: Any = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    return [prompt] if prompt and isinstance(prompt[0], int) else prompt


def _require_few(number: int, most: int) -> None:
    if number > most:
        raise ApiError(400, f"The request asks for {number} continuations; {most} are the most.", param="n")


def _requests(
    model: ServedModel,
    body: Sampled,
    ids: tuple[int, ...],
    max_tokens: int | None,
    param: str,
    guide: MakeGuide | None,
    logprobs: int,
    stop_token_ids: tuple[int, ...] = (),
) -> list[Request]:
    """The n requests of one prompt."""
    values = {
        "max_new_tokens": model.room(len(ids), max_tokens, param),
        "min_new_tokens": body.min_tokens or 0,
        "temperature": _or(body.temperature, 1.0),
        "top_p": max(_or(body.top_p, 1.0), _SMALLEST_TOP_P),
        "top_k": body.top_k or 0,
        "repetition_penalty": _or(body.repetition_penalty, 1.0),
        "frequency_penalty": body.frequency_penalty or 0.0,
        "presence_penalty": body.presence_penalty or 0.0,
        "logit_bias": _bias(model, body.logit_bias or {}),
        "stop": tuple(body.stop or ()),
        "stop_token_ids": (*stop_token_ids, *(body.stop_token_ids or ())),
        "logprobs": logprobs,
        "seed": secrets.randbits(63) if body.seed is None else body.seed % 2**64,
    }
    for name, many in (("prompt", ids), ("stop_token_ids", values["stop_token_ids"])):
        if many and max(many) >= model.tokenizer.vocab_size:
            raise ApiError(400, f"{name}: {max(many)} is no token; there are {model.tokenizer.vocab_size}.", param=name)
    try:
        sampling = SamplingConfig(**values)
    except GenerationError as error:
        raise ApiError(400, str(error), param=_param_of(str(error))) from None
    domain = model.domain(body.domain)
    return [Request(ids, sampling, sample=sample, domain=domain, guide=guide) for sample in range(body.n or 1)]


def _param_of(message: str) -> str:
    """The API's name of a setting with which a message begins."""
    name = message.partition("=")[0]
    return {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}.get(name, name)


def _bias(model: ServedModel, given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    for key in given:
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < model.tokenizer.vocab_size):
            raise ApiError(
                400,
                f"logit_bias: {key[:40]!r} is no token; tokens are 0 to {model.tokenizer.vocab_size - 1}.",
                param="logit_bias",
            )
    return tuple((int(key), float(value)) for key, value in given.items())


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
