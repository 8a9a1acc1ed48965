"""LightGBM models one row at a time."""

from __future__ import annotations

import struct
from math import nan

import pytest

from gateway.predict.features import NAMES
from gateway.predict.lengths import Booster, BoosterError, Columns
from gateway.shipped import shipped

TINY = """tree
version=v4
num_class=1
num_tree_per_iteration=1
label_index=0
max_feature_idx=1
objective=regression
feature_names=a b
feature_infos=[0:10] [0:10]
tree_sizes=0

Tree=0
num_leaves=2
num_cat=0
split_feature=1
split_gain=1
threshold=3
decision_type=2
left_child=-1
right_child=-2
leaf_value=10 20
leaf_weight=1 1
leaf_count=1 1
internal_value=0
internal_weight=0
internal_count=2
is_linear=0
shrinkage=1


end of trees
"""


def tiny() -> str:
    body = TINY[TINY.index("Tree=0") : TINY.index("end of trees")]
    return TINY.replace("tree_sizes=0", f"tree_sizes={len(body)}")


def test_booster_follows_its_tree() -> None:
    """The output is 10 left of the threshold and 20 right of it, whatever was asked before."""
    columns = Columns(2)
    one, other = Booster(tiny(), columns), Booster(tiny(), columns)
    found = []
    for row in ([0, 3.0], [0, 3.1], [9, 1], [9, 9]):
        columns.fill(row)
        found.append((one.predict(), other.predict()))
    assert found == [(10.0, 10.0), (20.0, 20.0), (10.0, 10.0), (20.0, 20.0)]


def test_columns_leave_out_what_stands_between() -> None:
    """Boosters read the first cheap features, and what follows all of them."""
    columns = Columns(1, projected=0, near=1)
    booster = Booster(tiny(), columns)
    columns.fill([9.0] * len(NAMES) + [3.0, 9.0])
    assert booster.predict() == 10.0
    columns.fill([0.0] * len(NAMES) + [4.0, 0.0])
    assert booster.predict() == 20.0


def test_booster_takes_missing_values() -> None:
    """NaN is a value like any other."""
    text = (shipped("models") / "stage0.txt").read_text()
    width = int(text.split("max_feature_idx=")[1].split()[0]) + 1
    columns = Columns(width)
    columns.fill([nan] * width)
    assert 0 < Booster(text, columns).predict() < 12


def test_booster_refuses_another_width() -> None:
    """A model of other features is an error at loading, not at the first use."""
    with pytest.raises(BoosterError, match="takes 2 features, the code gives 3"):
        Booster(tiny(), Columns(3))
    with pytest.raises(struct.error):
        Columns(2).fill([1.0])


@pytest.mark.parametrize("text", ["", "not a model", "tree\n", "tree\nversion=v4\n"])
def test_booster_refuses_what_is_no_model(text: str) -> None:
    """Text that is no model is a BoosterError."""
    with pytest.raises(BoosterError):
        Booster(text, Columns(2))
