"""Released tokenizers: ids stay what they are, text stays text, and each id's role is known."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from t5lite.data.build import encode_words
from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import CLS, MASK, SEP
from tests.data import released
from tests.objectives.made import build

FAMILIES = {
    "gpt2": released.gpt2,
    "gpt2 with a space": functools.partial(released.gpt2, add_prefix_space=True),
    "neox": released.neox,
    "bart": released.bart,
    "bert": released.bert,
    "llama": released.llama,
    "llama by metaspace": functools.partial(released.llama, metaspace=True),
    "llama, always": functools.partial(released.llama, metaspace=True, prepend_scheme="always"),
    "t5": released.t5,
}
LOSSLESS = [name for name in FAMILIES if name not in ("bert", "t5")]
NAMES = "</s><s><pad><unk><mask>[MASK][CLS][SEP]<|endoftext|><extra_id_0><0x41>"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("released")
    return {name: make(root / name) for name, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def opened(folders):
    return {name: load_tokenizer(f"hf:{folder}", 10, ("[NLU]",)) for name, folder in folders.items()}


def library(folder):
    """The same file, as the library itself has it."""
    made = Library.from_file(str(folder / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    return made


# Ids


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_library(folders, opened, name):
    theirs = library(folders[name])
    for text in (*released.TEXT.split("\n")[:40], "Naïve 中文 🙂 e\u0301!?", "", "a", "x  y"):
        assert opened[name].encode(text).tolist() == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", FAMILIES)
def test_many_texts_are_encoded_like_each_alone(opened, name):
    texts = ["", *released.TEXT.split("\n")[:50], "a▁b", NAMES]
    many = opened[name].encode_many(texts)
    assert [ids.tolist() for ids in many] == [opened[name].encode(text).tolist() for text in texts]
    assert {ids.dtype for ids in many} == {np.dtype(np.int32)} and opened[name].encode_many([]) == []


ROLES = {
    "gpt2": ("<|endoftext|>", "<|endoftext|>", None, False),
    "neox": ("<|endoftext|>", "<|endoftext|>", None, False),
    "bart": ("</s>", "</s>", "<s>", False),
    "bert": ("[SEP]", "[CLS]", None, True),
    "llama": ("</s>", "<s>", "<s>", True),
    "t5": ("</s>", "<pad>", None, False),
}


@pytest.mark.parametrize("name", ROLES)
def test_roles_are_those_of_the_release(folders, opened, name):
    eos, start, bos, begins = ROLES[name]
    id_of, vocabulary = library(folders[name]).token_to_id, opened[name].vocabulary
    assert (vocabulary.eos, vocabulary.start, opened[name].begins_with_start) == (id_of(eos), id_of(start), begins)
    assert vocabulary.bos == (None if bos is None else id_of(bos))
    assert vocabulary.unknown != vocabulary.eos


def test_a_tokenizer_without_an_unknown_token_can_say_all_its_text(folders, opened):
    """Byte-level ones have none, GPT-2's calls its EOS so: each other id is text, "!" among them."""
    for name in ("gpt2", "gpt2 with a space", "neox"):
        vocabulary = opened[name].vocabulary
        assert vocabulary.unknown is None, name
        for objective, architecture in (("causal_lm", "decoder"), ("prefix_lm", "encoder_decoder")):
            allowed = build(objective, architecture, vocabulary).allowed_ids(vocabulary)
            assert allowed[opened[name].encode("!Oil, 0.")].all()
    for name, unknown in (("bart", "<unk>"), ("bert", "[UNK]"), ("llama", "<unk>"), ("t5", "<unk>")):
        assert opened[name].vocabulary.unknown == library(folders[name]).token_to_id(unknown)


def test_a_name_that_normalisation_makes_is_text_without_an_unknown_token(tmp_path):
    released.gpt2(tmp_path)
    file = tmp_path / "tokenizer.json"
    spec = json.loads(file.read_text()) | {"normalizer": {"type": "Lowercase"}}
    file.write_text(json.dumps(spec))
    tokenizer = load_tokenizer(f"hf:{tmp_path}", 0, ())
    assert tokenizer.decode(tokenizer.encode("an <|EndOfText|> oil")) == "an <|endoftext|> oil"


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "t5"])
def test_every_word_has_an_id(opened, name):
    tokenizer = opened[name]
    (found,) = encode_words(tokenizer, [["", "oil", "", "\u200b"]])
    assert all(len(ids) for ids in found)
    assert tokenizer.vocabulary.eos not in np.concatenate(found)


def test_masks_and_separators_are_the_tokenizers_own_whatever_their_names(opened):
    bart, bert, gpt2 = (opened[name].vocabulary for name in ("bart", "bert", "gpt2"))
    assert [bert.specials[name] for name in (CLS, SEP, MASK)] == [2, 3, 4]
    assert (bart.specials[CLS], bart.specials[SEP]) == (0, 2) and bart.specials[MASK] == bart.pieces - 1
    assert MASK not in gpt2.specials


def test_what_a_config_asks_for_beyond_that_lies_above(folders):
    asked = load_tokenizer(str(folders["gpt2"]), 10, (MASK, "[NLU]")).vocabulary
    assert (asked.pieces, asked.size, asked.rows) == (401, 411, 413)
    assert (asked.specials[MASK], asked.specials["[NLU]"]) == (411, 412)
    assert len(asked.table.is_special) == 413 and asked.table.is_special[400:].all()
    own = load_tokenizer(str(folders["bert"]), 0, (MASK, CLS)).vocabulary
    assert own.rows == own.pieces == 300


def test_sentinels_that_are_the_last_ids_stay(opened):
    vocabulary = opened["t5"].vocabulary
    assert (vocabulary.sentinels, vocabulary.rows) == (20, vocabulary.pieces + 21)
    assert opened["t5"].decode([vocabulary.size - 1]) == "<extra_id_0>"
    assert opened["t5"].encode("<extra_id_19>", specials=True).tolist() == [vocabulary.pieces]


# Text


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])) | st.text("ab \n\t</s>|é🙂", max_size=30)
)
def test_any_text_survives_the_round_trip(opened, name, text):
    tokenizer, table = opened[name], opened[name].vocabulary.table
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([tokenizer.vocabulary.start, *ids, tokenizer.vocabulary.eos]) == text
    assert not table.is_special[ids].any()
    # Without the space that some put in front.
    assert table.num_bytes_first[ids[:1]].sum() + table.num_bytes[ids[1:]].sum() == len(text.encode())


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["</s>", "<s>", "<pad>", "[MASK]", "<mask>", "[SEP]", "<|endoftext|>", "<extra_id_0>",
                                 "<0x0A>", " ", "a", "<", "/s>"]), max_size=6).map("".join))  # fmt: skip
def test_names_of_specials_in_a_text_are_text(opened, name, text):
    vocabulary = opened[name].vocabulary
    ids = opened[name].encode(text)
    assert all(token == vocabulary.unknown or not vocabulary.table.is_special[token] for token in ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_names_are_read_where_asked_for(opened, name):
    tokenizer = opened[name]
    vocabulary, first = tokenizer.vocabulary, tokenizer.vocabulary.size - 1
    ids = tokenizer.encode("to<extra_id_0> the [NLU]is", specials=True).tolist()
    to, the, is_ = tokenizer.encode_many(["to", " the", "is"], [False, True, True])
    assert ids == [*to, first, *the, vocabulary.specials["[NLU]"], *is_]
    if name != "t5":  # which begins every part with a space
        assert tokenizer.decode(ids) == (
            "to<extra_id_0> the[NLU] is" if name == "bert" else "to<extra_id_0> the[NLU]is"
        )
    if MASK in vocabulary.specials:
        own = {"bart": "<mask>", "bert": "[MASK]"}[name]
        assert tokenizer.encode(f"{own}{MASK}", specials=True).tolist() == [vocabulary.specials[MASK]] * 2
        assert tokenizer.decode([vocabulary.specials[MASK]]) == own


def test_wordpiece_is_decoded_without_the_librarys_cleaning_up(folders, opened):
    ids = opened["bert"].encode("oils, rain. This!")  # of whose characters it has no "!"
    assert opened["bert"].decode(ids) == "oils , rain . this [UNK]"
    assert library(folders["bert"]).decode(ids) == "oils, rain. this"


def test_parts_show_what_is_no_text(opened):
    bert = opened["bert"]
    ids = [2, *bert.encode("the"), 4, *bert.encode("sat"), 3]
    assert bert.decode_parts(ids) == [("[CLS]", True), (" the", False), ("[MASK]", True), (" sat", False)]
    assert bert.decode_parts(ids, with_eos=True)[-1] == ("[SEP]", True)
    assert opened["gpt2"].decode([0, 999]) == "!<999>"


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_text_cut_before_a_lone_space_has_the_ids_of_the_whole(opened, name, data):
    text = data.draw(st.text("abe rt\n", min_size=3, max_size=40)) + data.draw(st.sampled_from([" a b", "z e"]))
    places = [i for i in range(1, len(text) - 1) if text[i] == " "]
    places = [i for i in places if not text[i - 1].isspace() and not text[i + 1].isspace()]
    cuts = sorted(data.draw(st.sets(st.sampled_from(places)))) if places else []
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ids = opened[name].encode_many(parts, [i > 0 for i in range(len(parts))])
    assert np.concatenate(ids).tolist() == opened[name].encode(text).tolist()


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab \n中", max_size=6), min_size=1, max_size=5))
def test_a_text_cut_anywhere_loses_nothing(opened, name, parts):
    parts[0] = "x" + parts[0]
    ids = opened[name].encode_many(parts, [i > 0 for i in range(len(parts))])
    assert opened[name].decode(np.concatenate(ids)) == "".join(parts)


def test_the_table_knows_words_sentences_and_bytes(opened):
    for name in ("gpt2", "bart", "llama", "llama by metaspace"):
        table, ids = opened[name].vocabulary.table, opened[name].encode("one. two\nthree? four")
        assert table.starts_word[ids].sum() == (4 if name.startswith("llama") else 3), name
        assert opened[name].decode(ids[: int(np.flatnonzero(table.ends_sentence[ids])[0]) + 1]) == "one."
        assert table.num_bytes[opened[name].encode("x🙂")].sum() == 5 + name.startswith("llama")
    bert = opened["bert"]
    ids = bert.encode("oilseed rain.")
    table = bert.vocabulary.table
    assert table.num_bytes[ids].sum() == len(" oilseed rain .")
    assert table.num_bytes_first[ids[0]] == table.num_bytes[ids[0]] - 1 and table.starts_word[ids].sum() == 3
    assert table.ends_sentence[ids].tolist() == [False] * (len(ids) - 1) + [True]


# Files


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_tokenizer_is_the_same_again(tmp_path, opened, name):
    tokenizer = opened[name]
    tokenizer.save(tmp_path / "tokenizer")
    assert {file.name for file in (tmp_path / "tokenizer").iterdir()} == {"tokenizer.json", "vocabulary.json"}
    again = load_tokenizer(str(tmp_path), 3, ())
    assert (again.sha256, again.begins_with_start) == (tokenizer.sha256, tokenizer.begins_with_start)
    one, other = (dataclasses.asdict(each.vocabulary) for each in (again, tokenizer))
    np.testing.assert_equal(one, other)
    assert again.encode(NAMES, specials=True).tolist() == tokenizer.encode(NAMES, specials=True).tolist()


def test_the_identity_covers_ids_and_roles_but_not_how_a_prompt_begins(tmp_path, folders):
    def sha(name="llama", sentinels=10, specials=()):
        return load_tokenizer(str(folders[name]), sentinels, specials).sha256

    assert len({sha(), sha(sentinels=9), sha(specials=("[NLU]",)), sha("gpt2")}) == 4
    assert sha("bert", specials=(MASK, CLS)) == sha("bert"), "they are its own"
    tokenizer = load_tokenizer(str(folders["gpt2"]), 10, ())
    tokenizer.begins_with_start = True
    tokenizer.save(tmp_path)
    again = load_tokenizer(str(tmp_path), 10, ())
    assert again.begins_with_start and again.sha256 == sha("gpt2")


@pytest.mark.parametrize("damaged", ["tokenizer.json", "vocabulary.json"])
def test_a_file_that_is_not_what_it_was_is_refused(tmp_path, opened, damaged):
    opened["llama"].save(tmp_path)
    file = tmp_path / damaged
    file.write_text(file.read_text().replace('"pad": null', '"pad": 7') + "\n")
    if damaged == "vocabulary.json":
        assert '"pad": 7' in file.read_text()
    with pytest.raises(UserError, match="damaged"):
        load_tokenizer(str(tmp_path), 0, ())


DAMAGE = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "no model": "{}",
    "a model of another kind": '{"model": {"type": "Markov", "vocab": {}}}',
    "an empty vocabulary": '{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
    "an id of billions": '{"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 4000000000}}}',
    "pieces of a wrong shape": '{"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a"], 3]}}',
    "added tokens of a wrong shape": '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [1]}',
    "nested too deeply": '{"model": {"vocab": ' + "[" * 10**5,
    "megabytes of something else": json.dumps({"model": ["x" * 1000] * 5000}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_tokenizer_json_that_is_none_is_a_clear_line(tmp_path, name):
    (tmp_path / "tokenizer.json").write_text(DAMAGE[name])
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    with pytest.raises(UserError, match=r"tokenizer\.json.*not a readable"):
        load_tokenizer(f"hf:{tmp_path}", 10, ())


def test_what_makes_the_library_panic_is_a_clear_line_and_no_trace(tmp_path, capfd):
    released.bart(tmp_path)
    file = tmp_path / "tokenizer.json"
    spec = json.loads(file.read_text())
    spec["post_processor"]["special_tokens"].popitem()
    file.write_text(json.dumps(spec))
    with pytest.raises(UserError, match=r"tokenizer\.json.*not a readable"):
        load_tokenizer(f"hf:{tmp_path}", 10, ())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("cut", [100, 5000, -2])
def test_half_a_file_is_a_clear_line(tmp_path, cut):
    released.llama(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text()[:cut])
    with pytest.raises(UserError, match=r"tokenizer\.json.*not a readable"):
        load_tokenizer(f"hf:{tmp_path}", 10, ())


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"sentinels": 3, "specials": []}'])
def test_a_damaged_vocabulary_file_is_a_clear_line(tmp_path, opened, damaged):
    opened["llama"].save(tmp_path)
    (tmp_path / "vocabulary.json").write_text(damaged)
    with pytest.raises(UserError, match=r"vocabulary\.json is damaged"):
        load_tokenizer(str(tmp_path), 10, ())


def test_roles_beyond_its_ids_are_refused(tmp_path, opened):
    opened["llama"].save(tmp_path)
    file = tmp_path / "vocabulary.json"
    file.write_text(file.read_text().replace('"eos": 2', '"eos": 99999'))
    with pytest.raises(UserError, match="not all among its"):
        load_tokenizer(str(tmp_path), 10, ())


def test_a_tokenizer_of_which_no_file_says_the_eos_is_refused(tmp_path):
    released.llama(tmp_path)
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="name that token as eos_token"):
        load_tokenizer(f"hf:{tmp_path}", 10, ())


def test_specials_may_be_named_in_the_map_alone(tmp_path):
    released.bart(tmp_path)
    (tmp_path / "tokenizer_config.json").rename(tmp_path / "special_tokens_map.json")
    assert load_tokenizer(f"hf:{tmp_path}", 10, ()).vocabulary.eos == 2
