"""The predictor's view of a request: its only input.

A `PromptView` is made on the event loop, immutable and bounded. The last user text is cut (head
and tail) before anything else looks at it, so a prompt of 1 MB costs as much as one of 1 KB; all
the rest is counts. Any content is accepted: garbage in a field reads as its absence, lone
surrogates and binary as odd text.

Its two hashes tell which requests are the same prompt, and which come from one application. They
are kept in history: a change of their contents would part old rows from new requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any, Required, TypedDict, Unpack

from msgspec import Struct, structs

MAX_CHARS = 2000
SYSTEM_CHARS = 500
TOOL_NAMES, TOOL_NAME = 64, 64  # most names kept, characters of each
HEAD_SHARE = 0.75  # of a long text's room; the instruction mostly leads, else closes

CJK_LEAD = bytes(range(0xE4, 0xEA))  # first UTF-8 byte of U+4000 … U+9FFF
WIDE = bytes(range(0x80, 0x100))


class Parameters(TypedDict, total=False):
    """Members of a request that its view has as they are."""

    tenant: Required[str]
    model: Required[str]
    stop: bool
    temperature: float | None
    reasoning_effort: str | None
    thinking: bool | None
    thinking_budget: int | None
    tools: int
    shape: str
    form: str
    verbosity: str | None
    stream: bool
    task_type: str | None


class PromptView(Struct, frozen=True, gc=False, kw_only=True):
    """One request as the predictor sees it.

    `chars`, `system_chars`, `prior_chars` and `last_answer_chars` are true lengths, not cut.
    """

    tenant: str
    model: str
    text: str  # the last user message, cut
    text_chars: int = 0
    system: str = ""  # cut
    system_chars: int = 0
    chars: int = 0  # of all messages
    wide_ratio: float = 0.0  # share of the text's characters that are not ASCII
    messages: int = 1
    turns: int = 1  # user messages
    answers: int = 0  # assistant messages before this one
    prior_chars: int = 0  # of all of them
    last_answer_chars: int = 0
    tool_results: int = 0
    tools: int = 0
    json_format: int = 0  # 0 text, 1 json_object, 2 json_schema
    max_tokens: int | None = None
    n: int = 1
    stop: bool = False
    temperature: float | None = None
    reasoning_effort: str | None = None
    stream: bool = False
    task_type: str | None = None
    bytes: int = 0  # of all messages in UTF-8, and of the tools; long texts by their ends
    wide_bytes: int = 0  # of them, beyond ASCII
    cjk_bytes: int = 0  # of them, Chinese, Japanese, Korean
    tool_names: tuple[str, ...] = ()  # cut
    tools_bytes: int = 0
    thinking: bool | None = None  # enable_thinking
    thinking_budget: int | None = None  # tokens
    shape: str = ""  # digest of the schema, grammar or choice that the answer is held to
    form: str = ""  # digest of its part that stays the same from request to request
    verbosity: str | None = None
    best_of: int = 1  # answers generated for each prompt, where that is more than n
    prompts: int = 1  # of a batch; all the above is of its first prompt
    batch_bytes: int = 0  # of all its texts, or of a prompt that is not read; 0: `bytes`
    prompt_ids: int = 0  # tokens of the prompt, or the batch, that were sent as such

    @classmethod
    def of_prompt(cls, prompt: object, **shared: Any) -> PromptView:
        """The view of a plain prompt; `shared` as for `of_chat`."""
        return cls.of_chat([{"role": "user", "content": prompt}], **shared)

    @classmethod
    def of_chat(
        cls,
        messages: object,
        *,
        max_chars: int = MAX_CHARS,
        max_tokens: int | None = None,
        n: int | None = None,
        best_of: int | None = None,
        tool_names: Iterable[str] = (),
        tools_bytes: int = 0,
        response_format: str | None = None,
        **given: Unpack[Parameters],
    ) -> PromptView:
        """The view of chat messages: dicts or objects with `role` and `content` (text or parts).

        Never raises on content; an item that is no message is skipped. Numbers that make no
        sense (no positive `n`, `max_tokens`, `best_of`) count as absent.

        Args:
            max_chars: most characters kept of the text.
            given: the other members of the request.
        """
        counts = _MessageCounts(bytes=tools_bytes)
        for message in messages if isinstance(messages, list | tuple) else ():
            counts.add(message, max_chars)
        counts.wide_ratio = _wide_ratio(counts.text)
        names = tuple(name[:TOOL_NAME] for name in islice(tool_names, TOOL_NAMES))
        return cls(
            **structs.asdict(counts),
            json_format=_FORMATS.get(response_format or "", 0),
            max_tokens=_positive(max_tokens),
            n=_positive(n) or 1,
            best_of=_positive(best_of) or 1,
            tool_names=names,
            tools_bytes=tools_bytes,
            **given,
        )

    @property
    def choices(self) -> int:
        """Answers that the provider generates: n or best_of, for each prompt of a batch."""
        return max(self.n, self.best_of) * self.prompts

    @property
    def prompt_tokens(self) -> int:
        """An estimate before any usage is known: 4 characters a token of ASCII text, 0.7
        tokens a wide character. `tokens_by` is the better one."""
        per_char = 0.25 + 0.45 * self.wide_ratio
        return int(self.chars * per_char) + self.overhead_tokens

    @property
    def overhead_tokens(self) -> int:
        """Tokens added by chat framing: 3, and 4 a message (o200k_base, OpenAI cookbook)."""
        return 3 + 4 * self.messages

    @property
    def script(self) -> str:
        """The script of most of the prompt's bytes: "latin", "cjk" or "other"."""
        if self.wide_bytes * 4 < self.bytes:
            return "latin"
        return "cjk" if self.cjk_bytes * 2 >= self.wide_bytes else "other"

    def tokens_by(self, per_byte: float) -> int:
        """Prompt tokens at so many tokens a byte, of all prompts of a batch."""
        size, overhead = self.batch_bytes or self.bytes, self.prompts * self.overhead_tokens
        if size == 0:
            return self.prompt_tokens * self.prompts + self.prompt_ids
        return round(size * per_byte) + self.prompt_ids + overhead


_FORMATS = {"json_object": 1, "json_schema": 2}


def _positive(value: int | None) -> int | None:
    return value if value and value > 0 else None


class _MessageCounts(Struct):
    """The members of a `PromptView` that are counted over the messages of one request."""

    text: str = ""
    text_chars: int = 0
    system: str = ""
    system_chars: int = 0
    chars: int = 0
    wide_ratio: float = 0.0
    messages: int = 0
    turns: int = 0
    answers: int = 0
    prior_chars: int = 0
    last_answer_chars: int = 0
    tool_results: int = 0
    bytes: int = 0
    wide_bytes: int = 0
    cjk_bytes: int = 0

    def add(self, message: object, max_chars: int) -> None:
        if isinstance(message, dict):
            role, content = message.get("role"), message.get("content")
        else:
            role, content = getattr(message, "role", None), getattr(message, "content", None)
        if not isinstance(role, str):
            return
        text, size = _text_of(content, max_chars)
        self.messages += 1
        self.chars += size
        if text.isascii():
            self.bytes += size
        else:
            self._add_wide(text, size)
        if role == "user":
            self.turns += 1
            self.text, self.text_chars = text, size
        elif role in ("system", "developer"):
            self.system_chars += size
            self.system = self.system or cut(text, SYSTEM_CHARS)
        elif role == "assistant":
            self.answers += 1
            self.prior_chars += size
            self.last_answer_chars = size
        elif role in ("tool", "function"):
            self.tool_results += 1

    def _add_wide(self, text: str, size: int) -> None:
        """Count the bytes of a text, from a cut one in proportion. `size`: its true length."""
        raw = text.encode("utf-8", "replace")
        wide = len(raw) - len(raw.translate(None, WIDE))
        cjk = 3 * (len(raw) - len(raw.translate(None, CJK_LEAD)))
        share = size / len(text)
        self.bytes += int(len(raw) * share)
        self.wide_bytes += int(wide * share)
        self.cjk_bytes += int(min(cjk, wide) * share)


def cut(text: str, max_chars: int) -> str:
    """Head and tail of a text: at most `max_chars` characters."""
    if len(text) <= max_chars:
        return text
    head = int(max_chars * HEAD_SHARE)
    return text[:head] + text[head - max_chars :]


def _text_of(content: object, max_chars: int) -> tuple[str, int]:
    """A message's text, cut, and its true length in characters."""
    if isinstance(content, str):
        return cut(content, max_chars), len(content)
    if isinstance(content, bytes):
        return content[:max_chars].decode("utf-8", "replace"), len(content)
    if not isinstance(content, list | tuple):
        return "", 0
    pieces, size = [], 0
    for part in content:
        if isinstance(part, str):
            text: object = part
        else:
            text = part.get("text") if isinstance(part, dict) else getattr(part, "text", None)
        if isinstance(text, str) and text:
            size += len(text)
            pieces.append(cut(text, max_chars))
    return cut("\n".join(pieces[:64]), max_chars), size


def _wide_ratio(text: str) -> float:
    if not text or text.isascii():
        return 0.0
    return 1.0 - len(text.encode("ascii", "ignore")) / len(text)


@lru_cache(1)  # a request's text is asked for by its key and by its features
def words_of(text: str) -> Sequence[str]:
    """The words of a text in lower case, split at white space."""
    return text.lower().split()


def prompt_key(view: PromptView, key: bytes) -> bytes:
    """Keyed hash of the prompt, blind to case and white space; the text cannot be recovered.

    Covers text, system prompt, place in the conversation, tools, format and thinking; not the
    model, nor the limit. 16 bytes, BLAKE2b (RFC 7693) keyed with `key` (≤ 64 bytes).
    """
    shape = (
        f"{view.text_chars},{view.system_chars},{view.chars},{view.messages},"
        f"{view.tools},{view.json_format},{view.reasoning_effort}"
        if view.text_chars > MAX_CHARS or view.messages > 1
        else f"{view.tools},{view.json_format},{view.reasoning_effort}"
    )
    shape += _constraints(view.shape, view.verbosity)
    if view.thinking is not None or view.thinking_budget is not None:
        shape += f",{view.thinking},{view.thinking_budget}"
    # Requests of one key are repeats: they must cost the same.
    if view.prompts > 1 or view.batch_bytes or view.prompt_ids or view.best_of > 1:
        shape += f",{view.prompts},{view.batch_bytes},{view.prompt_ids},{view.best_of}"
    text = " ".join(words_of(view.text))
    system = " ".join(view.system.lower().split()) if view.system else ""
    data = f"{text}\x00{system}\x00{shape}".encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=16, key=key).digest()


def template_key(view: PromptView, key: bytes) -> str:
    """Keyed hash of the system prompt, the tools and the answer's constraints; "" without any.

    Requests of one application share it, whatever their last message. Digits in the system
    prompt are blanked, so dates and ids filled into it make no difference; nor do values filled
    into a schema (`form`).
    """
    constraints = _constraints(view.form, view.verbosity)
    if not view.system_chars and not view.tool_names and not view.tools and not constraints:
        return ""
    names = ",".join(view.tool_names) or str(view.tools)
    size = view.system_chars if view.system_chars > SYSTEM_CHARS else 0
    text = f"{view.system}\x00{size and size // 64}\x00{names}\x00{view.json_format}"
    data = text.encode("utf-8", "surrogatepass").translate(_BLANKED)
    data += constraints.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=8, key=key).hexdigest()


def _constraints(shape: str, verbosity: str | None) -> str:
    """The answer's constraints; "" where there are none, so that such requests keep the keys
    they had before constraints were read."""
    return f"\x00{shape}\x00{verbosity}" if shape or verbosity else ""


_BLANKED = bytes.maketrans(b"123456789", b"0" * 9)
