"""Edits of a request's body: the members that the gateway owns, as an account wants them."""

from __future__ import annotations

import re

import msgspec
from msgspec import Raw, Struct

from gateway.upstream.providers import Target

FORM_SCAN_BYTES = 64 * 1024  # bytes of a form that are searched for its model
FORM_MODEL = re.compile(rb'name="model"[^\r\n]{0,200}\r\n\r\n([^\r\n]{1,200})\r\n')

_members = msgspec.json.Decoder(dict[str, Raw])
_json = msgspec.json.Encoder()


class BodyEdit(Struct, frozen=True):
    """Values of the body's keys that the gateway owns, as this account wants them."""

    model: str | None = None  # the provider's name; None where it is the client's
    include_usage: bool = False
    max_tokens_field: str = "as_sent"


def edit_for(to: Target, model: str, *, inject_usage: bool) -> BodyEdit | None:
    """Changes of the body for this account; None where there are none."""
    account, name = to.account, to.models.get(model, model)
    include_usage, limit = inject_usage and account.stream_usage, account.max_tokens_field
    if name == model and not include_usage and limit == "as_sent":
        return None
    return BodyEdit(None if name == model else name, include_usage, limit)


def edited(body: bytes, edit: BodyEdit) -> bytes:
    """`body` with the edit applied; all other members keep their bytes and places.

    A body without a model gets none. In a multipart form only the model's part is edited, for
    forms have none of the other keys. Any other body is returned as it is.
    """
    try:
        members = _members.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _edited_form(body, edit)
    if edit.model is not None and "model" in members:
        members["model"] = Raw(_json.encode(edit.model))
    if edit.include_usage:
        options: dict[str, Raw] = {}
        given = members.get("stream_options")
        if given is not None and bytes(given) != b"null":
            options = _members.decode(given)
        options["include_usage"] = Raw(b"true")
        members["stream_options"] = Raw(_json.encode(options))
    if edit.max_tokens_field != "as_sent":
        members = _with_limit_in(edit.max_tokens_field, members)
    return _json.encode(members)


def _with_limit_in(field: str, members: dict[str, Raw]) -> dict[str, Raw]:
    """`members` with the token limit under the name `field`. A null is no limit."""
    other = "max_completion_tokens" if field == "max_tokens" else "max_tokens"
    if other not in members or bytes(members.get(field, b"null")) != b"null":
        return members
    return {
        (field if key == other else key): value for key, value in members.items() if key != field
    }


def _edited_form(body: bytes, edit: BodyEdit) -> bytes:
    model = None if edit.model is None else FORM_MODEL.search(body, 0, FORM_SCAN_BYTES)
    if model is None or edit.model is None:
        return body
    return body[: model.start(1)] + edit.model.encode() + body[model.end(1) :]
