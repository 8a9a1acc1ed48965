"""The corrections in force, as read beside the learner and away from it."""

from __future__ import annotations

from math import isnan, log1p

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.predict.calibrate import (
    Mirror,
    group_keys,
    is_script_key,
    model_family,
    script_keys,
    tenant_of,
)
from gateway.predict.residuals import MODELS, Residuals
from gateway.types import JobClass

M = group_keys("gpt-5.4-mini", "a")


def taught(count: int, residual: float, *, censored: bool = False) -> Residuals:
    residuals = Residuals()
    for _ in range(count):
        residuals.learn(M, 5.0 + residual, stage0=5.0, full=5.0, censored=censored)
    return residuals


def test_residuals_of_nothing_are_zero() -> None:
    """Without answers there is no correction."""
    table = taught(0, 1.0).table
    assert (table.stage0_bias(M), table.full_bias(M)) == (0.0, 0.0)


def test_unseen_model_starts_from_its_family() -> None:
    """A new version of a model with long answers is forecast long from the first request on."""
    table = taught(200, 1.0).table
    assert 0.8 < table.stage0_bias(group_keys("gpt-6", "a")) <= table.stage0_bias(M)
    assert table.stage0_bias(group_keys("gpt-6", "a")) > table.stage0_bias(
        group_keys("mistral-7b", "a")
    )


def test_groups_get_a_bias_of_their_own() -> None:
    """Two templates of one tenant and model get biases of their own; a third starts between
    them."""
    residuals = Residuals()
    long, short, third = (group_keys("m-1", "a", name) for name in ("long", "short", "third"))
    for _ in range(100):
        residuals.learn(long, 6.0, stage0=5.0, full=None, censored=False)
        residuals.learn(short, 4.0, stage0=5.0, full=None, censored=False)
    table = residuals.table
    assert table.stage0_bias(long) > 0.6
    assert table.stage0_bias(short) < -0.6
    assert abs(table.stage0_bias(third)) < 0.2


def test_running_lengths_are_kept_by_group() -> None:
    """Tenant, model and template have mean and count of their lengths; NaN and 0 without any."""
    residuals = Residuals()
    of = group_keys("m-1", "a", "x")
    for tokens in (100, 100):
        residuals.learn(of, log1p(tokens), stage0=5.0, full=None, censored=False)
    tenant, tenants, model, models, template, templates = residuals.table.running(of)
    assert tenant == model == template == pytest.approx(log1p(100))
    assert 1.9 < tenants == models == templates <= 2.0
    unknown = residuals.table.running(group_keys("m-2", "a"))
    assert unknown[:2] == (tenant, tenants)
    assert unknown[3] == unknown[5] == 0.0
    assert isnan(unknown[2])


def test_levels_are_kept_by_class_and_stage() -> None:
    """Misses of heavy jobs do not widen interactive ones, nor those of stage 0 the full one."""
    residuals = Residuals()
    for _ in range(50):
        residuals.move_levels("full", JobClass.HEAVY, (True, True), censored=False, keys=M)
    table = residuals.table
    assert table.levels_of("full", JobClass.HEAVY, M).high < 0.1
    assert table.levels_of("full", JobClass.INTERACTIVE, M).high == 0.1
    assert table.levels_of("stage0", JobClass.HEAVY, M).high == 0.1


def test_table_never_changes_once_it_is_given_out() -> None:
    """A calibration stays as it was; learning makes another one."""
    residuals = taught(3, 1.0)
    before = residuals.table
    was = before.stage0_bias(M)
    residuals.learn(M, 9.0, stage0=5.0, full=5.0, censored=False)
    assert before.stage0_bias(M) == was
    assert residuals.table.stage0_bias(M) > was


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["learn", "cover", "watch", "tokens", "forget", "restore", "tell"]),
            st.integers(0, 40),
        ),
        max_size=60,
    )
)
def test_mirror_equals_the_table(steps: list[tuple[str, int]]) -> None:
    """After learning, dropping, forgetting and restoring the changes bring the mirror up to
    date."""
    residuals, mirror, dumped = Residuals(), Mirror(), Residuals().table.dump()
    for step, number in steps:
        of = group_keys(f"m-{number}", f"t{number % 3}", "p" * (number % 2))
        if step == "learn":
            residuals.learn(of, 5.0 + number, stage0=5.0, full=5.5, censored=number % 5 == 0)
        elif step == "cover":
            residuals.move_levels("full", JobClass.HEAVY, (True, False), censored=False, keys=of)
        elif step == "watch":
            for _ in range(20):
                residuals.detect_change(of, 1.0, censored=False)
        elif step == "tokens":
            residuals.learn_tokens(f"m-{number}", "t", "latin", 400, 90.0 + number)
        elif step == "forget":
            residuals.forget_models()
        elif step == "restore":
            dumped = residuals.table.dump() if number % 2 else dumped
            residuals.restore(dumped)
        else:
            mirror.apply(residuals.changes())
            assert mirror.table == residuals.table
    mirror.apply(residuals.changes())
    assert mirror.table == residuals.table


def test_mirror_follows_tables_that_drop_their_oldest() -> None:
    """The mirror is right with more groups than are stored and more changes than are listed."""
    residuals, mirror = Residuals(), Mirror()
    mirror.apply(residuals.changes())
    for i in range(2 * MODELS):
        residuals.learn(group_keys(f"m-{i}", f"t{i}"), 5.0, stage0=5.0, full=None, censored=False)
        if i % 100 == 0:
            mirror.apply(residuals.changes())
    assert mirror.table != residuals.table
    mirror.apply(residuals.changes())
    assert mirror.table == residuals.table
    assert len(mirror.table.models) == MODELS


NAMES = st.text(st.characters(exclude_characters="\x1f"))
"""No name of a tenant, and none of a model that settings know, has a control character."""


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("gpt-5.4-mini-2026-03-01", "gpt"),
        ("openai/gpt-4o", "gpt"),
        ("claude-opus-4-1", "claude-opus"),
        ("llama3.1-70b", "llama"),
        ("o3-mini", "o"),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen"),
        ("plain", "plain"),
        ("7b", "7b"),
    ],
)
def test_family_is_the_name_up_to_version_or_size(model: str, name: str) -> None:
    """Models that differ in vendor, version, size or date are of one family."""
    assert model_family(model) == name


@given(model=NAMES, tenant=NAMES, template=NAMES, script=NAMES)
def test_tenant_is_read_from_every_key_that_is_made(
    model: str, tenant: str, template: str, script: str
) -> None:
    """The tenant is read from keys of lengths and of scripts, and the two kinds are
    distinguished."""
    lengths, scripts = group_keys(model, tenant, template), script_keys(model, tenant, script)
    for keys, kind in ((lengths.models + lengths.templates, False), (scripts.models, True)):
        assert {tenant_of(key) for key in keys} == {tenant}
        assert {is_script_key(key) for key in keys} == {kind}


def test_tenant_is_read_from_every_kind_of_key() -> None:
    """Keys of tenant, family, model and template have the tenant second, those of scripts third."""
    for one in ("t\x1fa", "f\x1fa\x1fgpt", "m\x1fa\x1fgpt-5", "p\x1fa\x1fgpt-5\x1fhash"):
        assert tenant_of(one) == "a"
    for one in ("b\x1fgpt\x1fa\x1flatin", "c\x1fgpt-5\x1fa\x1flatin"):
        assert tenant_of(one) == "a"
    assert tenant_of("odd") == ""
