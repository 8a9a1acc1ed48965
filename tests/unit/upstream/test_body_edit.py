"""Bodies as a provider wants them: what an account's edit changes, and what it leaves."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from msgspec import Raw

from gateway.settings.schema import Account
from gateway.upstream.body_edit import BodyEdit, edit_for, edited
from gateway.upstream.providers import Target, target

QUICK = hypothesis_settings(max_examples=100, deadline=None, database=None)


def to(**fields: Any) -> Target:
    given = {"name": "a", "base_url": "https://h.example/v1", "api_key": "env:K", "models": ["m"]}
    return target(msgspec.convert({**given, **fields}, Account), "prov-7c1e5f0a9b")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(["model", "max_tokens", "max_completion_tokens", "é"]) | st.text(max_size=6)
EDITS = st.builds(
    BodyEdit,
    model=st.none() | st.just("upstream/model"),
    include_usage=st.booleans(),
    max_tokens_field=st.sampled_from(["as_sent", "max_tokens", "max_completion_tokens"]),
)
MEMBERS = msgspec.json.Decoder(dict[str, Raw])
OWNED = {"model", "max_tokens", "max_completion_tokens", "stream_options"}


def _raw(body: bytes) -> dict[str, bytes]:
    return {key: bytes(value) for key, value in MEMBERS.decode(body).items()}


@QUICK
@given(members=st.dictionaries(NAMES, VALUES), edit=EDITS, spaced=st.booleans())
def test_edited_keeps_every_other_member(
    members: dict[str, Any], edit: BodyEdit, spaced: bool
) -> None:
    """Members the gateway does not own keep their bytes and their order."""
    body = json.dumps(members, indent=1 if spaced else None, ensure_ascii=spaced).encode()
    after = _raw(edited(body, edit))
    before = _raw(body)
    others = [(k, v) for k, v in before.items() if k not in OWNED]
    assert [(k, v) for k, v in after.items() if k not in OWNED] == others
    if "model" in members:
        assert after["model"] == (b'"upstream/model"' if edit.model else before["model"])
    assert ("model" in after) == ("model" in members)


def test_edited_keeps_the_place_of_what_it_changes() -> None:
    """A changed member stays where the client put it, as providers cache by prefix."""
    body = b'{"a":1.0,"model":"m","max_tokens":5,"z":"\\u00e9"}'
    edit = BodyEdit(model="u", include_usage=True, max_tokens_field="max_completion_tokens")
    assert edited(body, edit) == (
        b'{"a":1.0,"model":"u","max_completion_tokens":5,"z":"\\u00e9",'
        b'"stream_options":{"include_usage":true}}'
    )


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("null", '{"include_usage":true}'),
        ("{}", '{"include_usage":true}'),
        ('{"include_usage":false}', '{"include_usage":true}'),
        ('{"x": [1, 2],"include_usage":null}', '{"x":[1, 2],"include_usage":true}'),
    ],
)
def test_edited_asks_for_usage_beside_other_options(given: str, sent: str) -> None:
    """The client's other stream options stay."""
    body = f'{{"stream_options":{given}}}'.encode()
    assert edited(body, BodyEdit(include_usage=True)) == f'{{"stream_options":{sent}}}'.encode()


@pytest.mark.parametrize(
    ("field", "body", "sent"),
    [
        ("as_sent", '{"max_tokens":5}', '{"max_tokens":5}'),
        ("max_tokens", '{"max_tokens":5}', '{"max_tokens":5}'),
        ("max_tokens", '{"max_completion_tokens":5}', '{"max_tokens":5}'),
        ("max_completion_tokens", '{"max_tokens":5}', '{"max_completion_tokens":5}'),
        (
            "max_completion_tokens",
            '{"max_completion_tokens":null,"max_tokens":5}',
            '{"max_completion_tokens":5}',
        ),
        (
            "max_completion_tokens",
            '{"max_tokens":5,"max_completion_tokens":null}',
            '{"max_completion_tokens":5}',
        ),
        (
            "max_completion_tokens",
            '{"max_completion_tokens":7,"max_tokens":5}',
            '{"max_completion_tokens":7,"max_tokens":5}',
        ),
        ("max_tokens", "{}", "{}"),
    ],
)
def test_edited_names_the_limit_as_the_account_does(field: str, body: str, sent: str) -> None:
    """One token limit is renamed; if both names are given, both stay."""
    assert edited(body.encode(), BodyEdit(max_tokens_field=field)) == sent.encode()


def test_edited_changes_the_model_of_a_form() -> None:
    """A form's model is mapped too, and its file keeps its bytes."""
    form = (
        b'--B\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\xff\x00\r\n'
        b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n%s\r\n--B--\r\n'
    )
    assert edited(form % b"m", BodyEdit(model="upstream/m")) == form % b"upstream/m"
    assert edited(form % b"m", BodyEdit(include_usage=True)) == form % b"m"


@pytest.mark.parametrize("body", [b"\x00\xff", b"[1]", b"7", b'{"\xff": 1}', b"[" * 100_000])
def test_edited_leaves_what_is_no_object(body: bytes) -> None:
    """A body that is neither an object nor a form is returned unchanged."""
    assert edited(body, BodyEdit(model="u", include_usage=True)) == body


def test_edit_for_is_none_where_nothing_changes() -> None:
    """An account that takes the body as it is needs no edit."""
    assert edit_for(to(), "m", inject_usage=False) is None
    assert edit_for(to(stream_usage=False), "m", inject_usage=True) is None
    assert edit_for(to(models={"m": "m"}), "m", inject_usage=False) is None


def test_edit_for_has_the_accounts_names_and_options() -> None:
    """The edit has the account's name for the model, usage if it understands the option, and its
    name for the limit."""
    wants = to(models={"m": "deployment-7"}, max_tokens_field="max_tokens")
    assert edit_for(wants, "m", inject_usage=True) == BodyEdit(
        model="deployment-7", include_usage=True, max_tokens_field="max_tokens"
    )
    assert edit_for(to(max_tokens_field="max_tokens"), "m", inject_usage=False) == BodyEdit(
        max_tokens_field="max_tokens"
    )
