"""The smallest settings that are valid, to be bent by the tests."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import msgspec

from gateway.settings.load import merge
from gateway.settings.schema import Settings

_SMALLEST: dict[str, Any] = {
    "accounts": [
        {
            "name": "a",
            "base_url": "http://127.0.0.1:1/v1",
            "api_key": "env:KEY",
            "models": ["m", "m2"],
        }
    ],
    "tenants": [{"name": "t", "anonymous": True}],
}
SMALLEST_TOML = """
[[accounts]]
name = "a"
base_url = "http://127.0.0.1:1/v1"
api_key = "env:KEY"
models = ["m", "m2"]

[[tenants]]
name = "t"
anonymous = true
"""


def tree(**sections: Any) -> dict[str, Any]:
    """The smallest tree with sections laid over it."""
    return merge(deepcopy(_SMALLEST), sections)


def account(**fields: Any) -> dict[str, Any]:
    return {**deepcopy(_SMALLEST["accounts"][0]), **fields}


def valid(**sections: Any) -> Settings:
    """Settings as a file would give them. Raises msgspec.ValidationError."""
    return msgspec.convert(tree(**sections), Settings)
