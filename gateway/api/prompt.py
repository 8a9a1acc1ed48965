"""What the predictor is told of a request: one view out of every dialect's members.

Providers that speak OpenAI's format ask for thinking in ways of their own, and thinking is
what makes an answer ten times as long, so all of them are read:

- OpenAI: `reasoning_effort`; /v1/responses: `reasoning.effort`
- Ark (Doubao), Kimi, GLM, DeepSeek: `thinking.type` enabled | disabled | auto; Anthropic's
  `thinking.budget_tokens`
- Qwen (DashScope): `enable_thinking`, `thinking_budget`; vLLM and SGLang the same inside
  `chat_template_kwargs`, where DeepSeek's template calls it `thinking`
- OpenRouter: `reasoning.enabled`, `reasoning.max_tokens`
- Gemini: `google.thinking_config` with `thinking_budget` (0 off, -1 as the model likes) and
  `thinking_level`, at the top or inside `extra_body`

None of these is the gateway's own: whether a value is right is for the provider to say, so
what does not read as expected is absence here, and goes on to the provider as it is. Where
two say different things, the plainer one (in the order above: a flag before a budget) holds.
Tools and the shape of the answer have files of their own (tools.py, shape.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Raw, Struct, structs

from gateway.api.batch import batch_of
from gateway.api.constraints import Constraint, exact_digest, outline_digest
from gateway.api.schemas import (
    MAX_TOKENS,
    NULL,
    ChatRequest,
    CompletionRequest,
    ConstraintMembers,
    Generation,
    LooseMessage,
    ResponseFormat,
    ResponsesRequest,
    given,
    read_loose,
    read_option,
    word_of,
)
from gateway.api.tools import tools_of
from gateway.predict.view import PromptView

Json = dict[str, Any]


def view_of(tenant: str, request: Generation, max_chars: int) -> PromptView:
    """What the predictor reads of a request."""
    thinking, form = Thinking(request), AnswerForm(request)
    # `functions`: as they were called once
    tools = tools_of(request.tools if given(request.tools) else request.functions)
    shared: Json = {
        "tenant": tenant,
        "model": request.model,
        "max_tokens": request.limit,
        "n": request.n or 1,
        "best_of": request.best_of or 1,
        "stop": given(request.stop),
        "temperature": request.temperature,
        "reasoning_effort": thinking.effort,
        "thinking": thinking.on,
        "thinking_budget": thinking.budget,
        "tools": tools.count,
        "tool_names": tools.names,
        "tools_bytes": tools.bytes,
        "response_format": form.format,
        "shape": exact_digest(form.constraints),
        "form": outline_digest(form.constraints),
        "verbosity": form.verbosity,
        "stream": request.stream is True,
        "max_chars": max_chars,
    }
    if isinstance(request, ChatRequest):
        return PromptView.of_chat(request.messages, **shared)
    if isinstance(request, ResponsesRequest):
        return PromptView.of_chat(_items(request), **shared)
    batch = batch_of(request.prompt if isinstance(request, CompletionRequest) else NULL)
    view = PromptView.of_prompt(batch.text, **shared)
    return structs.replace(
        view,
        prompts=batch.prompts,
        prompt_ids=batch.ids,
        batch_bytes=batch.bytes if batch.prompts > 1 or not batch.text else 0,
    )


def _items(request: ResponsesRequest) -> list[LooseMessage]:
    """The input of the responses API as messages."""
    text = read_loose(request.input, str)
    if text is not None:
        messages = [LooseMessage("user", text)]
    else:
        messages = read_loose(request.input, list[LooseMessage]) or []
    instructions = read_loose(request.instructions, str)
    return [LooseMessage("system", instructions), *messages] if instructions else messages


# --- thinking ---------------------------------------------------------------------------------


class Thinking:
    """How much thinking a request asks for; None: nothing is said, or nothing that reads.

    `on` is the switch, `budget` tokens, `effort` a level's name in lower case.
    """

    __slots__ = ("budget", "effort", "on")

    def __init__(self, request: Generation) -> None:
        template = _options(request.chat_template_kwargs)
        thinking = _options(request.thinking)
        reasoning = _options(request.reasoning)
        gemini = _gemini(request)
        budget = _first(
            _tokens(value)
            for value in (
                read_option(request.thinking_budget),
                template.get("thinking_budget"),
                thinking.get("budget_tokens"),
                reasoning.get("max_tokens"),
                gemini.get("thinking_budget"),
            )
        )
        self.effort: str | None = _first(
            word_of(value)
            for value in (
                read_option(request.reasoning_effort),
                reasoning.get("effort"),
                thinking.get("effort"),
                gemini.get("thinking_level"),
            )
        )
        self.on: bool | None = _first(
            _flag(value)
            for value in (
                read_option(request.enable_thinking),
                template.get("enable_thinking"),
                template.get("thinking"),
                thinking.get("type", read_option(request.thinking)),
                reasoning.get("enabled"),
                False if budget == 0 else None,
            )
        )
        self.budget: int | None = budget


def _gemini(request: Generation) -> Json:
    google = _options(request.google)
    if not google:
        google = _dict(_options(request.extra_body).get("google"))
    return _dict(google.get("thinking_config"))


def _options(raw: Raw) -> Json:
    return _dict(read_option(raw))


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _first(values: Iterator[Any]) -> Any:
    return next((value for value in values if value is not None), None)


_SWITCH = {"enabled": True, "disabled": False}  # "auto" and "adaptive" leave it to the model


def _flag(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return _SWITCH.get(value) if isinstance(value, str) else None


def _tokens(value: object) -> int | None:
    """Not a number, or negative (Gemini's -1: as many as the model likes): no budget."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_TOKENS else None


# --- the form of the answer ---------------------------------------------------------------------


class _Text(Struct):
    """`text` of the responses API."""

    format: Raw = NULL
    verbosity: Raw = NULL


class _StructuredOutputs(Struct):
    json: Raw = NULL
    json_object: Raw = NULL


_PLAIN = ("text", None)  # formats that constrain nothing
_EMPTY = (b"false", b'""', b"[]", b"{}")  # members that constrain nothing


class AnswerForm:
    """The form a request asks for: a format, constraints, a verbosity. None or empty where a
    member is absent or malformed."""

    __slots__ = ("constraints", "format", "verbosity")

    def __init__(self, request: Generation) -> None:
        text = read_loose(request.text, _Text) or _Text()
        stated = request.response_format if given(request.response_format) else text.format
        read = read_loose(stated, ResponseFormat)
        format = None if read is None else read.type
        self.constraints = list(_constraints(request))
        if format not in _PLAIN:
            self.constraints.insert(0, ("response_format", stated))
        self.format: str | None = format if format not in _PLAIN else _json_kind(self.constraints)
        self.verbosity = word_of(read_option(request.verbosity)) or word_of(
            read_option(text.verbosity)
        )


def _constraints(request: Generation) -> Iterator[Constraint]:
    """The members that constrain the answer; those of `extra_body` after the others."""
    for holder in (request, read_loose(request.extra_body, ConstraintMembers)):
        for name in ConstraintMembers.__struct_fields__ if holder is not None else ():
            raw: Raw = getattr(holder, name)
            if given(raw) and bytes(memoryview(raw)[:5]) not in _EMPTY:
                yield name, raw


def _json_kind(constraints: list[Constraint]) -> str | None:
    """The format of a constraint that makes the answer JSON; None without such a one."""
    for name, raw in constraints:
        if name in ("guided_json", "json_schema"):
            return "json_schema"
        if name == "structured_outputs":
            options = read_loose(raw, _StructuredOutputs) or _StructuredOutputs()
            if given(options.json):
                return "json_schema"
            if bytes(options.json_object) == b"true":
                return "json_object"
    return None
