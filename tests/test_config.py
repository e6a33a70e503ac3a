"""Configs: fields have types, files and flags set them, and every mistake is an error in one line."""

import json

import pytest

from t5lite.checks import check, check_budget
from t5lite.config import (
    base_config,
    load_json,
    parse_arg,
    read_config,
    to_dict,
)
from t5lite.run.overrides import override
from t5lite.system.errors import UserError
from t5lite.system.python_files import load_function


def complaint(call, *parts):
    """Check that `call` raises a UserError of one line that contains `parts`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    for part in parts:
        assert str(part) in message, message
    assert "\n" not in message and len(message) < 600
    return message


def valid():
    config = base_config()
    config.data.train.source = "pydocs"
    config.budget.steps = 10
    return config


# Flags


def test_flags_set_fields_of_every_type():
    arguments = [
        *["--config.seed=5", "--config.model.d_model", "64", "--config.schedule.rate=1", "--config.name=a=b"],
        *["--config.deterministic", "--config.objective.pack=false", "--config.tokenizer.specials=('[MASK]','[CLS]')"],
    ]
    config = override(base_config(), arguments)
    assert (config.seed, config.model.d_model, config.schedule.rate, config.name) == (5, 64, 1.0, "a=b")
    assert (config.deterministic, config.objective.pack) == (True, False)
    assert config.tokenizer.specials == ("[MASK]", "[CLS]")


def test_flags_set_optional_fields_with_their_types():
    arguments = [
        *["--config.budget.tokens=1e9", "--config.eval.batch_size=4", "--config.data.labels=true"],
        *["--config.init_from=runs/a", "--config.trainable=(('encoder.*', False), ('.*', True))"],
    ]
    config = override(base_config(), arguments)
    assert (config.budget.tokens, config.eval.batch_size, config.data.labels) == (1e9, 4, True)
    assert config.init_from == "runs/a"
    assert config.trainable == (("encoder.*", False), (".*", True))


def test_none_clears_an_optional_field_whatever_the_order():
    arguments = ["--config.budget.steps=None", "--config.budget.tokens=10"]
    for given in (arguments, arguments[::-1]):
        config = override(valid(), given)
        assert (config.budget.steps, config.budget.tokens) == (None, 10.0)
        check(config)
    assert override(valid(), ["--config.name=None"]).name == "None"  # the field `name` is not optional
    config = valid()
    config.init_from = "runs/a"
    assert override(config, ["--config.init_from=None"]).init_from is None


def test_flags_reach_into_a_mixture():
    config = base_config()
    config.data.train.mixture.books = {"source": "pydocs", "weight": 1.0}
    assert override(config, ["--config.data.train.mixture.books.weight=2"]).data.train.mixture.books.weight == 2.0


MIXED = "--config.data.train.mixture."


def test_flags_make_members_of_a_mixture(tmp_path):
    arguments = [f"{MIXED}domain.source=files:a", f"{MIXED}domain.weight=3", f"{MIXED}general.source=pydocs",
                 f"{MIXED}general.split=train", f"{MIXED}domain.columns.text=body",
                 "--config.objective.mixture.spans.name=span_corruption", "--config.objective.mixture.spans.weight=2",
                 "--config.objective.mixture.spans.noise_density", "0.5",
                 "--config.objective.mixture.spans.whole_words=false",
                 "--config.objective.mixture.lm.name=prefix_lm",
                 "--config.objective.mixture.lm.mode=[S2S]"]  # fmt: skip
    path = file(tmp_path, " c = base_config()", " c.objective.name = 'mixture'", " return c")
    config = override(read_config(str(path)), arguments)
    check(config)
    assert to_dict(config)["data"]["train"]["mixture"] == {
        "domain": {"source": "files:a", "weight": 3.0, "columns": {"text": "body"}},
        "general": {"source": "pydocs", "split": "train"},
    }
    spans, lm = config.objective.mixture.spans, config.objective.mixture.lm
    assert spans.to_dict() == {"name": "span_corruption", "weight": 2.0, "noise_density": 0.5, "whole_words": False}
    assert type(spans.weight) is float and lm.to_dict() == {"name": "prefix_lm", "mode": "[S2S]"}


def test_flags_join_and_change_the_members_that_a_file_has(tmp_path):
    line = " c.data.train.mixture.books = {'source': 'pydocs', 'weight': 1}"  # an int; a flag may set 2.5
    path = file(tmp_path, " c = base_config()", line, " return c")
    arguments = [f"{MIXED}books.weight=2.5", f"{MIXED}books.split=test", f"{MIXED}more.source=files:a"]
    mixture = override(read_config(str(path)), arguments).data.train.mixture
    assert mixture.to_dict() == {
        "books": {"source": "pydocs", "weight": 2.5, "split": "test"},
        "more": {"source": "files:a"},
    }
    cleared = override(read_config(str(path)), [f"{MIXED}books.split=x", f"{MIXED}books.split=None"])
    assert cleared.data.train.mixture.books.split is None


def test_a_flag_replaces_the_value_in_the_file():
    config = valid()  # with data.train.source and budget.steps
    config.data.train.split = "train[:10%]"
    mixed = override(config, [f"{MIXED}a.source=files:a", f"{MIXED}b.source=files:b", "--config.budget.minutes=5"])
    check(mixed)
    check_budget(mixed)
    assert (mixed.data.train.source, mixed.data.train.split, mixed.budget.steps) == (None, None, None)
    assert mixed.budget.minutes == 5.0
    single = override(mixed, ["--config.data.train.source=files:c", "--config.budget.tokens=1e6"])
    check(single)
    check_budget(single)
    assert single.data.train.source == "files:c" and not single.data.train.mixture
    assert (single.budget.minutes, single.budget.tokens) == (None, 1e6)
    assert override(valid(), ["--config.budget.minutes=None"]).budget.steps == 10
    assert override(valid(), ["--config.data.train.source=None"]).data.train.source is None


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config.budget.minutes=5", "--config.budget.steps=5"], ["config.budget", "exactly one"]),
        ([f"{MIXED}a.source=x", "--config.data.train.source=y"], ["config.data.train: set source or mixture"]),
        *(
            ([f"{MIXED}{name}.source=x"], [f"mixture.{name}: '{name}' cannot be a member's name"])
            for name in ("items", "get", "wiki-en", "2020", "class")
        ),
        ([f"{MIXED}a.source=x", "--config.data.train.split=y"], ["config.data.train.split", "mixture.NAME.split"]),
        ([f"{MIXED}a.sorce=x"], ["config.data.train.mixture.a.sorce", "did you mean 'source'?"]),
        ([f"{MIXED}a=x"], ["config.data.train.mixture", "a"]),
        ([f"{MIXED}a.weight=heavy"], ["config.data.train.mixture.a.weight", "heavy"]),
        ([f"{MIXED}a.source=x", f"{MIXED}a.weight=-1"], ["config.data.train.mixture.a.weight: must be from 0"]),
        ([f"{MIXED}a.source=None"], ["config.data.train.mixture.a.source: needs a value"]),
        ([f"{MIXED}a.columns.txt=x"], ["config.data.train.mixture.a.columns.txt", "did you mean 'text'?"]),
        (
            [f"{MIXED}a.columns=x"],
            ["config.data.train.mixture.a.columns is a group", "inputs, question, targets, text"],
        ),
        ([f"{MIXED}a.source.x=x"], ["config.data.train.mixture.a.source is not a group"]),
        (["--config.objective.mixture.a.noise_densty=1"], ["mixture.a.noise_densty", "did you mean 'noise_density'?"]),
        (["--config.objective.mixture.a.noise_density=2"], ["mixture.a.noise_density: must be from 0 to 1"]),
        (["--config.objective.mixture.a.mixture=2"], ["config.objective.mixture.a.mixture"]),
    ],
)
def test_a_mistake_about_a_member_is_named(arguments, parts):
    def call():
        config = override(valid(), arguments)
        check(config)
        check_budget(config)

    complaint(call, *parts)


@pytest.mark.parametrize(
    ("argument", "parts"),
    [
        ("--config.seeed=1", ["config.seeed", "did you mean 'seed'?"]),
        ("-config.seeed=1", ["config.seeed", "did you mean 'seed'?"]),
        ("--config.model.d_modle=1", ["config.model.d_modle", "did you mean 'd_model'?"]),
        ("--config.seed.x=1", ["config.seed.x"]),
        ("--config.model=1", ["config.model is a group", "d_model"]),
        ("--config.=1", ["unknown config field"]),
        ("--config.seed=many", ["config.seed", "many"]),
        ("--config.seed=1.5", ["config.seed", "1.5"]),
        ("--config.budget.steps=1.5", ["config.budget.steps", "1.5"]),
        ("--config.model.dropout=x", ["config.model.dropout"]),
        ("--config.data.labels=perhaps", ["config.data.labels", "perhaps"]),
        ("--config.seed=None", ["config.seed", "None"]),
        ("--config.seed", ["config.seed", "issing value"]),
        ("--steps=3", ["steps"]),
        ("train", ["unexpected argument 'train'"]),
        ("--config=other.py", ["config"]),
    ],
)
def test_a_mistaken_flag_is_named(argument, parts):
    complaint(lambda: override(base_config(), [argument]), *parts)


# Arguments of a config file


def test_arguments_take_the_types_of_their_defaults():
    defaults = {"steps": 1, "rate": 0.1, "name": "a", "big": False, "small": True, "empty": "x"}
    arg = parse_arg("steps=5,rate=1e-4,name=b,big,small=0,empty=", **defaults)
    assert arg.to_dict() == {"steps": 5, "rate": 1e-4, "name": "b", "big": True, "small": False, "empty": ""}
    assert parse_arg(None, steps=1).steps == parse_arg("", steps=1).steps == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("stesp=3", ["'stesp'", "did you mean 'steps'?"]),
        ("zzz", ["'zzz'", "known: big, steps"]),
        ("steps=1.5", ["steps='1.5'", "int"]),
        ("steps", ["steps=''", "int"]),
        ("big=ture", ["big='ture'", "bool"]),
    ],
)
def test_a_mistaken_argument_is_named(text, parts):
    complaint(lambda: parse_arg(text, steps=1, big=False), *parts)


# Config files


def file(tmp_path, *lines, start=("from t5lite.config import base_config, parse_arg", "def get_config(arg=None):")):
    path = tmp_path / "mine.py"
    path.write_text("\n".join([*start, *lines]) + "\n")
    return path


def test_a_config_file_is_read_with_its_argument(tmp_path):
    path = file(tmp_path, " arg = parse_arg(arg, seed=3)", " c = base_config()", " c.seed = arg.seed", " return c")
    assert read_config(str(path)).seed == 3
    assert read_config(f"{path}:seed=7").seed == 7
    complaint(lambda: read_config(f"{path}:sede=7"), "did you mean 'seed'?")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("c.sead = 1", ["line 4", "unknown field sead", "did you mean 'seed'?"]),
        ("c.model.d_modle = 1", ["line 4", "unknown field d_modle", "did you mean 'd_model'?"]),
        ("c.seed = c.model.zzz", ["line 4", "zzz"]),
        ("c.seed = 'x'", ["line 4", "seed", "int"]),
        ("c.budget.steps = 1.5", ["line 4", "steps", "int"]),
        ("c.seed = 1 / 0", ["line 4", "ZeroDivisionError", "division by zero"]),
        ("c.seed = sed", ["line 4", "NameError", "'sed'"]),
        ("c.seed = None.x", ["line 4", "'NoneType' object has no attribute 'x'"]),
        ("c.seed = {}['key']", ["line 4", "key"]),
        ("raise RuntimeError", ["line 4", "RuntimeError"]),
        ("int('x')", ["line 4", "invalid literal"]),
        ("c.model = {'d_model': 64}", ["model", "lacks the field activation", "base_config()"]),
        ("c.model = 5", ["model"]),
        ("c = None", ["returned NoneType"]),
        ("import ml_collections; c = ml_collections.ConfigDict({'seed': 1})", ["lacks the field"]),
        ("c.unlock(); c.steps = 5", ["adds the field steps"]),
    ],
)
def test_a_mistake_inside_a_config_file_is_named_with_its_line(tmp_path, line, parts):
    path = file(tmp_path, " c = base_config()", f" {line}", " return c")
    complaint(lambda: read_config(str(path)), path, *parts)


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        (["x = 1", "def get_config(:"], ["line 2", "syntax"]),
        (["import t5lite_nowhere"], ["line 1", "t5lite_nowhere"]),
        (["x = 1", "y = x / 0"], ["line 2", "division by zero"]),
        (["x = 1"], ["no function get_config(arg)"]),
        (["get_config = 5"], ["no function get_config(arg)"]),
        (["def get_config():", " return 1"], ["get_config() takes 0 positional arguments"]),
        (["x = '\0'"], ["null bytes"]),
    ],
)
def test_a_file_that_does_not_run_is_named_with_its_line(tmp_path, lines, parts):
    path = file(tmp_path, *lines, start=())
    complaint(lambda: read_config(str(path)), path, *parts)


def test_a_config_file_that_is_missing_or_of_another_kind_is_named(tmp_path):
    complaint(lambda: read_config(str(tmp_path / "none.py")), "no config file", "none.py")
    complaint(lambda: read_config(str(tmp_path / "none.json")), "no config file", "none.json")
    (tmp_path / "a.yaml").write_text("{}")
    complaint(lambda: read_config(str(tmp_path / "a.yaml")), "a.yaml is not a Python file")
    complaint(lambda: load_function(tmp_path, "get_study"), "no config file")


def test_the_config_json_of_a_run_is_a_config_file(tmp_path):
    config = base_config()
    config.batch_size, config.init_from = 3, "@other"
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert to_dict(read_config(str(tmp_path / "config.json"))) == to_dict(config)
    (tmp_path / "config.json").write_text('{"batch_sise": 3}')
    complaint(lambda: read_config(str(tmp_path / "config.json")), "unknown field batch_sise", "batch_size")


def test_a_config_file_may_be_given_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file(tmp_path, " return base_config()", " x = (")
    assert complaint(lambda: read_config("mine.py")).startswith("mine.py, line 4: ")
    file(tmp_path, " return sed")
    assert complaint(lambda: read_config("mine.py")).startswith("mine.py, line 3: ")


def test_a_config_read_from_a_file_is_locked(tmp_path):
    config = read_config(str(file(tmp_path, " return base_config()")))
    with pytest.raises((AttributeError, KeyError)):
        config.new_field = 1


def test_members_of_a_mixture_are_set_by_name_or_all_at_once(tmp_path):
    for line in ("c.data.train.mixture.a = {'source': 'x'}", "c.data.train.mixture = {'a': {'source': 'x'}}"):
        path = file(tmp_path, " c = base_config()", f" {line}", " return c")
        assert read_config(str(path)).data.train.mixture.a.source == "x"


# config.json


def test_a_config_comes_back_from_its_json(tmp_path):
    config = valid()
    config.data.train.source = None
    config.data.train.mixture = {"a": {"source": "pydocs", "weight": 2.0}, "b": {"source": "files:x", "weight": 0.5}}
    config.tokenizer.specials = ("[MASK]",)
    config.trainable = (("encoder.*", False), (".*", True))
    config.budget.steps = None
    config.budget.tokens = 1e12
    config.schedule.rate = 1.0
    written = to_dict(config)
    (tmp_path / "config.json").write_text(json.dumps(written))
    read = load_json(tmp_path / "config.json")
    assert to_dict(read) == written
    assert read.trainable == config.trainable and read.tokenizer.specials == ("[MASK]",)
    assert type(read.schedule.rate) is float and type(read.budget.tokens) is float
    check(read)
    assert override(read, ["--config.data.train.mixture.a.weight=3"]).data.train.mixture.a.weight == 3.0


def test_fields_newer_than_the_json_take_their_defaults(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 4, "model": {"d_model": 8}}')
    config = load_json(tmp_path / "config.json")
    assert (config.seed, config.model.d_model, config.model.d_ff) == (4, 8, base_config().model.d_ff)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("{", ["damaged"]),
        ("[1]", ["damaged", "no JSON object"]),
        ("[" * 10**5, ["damaged"]),
        ('{"seed": ' + "9" * 5000 + "}", ["damaged"]),
        ('{"model": 5}', ["damaged"]),
        ('{"schedule": {"rate": 1' + "0" * 400 + "}}", ["damaged"]),
        ('{"seed": "x"}', ["damaged", "seed"]),
        ('{"sead": 1}', ["unknown field sead", "did you mean 'seed'?"]),
        ('{"model": {"d_modle": 1}}', ["model", "d_modle", "'d_model'"]),
    ],
)
def test_a_damaged_config_json_is_named(tmp_path, content, parts):
    (tmp_path / "config.json").write_text(content)
    complaint(lambda: load_json(tmp_path / "config.json"), tmp_path / "config.json", *parts)


def test_a_folder_without_config_json_is_no_workdir(tmp_path):
    complaint(lambda: load_json(tmp_path / "config.json"), tmp_path, "not a run's workdir")
