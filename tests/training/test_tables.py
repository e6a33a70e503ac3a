"""Tables of (regex, value): what they cover, and what they refuse."""

import dataclasses

import numpy as np
import pytest

from t5lite.model.transformer import parameter_shapes
from t5lite.system.errors import UserError
from t5lite.training.optimizer import make_optimizer
from t5lite.training.sharding import make_mesh, params_shardings
from t5lite.training.tables import MAX_PATHS, flatten_with_paths, is_stacked, match_table
from tests.model.test_transformer import SMALL

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


def _tables_of(pattern, params):
    """{table: a call that gives this table, with the pattern in its first row, to the parameters}."""
    rows = {"config.trainable": ((pattern, False), (".*", True)),
            "config.optimizer.rate_multipliers": ((pattern, 0.5), (".*", 1.0)),
            "config.optimizer.weight_decay_multipliers": ((pattern, 0.5), (".*", 1.0))}  # fmt: skip
    calls = {
        table: lambda table=table, given=given: make_optimizer(
            {"name": "adamw", table.rpartition(".")[2]: given}, params
        )
        for table, given in rows.items()
    }
    sharding = ((pattern, (None,)), (".*", ()))
    return calls | {"sharding rules": lambda: params_shardings(params, make_mesh(1, 1, 1), SMALL, sharding)}


@pytest.mark.parametrize("table", _tables_of("", {}))
def test_every_table_says_which_paths_there_are_and_that_layers_are_stacked(table):
    params = parameter_shapes(dataclasses.replace(SMALL, num_encoder_layers=3, num_decoder_layers=2))
    with pytest.raises(UserError) as caught:
        _tables_of("encoder/layers/1/mlp/.*", params)[table]()
    said = str(caught.value)
    assert said.startswith(f"{table}: the row 'encoder/layers/1/mlp/.*' matches no parameter")
    assert all(path in said for path, _ in flatten_with_paths(params)), said
    assert "paths contain no layer numbers" in said and "…" not in said
    for stack, layers in (("encoder", 3), ("decoder", 2)):
        assert f"under {stack}/layers/ stands for {layers} layers" in said


def test_the_nearest_paths_come_first_and_a_long_list_is_cut_with_their_number():
    tree = {f"group_{i}": {"kernel": 0} for i in range(60)} | {"encoder": {"mlp": {"up": {"kernel": 0}}}}
    with pytest.raises(UserError, match="parameter paths, most similar first: encoder/mlp/up/kernel, ") as caught:
        match_table([(r"encoder/mlp/upp/kernel", 0.0), (r".*", 1.0)], tree, "table")
    said = str(caught.value)
    assert said.count("/kernel") == MAX_PATHS + 1 and said.endswith(f"and {61 - MAX_PATHS} more")
    assert "stacked" not in said


@pytest.mark.parametrize("pattern", ["encoder/layers_0/.*", ".*layers[.]3.*", "encoder/block/2/.*", r"(layers/\d+)/.*"])
def test_a_pattern_with_the_number_of_a_layer_is_told_apart(pattern):
    for wrong, is_told in ((pattern, True), ("encoder/layers/mpl/.*", False)):
        with pytest.raises(UserError) as caught:
            match_table([(wrong, 0.0), (r".*", 1.0)], {"encoder": {"layers": {"mlp": np.zeros((4, 2))}}}, "table")
        assert ("paths contain no layer numbers" in str(caught.value)) == is_told
        assert "under encoder/layers/ stands for 4 layers" in str(caught.value)
