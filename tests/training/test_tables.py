"""Tables of (regex, value): what they cover, and what they refuse."""

import numpy as np
import pytest

from t5lite.errors import UserError
from t5lite.training.tables import flatten_with_paths, is_stacked, match_table

TREE = {"b": {"layers": {"norm": {"scale": 1}, "kernel": 2}}, "a": {"embedding": 3}}


def test_the_first_row_that_matches_wins():
    values = match_table([(r"b/.*/scale", 0.0), (r"b/.*", 0.5), (r".*", 1.0)], TREE, "table")
    assert values == {"b": {"layers": {"norm": {"scale": 0.0}, "kernel": 0.5}}, "a": {"embedding": 1.0}}


def test_leaves_come_in_the_order_of_their_paths():
    assert flatten_with_paths(TREE) == [("a/embedding", 3), ("b/layers/kernel", 2), ("b/layers/norm/scale", 1)]
    assert [path for path, _ in flatten_with_paths({"a": {"z": 0}, "a-": 0})] == ["a-", "a/z"]
    assert flatten_with_paths([np.zeros(1)])[0][0] == "0"


def test_a_parameter_that_no_row_covers_is_named_with_the_table():
    with pytest.raises(UserError, match=r"optimizer\.rates.*'a/embedding'"):
        match_table([(r"b/.*", 1.0)], TREE, "optimizer.rates")


def test_a_row_that_covers_nothing_is_named_unless_allowed():
    table = [(r"decoder/.*", 0.0), (r".*", 1.0)]
    with pytest.raises(UserError, match=r"trainable.*'decoder/\.\*' matches no parameter"):
        match_table(table, TREE, "trainable")
    assert match_table(table, TREE, "trainable", allow_unused=True)["a"]["embedding"] == 1.0


def test_a_row_that_earlier_rows_overrule_is_fine():
    assert match_table([(r".*", 1.0), (r"a/.*", 0.0)], TREE, "table")["a"]["embedding"] == 1.0


def test_a_pattern_matches_whole_paths_and_the_error_says_so():
    with pytest.raises(UserError, match="must match the whole path, such as 'b/layers/norm/scale'"):
        match_table([(r"scale", 0.0), (r".*", 1.0)], TREE, "table")


@pytest.mark.parametrize("row", ["(unclosed", ("(unclosed", 1.0), (".*",), (3, 1.0)])
def test_what_is_no_row_is_refused(row):
    with pytest.raises(UserError, match=r"^table: "):
        match_table([row, (".*", 1.0)], TREE, "table")


def test_stacked_parameters_are_those_under_layers():
    assert is_stacked("encoder/layers/mlp/up/kernel") and is_stacked("layers/norm/scale")
    assert not is_stacked("encoder/final_norm/scale") and not is_stacked("encoder/sublayers/scale")
