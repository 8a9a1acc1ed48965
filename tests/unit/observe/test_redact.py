"""Keys are masked wherever they stand; what is no key stays readable."""

from __future__ import annotations

import json

import msgspec
import pytest

from gateway.observe.redact import Redactor

CANARY = "Zx9canaryQ7"

SHAPES = [
    f"sk-{CANARY}",
    f"sk-proj-{CANARY}_abc-def",
    f"Incorrect API key provided: sk-{CANARY}. You can find",
    f"Authorization: Bearer {CANARY}",
    f"authorization: bearer {CANARY}==",
    f"Basic {CANARY}==",
    f"api-key: {CANARY}",
    f"x-api-key={CANARY}",
    f"https://host/v1?api_key={CANARY}&alt=sse",
    f"x-goog-api-key: {CANARY}",
    f'{{"api_key": "{CANARY}"}}',
    f"[(b'api-key', b'{CANARY}')]",
    f"{{'access_token': '{CANARY}'}}",
    f"password={CANARY}",
    f"AIzaSy{CANARY}",
]


@pytest.mark.parametrize("text", SHAPES)
def test_redactor_masks_text_shaped_like_a_key(text: str) -> None:
    """The value is masked, in plain text and inside a JSON line, which stays JSON."""
    redactor = Redactor()
    assert CANARY not in redactor.mask(text)
    line = redactor.mask(
        msgspec.json.encode({"msg": text, "deep": json.dumps({"x": text})}).decode()
    )
    assert CANARY not in line
    assert set(json.loads(line)) == {"msg", "deep"}


@pytest.mark.parametrize("text", SHAPES)
def test_redactor_shapes_hold_the_canary(text: str) -> None:
    """The twin: unmasked, each of those texts shows it."""
    assert CANARY in text


@pytest.mark.parametrize(
    "secret", ["plainsecret", 'with"quote\\and back', "ümläut-key", "a b/c?d=e", "demo"]
)
def test_redactor_masks_its_secrets(secret: str) -> None:
    """A secret that the gateway holds is masked in each form: raw, JSON, URL."""
    redactor = Redactor([secret, "another"])
    raw = f"before {secret} after"
    for line in (raw, msgspec.json.encode({"m": raw}).decode(), json.dumps({"m": raw})):
        masked = redactor.mask(line)
        assert secret not in masked
        assert json.dumps(secret)[1:-1] not in masked
        assert "before *** after" in masked
    from_url = redactor.mask("https://h/?k=a%20b%2Fc%3Fd%3De")
    assert ("%2F" in from_url) is (secret != "a b/c?d=e")


def test_redactor_masks_the_longer_of_two_secrets() -> None:
    """Nothing of the longer secret remains where another is its beginning."""
    assert Redactor(["secret-1", "secret-1-long"]).mask("x secret-1-long y") == "x *** y"


def test_redactor_keeps_json_valid_when_a_secret_is_a_number() -> None:
    """A secret of digits, which may stand for a number, becomes 0."""
    line = Redactor(["123456"]).mask('{"a":123456,"b":"123456","c":0.5123456}')
    assert "123456" not in line
    assert json.loads(line)["a"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "task-based scheduling", "max_tokens=100", '{"prompt_tokens":12,"output_tokens":9}',
        "the api is ready", "basic authentication", "api_key missing", "bearer of news",
        "risk-averse", '{"level":"info","ok":true}',
    ],
)  # fmt: skip
def test_redactor_leaves_plain_text_alone(text: str) -> None:
    """Text that is no key is not masked."""
    assert Redactor(["tiny", "true"]).mask(text) == text


def test_redactor_does_not_show_its_secrets() -> None:
    """The redactor's repr holds no secret."""
    assert CANARY not in repr(Redactor([CANARY]))
