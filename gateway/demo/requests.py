"""The demo provider's requests: three OpenAI forms read into one `Ask`, one `Ask` into choices.

Errors are OpenAI's: 400 with the field in `param`. Fields that mean nothing to a demo
(temperature aside) are accepted and ignored, as real providers accept what they know.
"""

from __future__ import annotations

import random
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from gateway.demo import language
from gateway.errors import InvalidRequest

CONTEXT_TOKENS = 128_000
ATTEMPT_STEP = 128  # most choices of one request: attempts never share a number
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


class Ask(Struct, frozen=True):
    """What is wanted, whatever form it came in."""

    model: str
    prompts: tuple[str, ...]  # one, but for /v1/completions
    prompt_tokens: int
    n: int
    limit: int  # output tokens per choice
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    seed: int | None
    repeats: bool  # a seed or temperature 0: the same answer every time
    tool: Json | None  # the function to be called instead of an answer
    schema: Json | None  # answer in JSON of this schema


class Choice(Struct, frozen=True):
    """One answer, made in full; the server paces it out."""

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


def from_chat(body: ChatBody) -> Ask:
    texts = [_text(m.content) for m in body.messages]
    asked = next((t for m, t in _last_first(body.messages, texts) if m.role == "user"), texts[-1])
    answered = body.messages[-1].role == "tool"
    return _ask(
        body,
        (asked,),
        sum(map(language.count_tokens, texts)) + 4 * len(texts),
        limit=body.max_completion_tokens or body.max_tokens,
        tool=None if answered else _tool(body, asked),
        schema=_schema(body.response_format, "json_schema"),
    )


def from_completion(body: CompletionBody) -> Ask:
    given = _texts(body.prompt, "prompt") or [("", 0)]
    prompts = tuple(text for text, _ in given)
    tokens = sum(count for _, count in given)
    return _ask(body, prompts, tokens, limit=body.max_tokens or 16)


def from_responses(body: ResponsesBody) -> Ask:
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    messages = [Message(str(i.get("role", "")), i.get("content")) for i in items]
    texts = [_text(m.content) for m in messages]
    asked = next((t for m, t in _last_first(messages, texts) if m.role == "user"), "")
    answered = bool(items) and items[-1].get("type") == "function_call_output"
    return _ask(
        body,
        (asked,),
        sum(map(language.count_tokens, [*texts, body.instructions or ""])) + 4 * len(texts),
        limit=body.max_output_tokens,
        tool=None if answered else _tool(body, asked),
        schema=_schema((body.text or {}).get("format"), None),
    )


def choices(ask: Ask, seed: int, attempt: int) -> list[Choice]:
    """All answers: `n` for each prompt, in OpenAI's order."""
    seed, first = seed if ask.seed is None else ask.seed, attempt * ATTEMPT_STEP
    return [
        _choice(ask, prompt, seed, first + number)
        for prompt in ask.prompts
        for number in range(ask.n)
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
    """Text and tokens of every input. Raises InvalidRequest where there is none."""
    given = _texts(body.input, "input")
    if not given:
        raise InvalidRequest("input: expected at least one", param="input")
    return given


def fill(schema: Json, chance: random.Random, topic: str, depth: int = 0) -> Any:
    """A value of a JSON schema: the common keywords, enough for tools and formats."""
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


def _ask(
    body: Any,
    prompts: tuple[str, ...],
    prompt_tokens: int,
    *,
    limit: int | None,
    tool: Json | None = None,
    schema: Json | None = None,
) -> Ask:
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
    return Ask(
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


def _choice(ask: Ask, prompt: str, seed: int, attempt: int) -> Choice:
    if ask.tool is not None or ask.schema is not None:
        chance = random.Random(f"{seed} {attempt} {prompt}")
        schema = ask.tool.get("parameters") or {} if ask.tool is not None else ask.schema
        value = fill({"type": "object", **(schema or {})}, chance, language.topic_of(prompt))
        tokens = language.tokenise(msgspec.json.encode(value).decode())
    else:
        tokens = language.answer(prompt, seed=seed, attempt=attempt, limit=ask.limit)
    cut = len(tokens) > ask.limit
    finish = "length" if cut else "tool_calls" if ask.tool is not None else "stop"
    tokens, stopped = _until(tokens[: ask.limit], ask.stop)
    return Choice(
        tokens,
        "stop" if stopped else finish,
        str(ask.tool.get("name", "function")) if ask.tool is not None else None,
    )


def _until(tokens: list[str], stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """The tokens before the first stop sequence, and whether one was found."""
    text = "".join(tokens)
    found = [at for at in (text.find(s) for s in stop if s) if at >= 0]
    if not found:
        return tokens, False
    left, kept = min(found), []
    for token in tokens:
        if left <= 0:
            break
        kept.append(token[:left])
        left -= len(token)
    return kept, True


def _tool(body: Common, asked: str) -> Json | None:
    """The function to call: where it is forced, or where the prompt speaks of it."""
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
    words = set(asked.lower().split())
    spoken = (f for f in functions if _name_words(f) & words)
    found = next(spoken, None)
    return dict(found) if found is not None else None


def _name_words(function: Json) -> set[str]:
    parts = str(function.get("name", "")).lower().replace("-", "_").split("_")
    return {p for p in parts if len(p) >= 4}


def _schema(response_format: Any, nested: str | None) -> Json | None:
    """The schema of a JSON answer; {} members made up where any object will do."""
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
    """Texts with their tokens, of one text, many, one list of token ids, or many such."""
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
