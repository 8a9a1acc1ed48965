"""CONTRIBUTING.md's property 8: a settings patch is applied whole or changes nothing; and patches
compose, so that the one kept over the file does what all of them did in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.errors import SettingsError
from gateway.settings.live import LiveSettings, ReloadResult
from gateway.settings.load import build, merge, merge_patches
from gateway.settings.schema import Account, Settings
from gateway.upstream.providers import head_for, target
from tests.unit.settings.trees import tree

QUICK = hypothesis_settings(max_examples=150, deadline=None, database=None)

KEYS = st.sampled_from(["a", "b", "c"])
LEAVES = st.none() | st.integers(0, 3) | st.lists(st.none() | st.integers(0, 1), max_size=2)
PATCHES = st.dictionaries(
    KEYS,
    st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8),
    max_size=3,
)
# TOML has no null, so a file's tree holds none outside of arrays.
TREES = PATCHES.map(lambda patch: merge({}, patch))


@QUICK
@given(base=TREES, first=PATCHES, second=PATCHES, third=PATCHES)
@example(base={"a": {"b": 1}}, first={"a": None}, second={"a": {"c": 2}}, third={"a": {"c": None}})
@example(base={"a": {"b": 1}}, first={"a": 3}, second={"a": {}}, third={"a": {"b": {"c": None}}})
def test_merge_patches_does_what_its_parts_do_in_turn(
    base: dict[str, Any], first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]
) -> None:
    """A joined patch does what its parts do in turn, at any depth and grouping."""
    in_turn = merge(merge(merge(base, first), second), third)
    left = merge_patches(merge_patches(first, second), third)
    right = merge_patches(first, merge_patches(second, third))
    assert merge(base, left) == in_turn
    assert merge(base, right) == in_turn


@QUICK
@given(base=TREES, patch=PATCHES)
def test_merge_of_a_patch_twice_is_the_patch_once(base: dict[str, Any], patch: Any) -> None:
    """A patch that is repeated changes nothing further."""
    once = merge(base, patch)
    assert merge(once, patch) == once
    assert merge(base, merge_patches(patch, patch)) == once


SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "retry": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "attempts": st.none() | st.integers(-1, 12),  # 1 to 10 are valid
                "budget_min": st.none() | st.integers(0, 2),
                "no_such_key": st.none() | st.just(1),
            },
        ),
        "server": st.none() | st.fixed_dictionaries({"port": st.integers(0, 70_000)}),
        "accounts": st.none() | st.just([]),
    },
)
FAULTS = (None, SettingsError("refused"), RuntimeError("a bug"))


class Changes(RuleBasedStateMachine):
    """Patches and reloads, good and bad, with parts that agree, refuse or break.

    The model is what the operator believes: the file's tree, and the patches that were
    accepted, laid over it in turn.
    """

    @initialize(parts=st.integers(0, 3))
    def start(self, parts: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "gateway.toml"
        self.read: dict[str, Any] = tree()
        self.write(0)
        self.live = LiveSettings(self.path, {})
        self.in_parts: list[Settings] = [self.live.current] * parts
        self.fault: Exception | None = None
        self.accepted: list[dict[str, Any]] = []
        self.model = self.live.current
        self.generation = 1
        for part in range(parts):
            self.live.on_change(self.part(part))

    def part(self, number: int) -> Callable[[Settings], Callable[[], None] | None]:
        def prepare(settings: Settings) -> Callable[[], None] | None:
            if self.fault is not None and number == len(self.in_parts) - 1:
                raise self.fault  # the last one: all the others had agreed
            if settings == self.in_parts[number]:
                return None

            def apply() -> None:
                self.in_parts[number] = settings

            return apply

        return prepare

    def write(self, attempts: int) -> None:
        """Write a new file; 0 leaves the key out, a value out of range makes the file bad."""
        self.file = tree(retry={"attempts": attempts}) if attempts else tree()
        text = "".join(
            f"[[{name}]]\n" + "".join(f"{k} = {_toml(v)}\n" for k, v in entry.items())
            for name in ("accounts", "tenants")
            for entry in self.file[name]
        )
        self.path.write_text(text + (f"[retry]\nattempts = {attempts}\n" if attempts else ""))

    @rule(attempts=st.integers(0, 12))
    def edit_file(self, attempts: int) -> None:
        self.write(attempts)

    @rule(fault=st.sampled_from(FAULTS))
    def set_fault(self, fault: Exception | None) -> None:
        self.fault = fault

    @rule()
    def reload(self) -> None:
        self.change(self.accepted, self.live.reload)

    @rule(patch=SECTIONS)
    def patch(self, patch: dict[str, Any]) -> None:
        self.change([*self.accepted, patch], lambda: self.live.patch(patch))

    def change(self, patches: list[dict[str, Any]], make: Callable[[], ReloadResult]) -> None:
        wanted = self.file
        for patch in patches:
            wanted = merge(wanted, patch)
        try:
            expected = build(wanted, "model")
        except SettingsError:
            expected = None
        if self.in_parts and self.fault is not None:
            expected = None
        try:
            assert make().changed == (expected != self.model)
            succeeded = True
        except (SettingsError, RuntimeError):
            succeeded = False
        assert succeeded == (expected is not None)
        assert self.live.state.ok == succeeded
        assert bool(self.live.state.error) == (not succeeded)
        if expected is not None:
            self.generation += expected != self.model
            self.model, self.accepted = expected, patches

    @invariant()
    def all_or_nothing(self) -> None:
        assert self.live.current == self.model
        assert all(settings is self.live.current for settings in self.in_parts)
        assert self.live.state.generation == self.generation

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


TestChanges = Changes.TestCase
TestChanges.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=20, deadline=None, database=None
)


@QUICK
@given(
    url=st.from_regex(
        r"https?://[\x20-\x7f]{0,12}(:[0-9]{0,6})?(/[\x20-\x7f]{0,8})?", fullmatch=True
    )
    | st.from_regex(r"http://\[?[0-9a-f:.]{1,12}\]?(:[0-9]{1,5})?(/v1)?", fullmatch=True)
    | st.text(max_size=20).map("https://".__add__)
)
def test_base_url_that_is_accepted_can_be_called(url: str) -> None:
    """A URL that the schema accepts is taken by the client library, or a reload would fail after
    it was applied."""
    fields = {"name": "a", "base_url": url, "api_key": "env:K", "models": ["m"]}
    try:
        account = msgspec.convert(fields, Account)
    except msgspec.ValidationError:
        return
    called = target(account, "k")
    assert called.origin.host
    assert "@" not in called.origin.host
    first = head_for(called, "GET", "/models", b"a=1", [], 0).partition(b"\r\n")[0]
    assert first.endswith(b"/models?a=1 HTTP/1.1")
