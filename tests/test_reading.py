"""What is read whole is a file, of a bounded size, and holds what it should; a refusal is one printable line."""

import json
import os
import pickle

import jax.numpy as jnp
import pytest

from t5lite.system.errors import LONGEST_MESSAGE, UserError, clean_exit
from t5lite.system.files import NUMBER, has_shape, read_bytes, read_json
from t5lite.training.metrics import read_first_losses, read_log, truncate
from t5lite.training.workdir import check_same_data, read_labels, read_result
from tests.small import Spy


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (3, int), (3, (str, int)), (None, NUMBER), (0.5, NUMBER), ([], [str]), (["a"], [str]), ({}, {str: int}),
        ({"a": {"b": 1}}, {str: {str: int}}), ({"step": 1, "more": []}, {"step": int}), ({}, {"step": (int, None)}),
    ],
)  # fmt: skip
def test_a_value_of_the_shape(value, shape):
    assert has_shape(value, shape)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (True, int), ("3", int), (None, int), (True, NUMBER), ([1], [str]), ("a", [str]), ({"a": "b"}, {str: int}),
        ({}, {"step": int}), ({"step": None}, {"step": int}), ([], {"step": (int, None)}), ([], {str: int}),
    ],
)  # fmt: skip
def test_a_value_of_another_shape(value, shape):
    assert not has_shape(value, shape)


DAMAGED = {
    "nothing": b"",
    "half": b'{"step": 1, "metr',
    "a list": b"[1]",
    "deep": b"[" * 10**5,
    "a long number": b'{"step": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"step": "\xff"}',
    "yaml": b"!!python/object/apply:os.system ['touch trace']",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_json_file_is_named_with_the_way_out(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is damaged .*; build it anew"):
        read_json(tmp_path / "a.json", "build it anew")


def test_a_pickle_is_not_loaded(tmp_path):
    (tmp_path / "a.json").write_bytes(pickle.dumps(Spy(tmp_path / "trace")))
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "a.json")
    assert not (tmp_path / "trace").exists()


def test_a_file_that_is_not_there_is_none(tmp_path):
    (tmp_path / "file").touch()
    assert read_json(tmp_path / "none.json") is None and read_json(tmp_path / "file" / "none.json") is None


def test_a_pipe_a_device_and_a_folder_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises((UserError, IsADirectoryError)):
            read_bytes(path)


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="too many"):
        read_bytes(tmp_path / "sparse")


@pytest.mark.parametrize("said", [{"metrics": []}, {"metrics": {"a": {"loss": "x"}}}, {"metrics": {}, "cost": 3}, {}])
def test_a_result_of_another_shape_is_damaged(tmp_path, said):
    (tmp_path / "result.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"result\.json is damaged .*delete it"):
        read_result(tmp_path)


@pytest.mark.parametrize("said", [{"data": 3, "labels": None}, {"data": {}, "labels": "ab"}])
def test_provenance_of_another_shape_is_damaged(tmp_path, said):
    (tmp_path / "provenance.json").write_text(json.dumps(said))
    for read in (lambda: read_labels(tmp_path), lambda: check_same_data({}, tmp_path)):
        with pytest.raises(UserError, match=r"provenance\.json is damaged"):
            read()


def test_broken_lines_of_a_log_are_left_out(tmp_path):
    good = ['{"step": 0, "split": "validation", "loss": null}', '{"step": 2, "split": "train", "loss": 1.0}']
    good.insert(1, '{"step": 0, "split": "without a loss"}')
    bad = ["", "{", "[1]", '{"step": true, "split": "a"}', '{"step": 1}', '{"step": 1, "split": 2}', "[" * 10**5, "\0"]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join([*bad, *good, *bad]).encode() + b"\n\xff\n")
    assert [line for line, _ in read_log(path)] == good
    assert read_first_losses(path) == {"validation": None}
    truncate(path, 1)
    assert path.read_text() == "\n".join(good[:2]) + "\n"


# Messages


def test_a_message_is_one_printable_line():
    assert str(UserError("a\nb\tc \x1b[31m \u202e \ud800 é 😀")) == r"a b c \x1b[31m \u202e \ud800 é 😀"


def test_a_long_message_keeps_its_beginning_and_its_end():
    message = str(UserError("a" + "x" * 10**6 + "b"))
    assert len(message) <= LONGEST_MESSAGE + 3 and message[0] == "a" and message[-1] == "b" and " … " in message


def test_memory_that_is_not_enough_is_one_line(capsys):
    def python():
        raise MemoryError

    for allocate in (python, lambda: jnp.zeros(1 << 46).block_until_ready()):
        with pytest.raises(SystemExit) as stop, clean_exit():
            allocate()
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count("\n") == 1 and said.startswith("t5lite: out of memory")


def test_any_other_fault_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="other"), clean_exit():
        raise RuntimeError("other")
