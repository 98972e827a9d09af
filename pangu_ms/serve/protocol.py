"""Requests and answers of OpenAI's API, as far as this server has them.

A field that OpenAI does not have is refused, as OpenAI refuses it, unless it is one of the extensions, whose names are
those of vLLM. Fields of OpenAI that mean nothing here are ignored (`IGNORED`) or refused (`REFUSED`).
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pangu_ms.serve.errors import ApiError

MOST_STOPS = 16
MOST_BIASES = 1024
MOST_LOGPROBS = 20
MOST_CHOICES, MOST_CHARACTERS = 4096, 2**18  # of guided_choice
_OF_ALL = {
    "user": "says who asks",
    "safety_identifier": "says who asks",
    "prompt_cache_key": "every beginning of a prompt that a slot holds is reused",
    "prompt_cache_retention": "every beginning of a prompt that a slot holds is reused",
}
IGNORED = {
    "completions": _OF_ALL,
    "chat": _OF_ALL
    | {
        "metadata": "nothing is stored",
        "store": "nothing is stored",
        "service_tier": "there is one",
        "parallel_tool_calls": "the model calls as many tools as it likes",
        "reasoning_effort": "the model has no such setting",
        "verbosity": "the model has no such setting",
    },
}
"""Fields of OpenAI's requests that do nothing, and why."""
_AUDIO = "this server reads and writes text only"
REFUSED = {
    "completions": {
        "best_of": "ask for n continuations and choose among them",
        "suffix": "the models continue texts, they do not fill gaps",
    },
    "chat": {
        "audio": _AUDIO,
        "modalities": _AUDIO,
        "functions": "it is deprecated; use tools with a chat template that has them",
        "function_call": "it is deprecated; use tools with a chat template that has them",
        "prediction": "there are no predicted outputs",
        "web_search_options": "the server has no access to the web",
        "moderation": "there is no moderation",
    },
}
"""Fields of OpenAI's requests that would change the answer, which this server cannot; and what to do."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _require_few_characters(values: list[str]) -> list[str]:
    if sum(map(len, values)) > MOST_CHARACTERS:
        raise ValueError(f"all texts together may have {MOST_CHARACTERS} characters")
    return values


Texts = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], BeforeValidator(_listed)]
Tokens = list[Annotated[int, Field(ge=0)]]


class Strict(BaseModel):
    """A part of a request: other fields are refused, and so are values of other types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """Of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Strict):
    """Of `response_format`."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """What the text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Sampled(Strict):
    """What requests for completions and for chats have in common."""

    path: ClassVar[str]

    model: str
    max_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    stop: Annotated[Texts, Field(max_length=MOST_STOPS)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MOST_BIASES)] | None = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)  # a smaller one makes logits infinite
    min_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    stop_token_ids: Annotated[Tokens, Field(max_length=MOST_STOPS)] | None = None
    guided_json: dict[str, Any] | None = None
    guided_regex: Annotated[str, Field(max_length=10_000)] | None = None
    guided_choice: (
        Annotated[
            list[Annotated[str, Field(min_length=1)]],
            Field(min_length=1, max_length=MOST_CHOICES),
            AfterValidator(_require_few_characters),
        ]
        | None
    ) = None
    domain: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_ignored(cls, values: Any) -> Any:
        """Refuse some fields, and leave out those that do nothing."""
        if not isinstance(values, dict):
            return values
        for name, advice in REFUSED[cls.path].items():
            if values.get(name) not in (None, *_HARMLESS.get(name, ())):
                raise ApiError(
                    400, f"{name} is not supported: {advice}.", param=name, code="unsupported_parameter"
                ) from None
        dropped = {*REFUSED[cls.path], *IGNORED[cls.path]}
        return {name: value for name, value in values.items() if name not in dropped}

    @model_validator(mode="after")
    def _options_of_streams(self) -> "Sampled":
        if self.stream_options and not self.stream:
            raise ApiError(400, "stream_options needs stream=true.", param="stream_options")
        return self


_HARMLESS: dict[str, tuple[Any, ...]] = {"best_of": (1,), "modalities": (["text"],), "suffix": ("",)}
"""Values of refused fields that ask for nothing special."""


class CompletionRequest(Sampled):
    """The body of POST /v1/completions."""

    path: ClassVar[str] = "completions"

    prompt: str | list[str] | Tokens | list[Tokens]
    max_tokens: int | None = Field(16, ge=0, le=2**31 - 1)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def text(self) -> str:
        """The content."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(Sampled):
    """The body of POST /v1/chat/completions."""

    path: ClassVar[str] = "chat"

    messages: list[Message] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs=true.", param="top_logprobs")
        return self


class TokenizeRequest(Strict):
    """The body of POST /tokenize: a prompt or messages."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)] | None = None


class DetokenizeRequest(Strict):
    """The body of POST /detokenize."""

    model: str
    tokens: Annotated[Tokens, Field(max_length=1_000_000)]


class CachedTokens(BaseModel):
    """Of a prompt."""

    cached_tokens: int = 0


class Usage(BaseModel):
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TopLogprob(BaseModel):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of an answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(BaseModel):
    """Of a completion, one entry for each token; without a number for the first token of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """A continuation, or a part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class FunctionCall(BaseModel):
    """Which tool to call."""

    name: str
    arguments: str
    """JSON."""


class ToolCall(BaseModel):
    """A call of a tool."""

    id: str
    type: str = "function"
    function: FunctionCall


class ToolCallDelta(ToolCall):
    """A call in a stream; it comes as a whole."""

    index: int


class Delta(BaseModel):
    """What a chat's answer gets."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class AnswerMessage(BaseModel):
    """The answer of a chat; without content if it only calls tools."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """An answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunkChoice(BaseModel):
    """A part of an answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class Answer(BaseModel):
    """What all answers have."""

    id: str
    object: str
    created: int
    model: str


class Completion(Answer):
    """The answer of /v1/completions, or an event of its stream."""

    choices: list[CompletionChoice]
    usage: Usage | None = None


class ChatCompletion(Answer):
    """The answer of /v1/chat/completions."""

    choices: list[ChatChoice]
    usage: Usage | None = None


class ChatChunk(Answer):
    """An event of a chat's stream."""

    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class Fault(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The answer of a request that is refused."""

    error: Fault


class ModelCard(BaseModel):
    """A model of the server; the fields below `owned_by` are an extension."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "pangu-ms"
    max_model_len: int
    domains: list[str] = []
    vocab_size: int
    eod_token_id: int
    unk_token_id: int


class ModelList(BaseModel):
    """The answer of /v1/models."""

    object: str = "list"
    data: list[ModelCard]
