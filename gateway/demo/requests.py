"""Requests of the demo provider: three OpenAI forms as one `DemoRequest`, and its choices.

Errors are OpenAI's: 400 with the field in `param`. Fields without a meaning for a demo (temperature
aside) are accepted and ignored.
"""

from __future__ import annotations

import random
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from gateway.demo import language
from gateway.errors import InvalidRequest

CONTEXT_TOKENS = 128_000
ATTEMPT_STEP = 128  # most choices of one request, so that attempts never share a number
Positive = Annotated[int, Meta(ge=1)]
Json = dict[str, Any]
Form = TypeVar("Form", bound=Struct)


class Message(Struct):
    role: str = "user"
    content: str | list[Json] | None = None


class StreamOptions(Struct):
    include_usage: bool = False


class Common(Struct, kw_only=True):
    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    seed: int | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None


class ChatBody(Common, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Meta(min_length=1)]
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None
    response_format: Json | None = None


class CompletionBody(Common, kw_only=True):
    """POST /v1/completions"""

    prompt: str | list[Any] = ""  # texts, or token ids, or lists of them
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Positive | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None


class ResponsesBody(Common, kw_only=True):
    """POST /v1/responses"""

    input: str | list[Json] = ""
    instructions: str | None = None
    max_output_tokens: Annotated[int, Meta(ge=16)] | None = None
    text: Json | None = None


class EmbeddingsBody(Struct, kw_only=True):
    """POST /v1/embeddings"""

    model: Annotated[str, Meta(min_length=1)]
    input: str | list[Any]  # as `prompt` of /v1/completions
    dimensions: Annotated[int, Meta(ge=1, le=4096)] = 32
    encoding_format: Literal["float", "base64"] = "float"


class DemoRequest(Struct, frozen=True):
    """A request in any of the three forms."""

    model: str
    prompts: tuple[str, ...]  # one, except for /v1/completions
    prompt_tokens: int
    n: int
    limit: int  # output tokens per choice
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    seed: int | None
    repeats: bool  # the same answer every time: a seed or temperature 0
    tool: Json | None  # function to call instead of an answer
    schema: Json | None  # schema of a JSON answer


class Choice(Struct, frozen=True):
    """One choice of an answer, made in full; the server sends it token by token."""

    tokens: list[str]  # the arguments' tokens where `tool` is set
    finish: str  # stop, length, tool_calls
    tool: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def decode(body: bytes, form: type[Form]) -> Form:
    """A JSON body as `form`. Raises InvalidRequest with the field at fault."""
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        param = path.strip("`.").split("[")[0] or None
        if param is None and "field `" in what:
            param = what.split("field `")[1].split("`")[0]
        raise InvalidRequest(
            f"Invalid request: {what}", param=param, code="invalid_value"
        ) from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"We could not parse the JSON body of your request: {error}") from None


def from_chat(body: ChatBody) -> DemoRequest:
    """The request of a chat body; its prompt is the last user message."""
    texts = [_text(m.content) for m in body.messages]
    prompt = next((t for m, t in _last_first(body.messages, texts) if m.role == "user"), texts[-1])
    answered = body.messages[-1].role == "tool"
    return _request(
        body,
        (prompt,),
        sum(map(language.count_tokens, texts)) + 4 * len(texts),
        limit=body.max_completion_tokens or body.max_tokens,
        tool=None if answered else _tool(body, prompt),
        schema=_schema(body.response_format, "json_schema"),
    )


def from_completion(body: CompletionBody) -> DemoRequest:
    """The request of a completions body, with every prompt."""
    given = _texts(body.prompt, "prompt") or [("", 0)]
    prompts = tuple(text for text, _ in given)
    tokens = sum(count for _, count in given)
    return _request(body, prompts, tokens, limit=body.max_tokens or 16)


def from_responses(body: ResponsesBody) -> DemoRequest:
    """The request of a Responses API body; its prompt is the last user message."""
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    messages = [Message(str(i.get("role", "")), i.get("content")) for i in items]
    texts = [_text(m.content) for m in messages]
    prompt = next((t for m, t in _last_first(messages, texts) if m.role == "user"), "")
    answered = bool(items) and items[-1].get("type") == "function_call_output"
    return _request(
        body,
        (prompt,),
        sum(map(language.count_tokens, [*texts, body.instructions or ""])) + 4 * len(texts),
        limit=body.max_output_tokens,
        tool=None if answered else _tool(body, prompt),
        schema=_schema((body.text or {}).get("format"), None),
    )


def choices(request: DemoRequest, seed: int, attempt: int) -> list[Choice]:
    """All choices: `n` for each prompt, in OpenAI's order."""
    seed, first = seed if request.seed is None else request.seed, attempt * ATTEMPT_STEP
    return [
        _choice(request, prompt, seed, first + number)
        for prompt in request.prompts
        for number in range(request.n)
    ]


def embedding(text: str, dimensions: int) -> list[float]:
    """A unit vector; texts that share words are near each other."""
    vector = [1e-6] * dimensions
    for word in text.lower().split()[:512] or [""]:
        chance = random.Random(word)
        vector = [x + chance.gauss(0, 1) for x in vector]
    length = sum(x * x for x in vector) ** 0.5
    return [x / length for x in vector]


def embedding_inputs(body: EmbeddingsBody) -> list[tuple[str, int]]:
    """Text and number of tokens of every input. Raises InvalidRequest if there is none."""
    given = _texts(body.input, "input")
    if not given:
        raise InvalidRequest("input: expected at least one", param="input")
    return given


def fill(schema: Json, chance: random.Random, topic: str, depth: int = 0) -> Any:
    """A value that fits a JSON schema; the common keywords, enough for tools and formats."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return chance.choice(schema["enum"])
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return fill(schema[union][0], chance, topic, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if depth > 8 or kind == "null":
        return None
    if kind == "object":
        parts = schema.get("properties", {}).items()
        return {name: fill(part, chance, topic, depth + 1) for name, part in parts}
    if kind == "array":
        return [fill(schema.get("items", {}), chance, topic, depth + 1) for _ in range(2)]
    if kind == "boolean":
        return chance.random() < 0.5
    if kind in ("integer", "number"):
        low = schema.get("minimum", 1)
        return chance.randint(int(low), int(max(low, schema.get("maximum", low + 9))))
    return language.phrase(chance, topic)


def _request(
    body: Any,
    prompts: tuple[str, ...],
    prompt_tokens: int,
    *,
    limit: int | None,
    tool: Json | None = None,
    schema: Json | None = None,
) -> DemoRequest:
    if prompt_tokens > CONTEXT_TOKENS:
        raise InvalidRequest(
            f"This model's maximum context length is {CONTEXT_TOKENS} tokens, "
            f"but your messages are {prompt_tokens} tokens.",
            param="messages",
            code="context_length_exceeded",
        )
    stop = getattr(body, "stop", None) or ()
    options = getattr(body, "stream_options", None)
    if options is not None and not body.stream:
        raise InvalidRequest(
            "stream_options is only allowed when stream is true.", param="stream_options"
        )
    return DemoRequest(
        model=body.model,
        prompts=prompts,
        prompt_tokens=max(1, prompt_tokens),
        n=getattr(body, "n", None) or 1,
        limit=min(limit or language.MAX_TOKENS, language.MAX_TOKENS),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stream=bool(body.stream),
        include_usage=options is not None and options.include_usage,
        seed=body.seed,
        repeats=body.seed is not None or body.temperature == 0,
        tool=tool,
        schema=schema,
    )


def _choice(request: DemoRequest, prompt: str, seed: int, attempt: int) -> Choice:
    if request.tool is not None or request.schema is not None:
        chance = random.Random(f"{seed} {attempt} {prompt}")
        schema = (
            request.tool.get("parameters") or {} if request.tool is not None else request.schema
        )
        value = fill({"type": "object", **(schema or {})}, chance, language.topic_of(prompt))
        tokens = language.tokenise(msgspec.json.encode(value).decode())
    else:
        tokens = language.answer(prompt, seed=seed, attempt=attempt, limit=request.limit)
    cut = len(tokens) > request.limit
    finish = "length" if cut else "tool_calls" if request.tool is not None else "stop"
    tokens, stopped = _until(tokens[: request.limit], request.stop)
    return Choice(
        tokens,
        "stop" if stopped else finish,
        str(request.tool.get("name", "function")) if request.tool is not None else None,
    )


def _until(tokens: list[str], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """The tokens before the first stop sequence; True if there was one."""
    text = "".join(tokens)
    found = [at for at in (text.find(s) for s in stop if s) if at >= 0]
    if not found:
        return tokens, False
    left, before = min(found), []
    for token in tokens:
        if left <= 0:
            break
        before.append(token[:left])
        left -= len(token)
    return before, True


def _tool(body: Common, prompt: str) -> Json | None:
    """The function to call if a tool is forced or the prompt names one; else None."""
    functions = [t.get("function", t) for t in body.tools or []]  # chat nests, responses do not
    choice = body.tool_choice
    if not functions or choice == "none":
        return None
    if isinstance(choice, dict):
        name = choice.get("function", choice).get("name")
        named = next((f for f in functions if f.get("name") == name), None)
        if named is None:
            raise InvalidRequest(f"tool_choice names no tool: {name!r}", param="tool_choice")
        return dict(named)
    if choice == "required":
        return dict(functions[0])
    words = set(prompt.lower().split())
    spoken = (f for f in functions if _name_words(f) & words)
    found = next(spoken, None)
    return dict(found) if found is not None else None


def _name_words(function: Json) -> set[str]:
    parts = str(function.get("name", "")).lower().replace("-", "_").split("_")
    return {p for p in parts if len(p) >= 4}


def _schema(response_format: Any, nested: str | None) -> Json | None:
    """The schema of a JSON answer, a made-up one for `json_object`; None for text."""
    if not isinstance(response_format, dict):
        return None
    if response_format.get("type") == "json_schema":
        holder = response_format.get(nested, {}) if nested else response_format
        return dict(holder.get("schema") or {})
    if response_format.get("type") == "json_object":
        text, number = {"type": "string"}, {"type": "integer"}
        items = {"type": "array", "items": text}
        return {"properties": {"answer": text, "points": items, "score": number}}
    return None


def _last_first(messages: list[Message], texts: list[str]) -> list[tuple[Message, str]]:
    return list(zip(messages, texts, strict=True))[::-1]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(p.get("text", "")) for p in parts if isinstance(p, dict))


def _texts(given: str | list[Any], param: str) -> list[tuple[str, int]]:
    """Texts and their numbers of tokens, from one text, many, one list of token ids, or many."""
    items: list[Any] = [given] if isinstance(given, str) else list(given)
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    out = []
    for item in items:
        if isinstance(item, str):
            out.append((item, language.count_tokens(item)))
        elif isinstance(item, list) and all(isinstance(i, int) for i in item):
            out.append((" ".join(map(str, item)), len(item)))
        else:
            raise InvalidRequest(f"{param}: expected text or token ids", param=param)
    return out
