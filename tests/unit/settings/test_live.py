"""Changing the settings in force; tests/property/test_settings.py has every order of changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.settings.live import RESTART_ONLY, LiveSettings, ReloadResult
from gateway.settings.schema import Settings
from tests.unit.settings.trees import SMALLEST_TOML


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(SMALLEST_TOML)
    return path


class Part:
    """A part of the gateway that takes new settings, and may refuse them."""

    def __init__(self) -> None:
        self.attempts: list[int] = []
        self.refuses: Exception | None = None
        self.given: Settings | None = None
        self.secret_changed = False  # it has something to do, though the settings are the same

    def prepare(self, settings: Settings) -> Callable[[], None] | None:
        if self.refuses is not None:
            raise self.refuses
        if settings == self.given and not self.secret_changed:
            return None

        def apply() -> None:
            self.given = settings
            self.attempts.append(settings.retry.attempts)

        return apply


def test_live_settings_start_with_the_file(path: Path) -> None:
    """Generation 1 is the file's, with the environment over it."""
    live = LiveSettings(path, {"PORT": "8080"})
    assert live.current.server.port == 8080
    assert (live.state.generation, live.state.ok) == (1, True)


def test_live_settings_of_a_broken_file_do_not_start(path: Path) -> None:
    """A broken file raises at the start, since there is nothing to fall back to."""
    path.write_text("[server]")
    with pytest.raises(SettingsError, match="missing key `accounts`"):
        LiveSettings(path, {})


def test_reload_reads_the_file_and_changes_every_part(path: Path) -> None:
    """Each part gets the new settings once, after all have agreed."""
    live = LiveSettings(path, {})
    parts = [Part(), Part()]
    for part in parts:
        live.on_change(part.prepare)
    path.write_text(SMALLEST_TOML + "[retry]\nattempts = 5\n")
    assert live.reload() == ReloadResult(changed=True)
    assert live.current.retry.attempts == 5
    assert [part.attempts for part in parts] == [[5], [5]]
    assert (live.state.generation, live.state.ok, live.state.error) == (2, True, "")


@pytest.mark.parametrize("change", ["reload", "patch"])
def test_change_to_equal_settings_touches_no_part(path: Path, change: str) -> None:
    """The generation and the settings stay, and the reload counts as successful."""
    live = LiveSettings(path, {})
    part = Part()
    part.given = before = live.current
    live.on_change(part.prepare)
    path.write_text("not toml [")
    with pytest.raises(SettingsError):
        live.reload()
    path.write_text(SMALLEST_TOML + "# a remark\n")
    result = live.reload() if change == "reload" else live.patch({"retry": {"attempts": 3}})
    assert result == ReloadResult(changed=False)
    assert live.current is before
    assert part.attempts == []
    assert (live.state.generation, live.state.ok, live.state.error) == (1, True, "")


def test_change_of_a_secret_alone_is_a_change(path: Path) -> None:
    """Equal settings are applied where a part finds that a secret behind them has changed."""
    live = LiveSettings(path, {})
    still, rotated = Part(), Part()
    still.given = rotated.given = live.current
    rotated.secret_changed = True
    live.on_change(still.prepare)
    live.on_change(rotated.prepare)
    assert live.reload() == ReloadResult(changed=True)
    assert (still.attempts, rotated.attempts) == ([], [3])
    assert live.state.generation == 2


def test_patch_equal_to_the_file_holds_when_the_file_changes(path: Path) -> None:
    """A patch that changes nothing now still lies over the file that is read later."""
    live = LiveSettings(path, {})
    assert not live.patch({"retry": {"attempts": 3}}).changed
    path.write_text(SMALLEST_TOML + "[retry]\nattempts = 5\n")
    assert not live.reload().changed
    assert live.current.retry.attempts == 3


def test_patch_survives_a_reload_and_adds_to_earlier_ones(path: Path) -> None:
    """Patches lie over the file; null removes a key, also one of the file."""
    live = LiveSettings(path, {})
    live.patch({"retry": {"attempts": 7}})
    live.patch({"retry": {"budget_min": 1}})
    path.write_text(SMALLEST_TOML + "[retry]\nattempts = 5\nbudget_ratio = 0.5\n")
    live.reload()
    retry = live.current.retry
    assert (retry.attempts, retry.budget_min, retry.budget_ratio) == (7, 1, 0.5)
    live.patch({"retry": None})
    assert live.current.retry.attempts == 3  # removed altogether: the default's


def test_environment_wins_over_a_patch(path: Path) -> None:
    """The environment is above patches, and patches are above the file."""
    live = LiveSettings(path, {"TOP_K_NEIGHBORS": "9"})
    live.patch({"predict": {"top_k_neighbors": 3}})
    assert live.current.predict.top_k_neighbors == 9


def test_change_that_a_part_refuses_changes_nothing(path: Path) -> None:
    """A refusal undoes the whole change: parts that had agreed, and the patch itself."""
    live = LiveSettings(path, {})
    willing, refusing = Part(), Part()
    live.on_change(willing.prepare)
    live.on_change(refusing.prepare)
    before = live.current
    refusing.refuses = SettingsError("accounts (a).api_key: no")
    with pytest.raises(SettingsError):
        live.patch({"retry": {"attempts": 7}})
    assert live.current is before
    assert willing.attempts == refusing.attempts == []
    assert (live.state.generation, live.state.ok) == (1, False)
    assert live.state.error == "accounts (a).api_key: no"
    refusing.refuses = None
    live.patch({"retry": {"budget_min": 1}})
    assert live.current.retry.attempts == 3
    assert willing.attempts == [3]
    assert (live.state.generation, live.state.ok, live.state.error) == (2, True, "")


def test_change_that_a_fault_stops_changes_nothing(path: Path) -> None:
    """A bug in a part is not the operator's, but it must not leave half a change either."""
    live = LiveSettings(path, {})
    part = Part()
    live.on_change(part.prepare)
    part.refuses = ZeroDivisionError("secret detail")
    before = live.current
    with pytest.raises(ZeroDivisionError):
        live.patch({"retry": {"attempts": 7}})
    assert live.current is before
    assert (live.state.ok, live.state.error) == (False, "ZeroDivisionError")


def test_change_names_keys_that_need_a_restart(path: Path) -> None:
    """The result names the changed keys that are not in force yet, and no others."""
    live = LiveSettings(path, {})
    for patch, keys in (
        ({"server": {"port": 1234, "drain_timeout_s": 5}}, ["server.port"]),
        ({"demo": {"base_latency_s": 1.0}}, ["demo.base_latency_s"]),
        ({"retry": {"attempts": 7}, "predict": {"enabled": False}}, []),
    ):
        assert live.patch(patch).needs_restart == keys


def test_change_names_the_retired_keys_it_ignored(path: Path) -> None:
    """Retired keys change nothing, and the result says why."""
    result = LiveSettings(path, {}).patch({"schedule": {"hysteresis": 0.5}})
    assert not result.changed
    assert [sentence.split()[0] for sentence in result.ignored] == ["schedule.hysteresis"]


def test_restart_only_names_keys_that_exist(path: Path) -> None:
    """A key that is renamed must not make every reload fail."""
    settings = LiveSettings(path, {}).current
    for section, key in RESTART_ONLY:
        assert hasattr(getattr(settings, section), key)
