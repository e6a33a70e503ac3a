"""What a release says of generation: read, kept by a workdir, written again; what is wrong in it, named."""

import dataclasses
import json

import numpy as np
import pytest

from t5lite.data.tokenizers.generation_config import describe_ignored, write_generation_config
from t5lite.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import Rules
from tests.data import released
from tests.data.tokenizers.test_tokenizer import OWN, T5_LIKE

SAID = {
    "eos_token_id": [2, 50], "forced_bos_token_id": 0, "forced_eos_token_id": 2, "suppress_tokens": [60, 9999],
    "begin_suppress_tokens": [70], "bad_words_ids": [[61], [62, 63]], "decoder_start_token_id": 2, "num_beams": 4,
    "max_length": 142, "do_sample": False, "temperature": 0.5, "no_repeat_ngram_size": 3, "early_stopping": True,
    "length_penalty": 2.0, "transformers_version": "4.27.0", "_from_model_config": True, "output_attentions": False,
}  # fmt: skip
RULES = Rules(stops=(2, 50), first=0, last=2, never=(60, 61), never_first=(70,))


def place_of(folder, said=None, make=released.bart, older=None):
    make(folder)
    config = json.loads((folder / "config.json").read_text()) | (older or {})
    (folder / "config.json").write_text(json.dumps(config))
    if said is not None:
        (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


def rules_of(folder, *given):
    return load_tokenizer(f"hf:{place_of(folder, *given)}", 0, ()).rules


@pytest.mark.parametrize("older", [False, True], ids=["generation_config.json", "config.json"])
def test_the_rules_are_those_of_the_release(older, tmp_path):
    place_of(tmp_path, None if older else SAID, older=SAID if older else {"forced_bos_token_id": 7, "num_beams": 9})
    rules = load_tokenizer(f"hf:{tmp_path}", 0, ()).rules
    asked = {"max_length": 142, "num_beams": 4, "length_penalty": 2.0, "early_stopping": True,
             "no_repeat_ngram_size": 3, "bad_words_ids": [[62, 63]]}  # fmt: skip
    assert rules == Rules(**{**vars(RULES), "asked": asked})


def test_older_files_force_the_bos_by_another_name(tmp_path):
    older = {"force_bos_token_to_be_generated": True, "bos_token_id": 0}
    assert load_tokenizer(f"hf:{place_of(tmp_path, older=older)}", 0, ()).rules.first == 0


def test_ids_of_the_tokenizers_roles_come_from_either_file(tmp_path):
    (tmp_path / "a").mkdir()
    said = {"decoder_start_token_id": 0, "eos_token_id": [5, 6]}
    assert load_tokenizer(f"hf:{place_of(tmp_path / 'a', said)}", 0, ()).vocabulary.start == 0
    neox = load_tokenizer(f"hf:{place_of(tmp_path / 'b', {'max_new_tokens': 5}, released.neox)}", 0, ())
    assert neox.rules.stops == (0, 7), "those of config.json, as generation_config.json names none"
    neox = load_tokenizer(f"hf:{place_of(tmp_path / 'c', said, released.neox)}", 0, ())
    assert neox.vocabulary.eos == 5 and neox.rules.stops == (5, 6)


def test_a_workdir_keeps_the_rules_and_hf_reads_them_anew(tmp_path):
    tokenizer = load_tokenizer(f"hf:{place_of(tmp_path / 'from', SAID)}", 0, ())
    tokenizer.save(tmp_path / "run" / "tokenizer")
    again = load_tokenizer(str(tmp_path / "run"), 0, ())
    assert again.rules == tokenizer.rules and again.sha256 == tokenizer.sha256
    (tmp_path / "run" / "generation_config.json").write_text(json.dumps({"forced_eos_token_id": 2}))
    assert load_tokenizer(f"hf:{tmp_path / 'run'}", 0, ()).rules == Rules(last=2)


def test_a_sentencepiece_release_has_rules_and_a_start_of_its_own(tmp_path):
    def place(**said):
        (tmp_path / "spiece.model").write_bytes(T5_LIKE)
        (tmp_path / "config.json").write_text(json.dumps(said))
        return load_tokenizer(f"hf:{tmp_path}", 100, ())

    usual, other = place(decoder_start_token_id=0), place(decoder_start_token_id=5, suppress_tokens=[9])
    assert usual.sha256 == Tokenizer(T5_LIKE, 100).sha256 != other.sha256
    assert (other.vocabulary.start, other.rules.never) == (5, (9,))
    other.save(tmp_path / "run")
    again = load_tokenizer(str(tmp_path / "run"), 0, ())
    assert (again.vocabulary.start, again.rules, again.sha256) == (5, other.rules, other.sha256)
    for start in (99999, "x", [0], True):
        with pytest.raises(UserError, match="start"):
            place(decoder_start_token_id=start)


def test_what_an_older_workdir_has_no_rules_of_is_none(tmp_path):
    OWN.save(tmp_path)
    assert "generation" not in json.loads((tmp_path / "vocabulary.json").read_text())
    assert load_tokenizer(str(tmp_path), 0, ()).rules is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("eos_token_id", "</s>", "eos_token_id should be an id or a list of ids"),
        ("eos_token_id", [2, None], "eos_token_id should be an id or a list of ids"),
        ("suppress_tokens", {"a": 1}, "suppress_tokens should be an id or a list of ids"),
        ("forced_bos_token_id", 99999, "forced_bos_token_id=99999 should be one id of the tokenizer"),
        ("forced_eos_token_id", [1, 2], r"forced_eos_token_id=\[1, 2\] should be one id"),
        ("forced_bos_token_id", 60, "forced_bos_token_id=60 is among suppress_tokens"),
        ("forced_eos_token_id", 60, "forced_eos_token_id=60 is among suppress_tokens"),
        ("bad_words_ids", [3], "bad_words_ids should be a list of lists of ids"),
        ("min_length", -1, "min_length should be a whole number"),
        ("min_new_tokens", 2.5, "min_new_tokens should be a whole number"),
        ("no_repeat_ngram_size", "3", "no_repeat_ngram_size should be a whole number"),
    ],
)
def test_what_is_no_id_is_named(field, value, message, tmp_path):
    with pytest.raises(UserError, match=message):
        rules_of(tmp_path, {**SAID, field: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "newer t5lite"),
        ({"stops": 3}, "damaged"),
        ({"first": 99999}, "damaged"),
        ({"never": None}, "damaged"),
        ({"asked": {"min_length": "x"}}, "damaged"),
    ],
)
def test_rules_that_a_workdir_cannot_have_are_refused(change, message, tmp_path):
    load_tokenizer(f"hf:{place_of(tmp_path / 'from', SAID)}", 0, ()).save(tmp_path / "run")
    file = tmp_path / "run" / "vocabulary.json"
    above = json.loads(file.read_text())
    file.write_text(json.dumps({**above, "generation": above["generation"] | change}))
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(tmp_path / "run"), 0, ())


def test_the_note_names_what_is_not_taken_over_and_the_flags(tmp_path):
    rules = rules_of(tmp_path, SAID)
    note = describe_ignored(rules, "encoder_decoder")
    flags = ("--num_beams 4", "--max_new_tokens 141", "--early_stopping true", "--length_penalty 2.0")
    for part in ("num_beams=4", *flags, "there is no flag for bad_words_ids"):
        assert part in note, part
    assert "temperature" not in note, "nothing is sampled"
    assert "no_repeat_ngram_size" not in note, "generation follows it"
    given = ("--num_beams", "--max_new_tokens", "--early_stopping", "--length_penalty")
    assert "give" not in describe_ignored(rules, "encoder_decoder", given)
    assert "forced_bos_token_id=0" in describe_ignored(rules, "decoder")
    assert describe_ignored(Rules(), "decoder") is None


@pytest.mark.parametrize(
    ("architecture", "asked", "usual", "ignored"),
    [
        ("encoder_decoder", {"min_length": 56, "no_repeat_ngram_size": 3}, {"min_new_tokens": 55,
         "no_repeat_ngram_size": 3}, None),
        ("encoder_decoder", {"min_length": 56, "min_new_tokens": 7}, {"min_new_tokens": 7}, None),
        ("decoder", {"min_length": 56, "no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2},
         "min_length=56, which generate ignores; to use them, give --min_new_tokens N"),
        ("decoder", {"min_length": 56, "min_new_tokens": 7}, {"min_new_tokens": 7}, None),
        ("decoder", {"min_length": 0, "no_repeat_ngram_size": 0, "min_new_tokens": None}, {}, None),
    ],
)  # fmt: skip
def test_the_shortest_length_and_ngrams_of_a_release_hold(architecture, asked, usual, ignored, tmp_path):
    rules = rules_of(tmp_path, asked)
    assert rules.usual_settings(architecture) == usual
    note = describe_ignored(rules, architecture)
    assert note is None if ignored is None else ignored in note
    assert describe_ignored(rules, architecture, ["--min_new_tokens"]) is None


def test_samples_that_a_release_asks_for_are_in_the_note(tmp_path):
    note = describe_ignored(rules_of(tmp_path, {"do_sample": True, "temperature": 0.6, "top_p": 0.9}), "decoder")
    assert all(flag in note for flag in ("--temperature 0.6", "--top_p 0.9", "--top_k 50")), note


@pytest.mark.parametrize(("continues", "last"), [(True, 2), (False, None)])
def test_what_ends_an_answer_by_force_stays_with_the_weights_that_it_came_with(continues, last):
    in_targets = np.zeros(401, bool)
    assert RULES.adapt_to_training(in_targets, 0, continues) == Rules(stops=(2, 50), first=0, last=last)


def test_what_is_written_says_the_same_when_it_is_read(tmp_path):
    rows = 500
    (tmp_path / "run").mkdir()
    allowed = np.ones(401, bool)
    allowed[[0, 1, 3, 60]] = False
    place_of(tmp_path)
    write_generation_config(tmp_path, {"eos_token_id": 2, "bos_token_id": 0}, RULES, allowed, rows)
    said = json.loads((tmp_path / "generation_config.json").read_text())
    assert said["suppress_tokens"] == [1, 3, 60, *range(401, rows)] and said["bad_words_ids"] == [[0]]
    assert said["eos_token_id"] == [2, 50] and said["forced_bos_token_id"] == 0
    longer = dataclasses.replace(RULES, asked={"bad_words_ids": [[5, 6]]})
    write_generation_config(tmp_path / "run", {"eos_token_id": 2}, longer, allowed, rows)
    said = json.loads((tmp_path / "run" / "generation_config.json").read_text())
    assert said["bad_words_ids"] == [[0], [5, 6]]
    again = load_tokenizer(f"hf:{tmp_path}", 0, ()).rules
    assert (again.stops, again.first, again.last, again.never_first) == ((2, 50), 0, 2, (70,))
    assert again.never == (0, 1, 3, 60)
