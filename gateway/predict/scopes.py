"""Whose answers speak for a request: its scopes, and the keys they have in tables.

What is learned of answers is kept by scope, and the scopes of a request are nested: tenant →
family → model → template. All of them are a tenant's own: what one reports, true or not, bends
no other's forecasts.

How a key is laid out is known here alone, to those who make it and those who read its tenant
from it. Keys are kept in the store between runs: another layout is another version of that state.
"""

from __future__ import annotations

import re
from functools import lru_cache

from msgspec import Struct

from gateway.types import JobClass

_SCRIPTS = ("b\x1f", "c\x1f")


class Scopes(Struct, frozen=True, gc=False):
    """The scopes one request belongs to, the most general first: tenant, family, model."""

    models: tuple[str, ...]
    templates: tuple[str, ...] = ()

    @property
    def tenant(self) -> str:
        return self.models[0]

    @property
    def source(self) -> str:
        """The model as this tenant uses it."""
        return self.models[-1]


def scopes(model: str, tenant: str, template: str = "") -> Scopes:
    """Of a request; `template` is "" where there is none."""
    return Scopes(
        (f"t\x1f{tenant}", f"f\x1f{tenant}\x1f{family(model)}", f"m\x1f{tenant}\x1f{model}"),
        (f"p\x1f{tenant}\x1f{model}\x1f{template}",) if template else (),
    )


def script_scopes(model: str, tenant: str, script: str) -> Scopes:
    """Where tokens per byte are kept."""
    end = f"{tenant}\x1f{script}"
    return Scopes((f"b\x1f{family(model)}\x1f{end}", f"c\x1f{model}\x1f{end}"))


def level_key(stage: str, job_class: JobClass, of: Scopes) -> str:
    """Where the levels of a tenant's class are kept; in a table of their own."""
    return f"{stage}\x1f{job_class}\x1f{of.tenant}"


def tenant_of(key: str) -> str:
    """Whose a scope's key is: its second part, of a script's the third. "" of what is no key."""
    parts = key.split("\x1f", 3)
    place = 2 if of_script(key) else 1
    return parts[place] if place < len(parts) else ""


def of_script(key: str) -> bool:
    """Whether tokens per byte are kept there, and no lengths."""
    return key.startswith(_SCRIPTS)


@lru_cache(4096)
def family(model: str) -> str:
    """A model's name up to its version or size: "gpt" of "openai/gpt-5.4-mini"."""
    name = model.rsplit("/", 1)[-1].lower()
    parts = re.split(r"[-_:. ]", name)
    kept: list[str] = []
    for part in parts:
        if any(c.isdigit() for c in part):
            kept += [] if kept else [re.split(r"\d", part)[0]]
            break
        kept.append(part)
    return "-".join(part for part in kept if part) or name
