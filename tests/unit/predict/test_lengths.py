"""LightGBM models one row at a time."""

from __future__ import annotations

from math import nan

import pytest

from gateway.predict.lengths import Booster, BoosterError
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
    booster = Booster(tiny(), 2)
    assert [booster.predict(row) for row in ([0, 3.0], [0, 3.1], [9, 1], [9, 9])] == [
        10.0,
        20.0,
        10.0,
        20.0,
    ]


def test_booster_takes_missing_values() -> None:
    """NaN is a value like any other."""
    text = (shipped("models") / "stage0.txt").read_text()
    width = int(text.split("max_feature_idx=")[1].split()[0]) + 1
    assert 0 < Booster(text, width).predict([nan] * width) < 12


def test_booster_refuses_another_width() -> None:
    """A model of other features is an error at loading, not at the first use."""
    with pytest.raises(BoosterError, match="takes 2 features, the code gives 3"):
        Booster(tiny(), 3)
    with pytest.raises(ValueError):
        Booster(tiny(), 2).predict([1.0, 2.0, 3.0])


@pytest.mark.parametrize("text", ["", "not a model", "tree\n", "tree\nversion=v4\n"])
def test_booster_refuses_what_is_no_model(text: str) -> None:
    """Text that is no model is a BoosterError."""
    with pytest.raises(BoosterError):
        Booster(text, 2)
