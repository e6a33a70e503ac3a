"""The tokenizer: nothing of a text is lost, ids stand where T5 has them, the same text gives the same model."""

import contextlib
import io
import json
import os
import random

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2

from t5lite.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from t5lite.data.tokenizers.training import sample_chunks, train_tokenizer
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS, PAD, UNKNOWN
from tests.data import released


def prose(seed, words=4000):
    rng = random.Random(seed)
    known = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 7))) for _ in range(300)]
    return "".join(rng.choice(known) + rng.choice([" ", " ", " ", ". ", ", ", "\n", "\n\n  "]) for _ in range(words))


TEXT = prose(0)
OWN = train_tokenizer(sample_chunks([TEXT], 10**6), 400, sentinels=100, specials=("[MASK]", "[CLS]"))


def train_like_t5(vocab_size=200, **options):
    """A model with SentencePiece's own defaults, as T5's is."""
    model = io.BytesIO()
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} | options
    lines = [line for line in TEXT.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab_size, minloglevel=2, **ids
    )
    return model.getvalue()


T5_LIKE = train_like_t5()
KEEPS_SPACES = train_like_t5(remove_extra_whitespaces=False)


ODD_TEXTS = [
    *["", " ", "  a  ", "a\n", "\n\n a", "\t\ta\tb", "a\r\nb\rc", "\0", "a\0b", "é", "e\u0301", "ｆｕｌｌ", "ﬁ", "…"],
    *["🙂👩\u200d👩", "▁", "a▁b ▁▁ c▁", "</s><pad><unk><0x41>", "<extra_id_0>[MASK]", "⁇ ▅ \ufffd", "中文" * 3000],
    "\u2028\u0085\x0b\x0c\u3000\u00a0",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_what_is_encoded_is_decoded_to_the_same_text(text):
    assert OWN.decode(OWN.encode(text)) == text
    assert OWN.decode([*OWN.encode(text), EOS, PAD]) == text


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text("ab ▁\n\t\0é🙂", max_size=30))
def test_any_text_survives_the_round_trip(text):
    ids = OWN.encode(text)
    assert OWN.decode(ids) == text
    table = OWN.vocabulary.table
    # Without the space that SentencePiece puts in front.
    assert table.num_bytes_first[ids[:1]].sum() + table.num_bytes[ids[1:]].sum() == len(text.encode())
    assert not table.is_special[ids].any()


@pytest.mark.parametrize("text", ["中文" * 3000, "x" * 500, "a\tb\tc"])
def test_nothing_is_lost_where_the_training_text_has_no_space_or_few_characters(text):
    chunks = sample_chunks([text], 10**6)
    with pytest.raises(UserError) as caught:
        train_tokenizer(chunks, 5000)
    most = int(str(caught.value).rpartition("at most ")[2].split()[0])
    tokenizer = train_tokenizer(chunks, most)
    for sample in (text, " a  b ", TEXT[:500]):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_the_same_text_gives_the_same_model_byte_for_byte():
    chunks = sample_chunks([TEXT], 10**6)
    assert train_tokenizer(chunks, 400).model == OWN.model
    assert train_tokenizer(chunks[:-1], 400).model != OWN.model


def test_identity_covers_the_model_the_sentinels_and_the_specials():
    def sha(*args):
        return Tokenizer(*args).sha256

    assert OWN.sha256 == sha(OWN.model, 100, ("[MASK]", "[CLS]"))
    others = {sha(OWN.model, 99, ("[MASK]", "[CLS]")), sha(OWN.model, 100, ("[CLS]", "[MASK]")), sha(T5_LIKE, 100, ())}
    assert len(others | {OWN.sha256}) == 4


def test_the_kth_sentinel_is_v_minus_k_and_specials_stand_above():
    vocabulary = OWN.vocabulary
    assert (vocabulary.pieces, vocabulary.size, vocabulary.rows) == (400, 500, 502)
    assert OWN.decode([vocabulary.size - 1]) == "<extra_id_0>"
    assert OWN.decode([vocabulary.size - 100]) == "<extra_id_99>"
    assert vocabulary.specials == {"[MASK]": 500, "[CLS]": 501}
    assert vocabulary.table.is_special[[PAD, EOS, UNKNOWN, *range(400, 502)]].all()
    assert vocabulary.table.num_bytes[[PAD, EOS, UNKNOWN, *range(400, 502)]].sum() == 0
    assert not vocabulary.table.is_special[3:400].any()


def test_a_given_t5_model_keeps_its_first_sentinel_99_above_the_pieces():
    tokenizer = Tokenizer(T5_LIKE, 100)
    assert tokenizer.decode([200 + 99]) == "<extra_id_0>"
    assert tokenizer.encode("<extra_id_0>", specials=True).tolist() == [299]


def like_mt5(kind):
    """A model whose last pieces are its sentinels."""
    model = sentencepiece_model_pb2.ModelProto.FromString(T5_LIKE)
    for k in reversed(range(30)):
        model.pieces.add(piece=f"▁<extra_id_{k}>", score=0.0, type=kind)
    return model.SerializeToString()


NORMAL, USER_DEFINED = 1, 4


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED])
def test_sentinels_that_are_the_models_own_last_pieces_stay_and_text_is_none_of_them(tmp_path, kind):
    (tmp_path / "spiece.model").write_bytes(like_mt5(kind))
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 0}')
    tokenizer = load_tokenizer(f"hf:{tmp_path}", 100, ("[NLU]",))
    vocabulary = tokenizer.vocabulary
    assert (vocabulary.pieces, vocabulary.sentinels, vocabulary.rows) == (200, 30, 231)
    assert tokenizer.decode([229]) == "<extra_id_0>" and vocabulary.table.is_special[200:].all()
    ids = tokenizer.encode("one <extra_id_29> two", specials=True)
    assert ids.tolist() == [*tokenizer.encode("one"), 200, *tokenizer.encode("two")]
    for text in ("one <extra_id_29> two", " <extra_id_0>", "<extra_id_1><extra_id_2>"):
        assert max(tokenizer.encode(text)) < 200
    tokenizer.save(tmp_path / "tokenizer")
    again = load_tokenizer(str(tmp_path / "tokenizer"), 3, ())
    assert again.sha256 == tokenizer.sha256 and again.vocabulary.pieces == 200


def test_a_release_of_t5_has_the_sentinels_that_its_config_says(tmp_path):
    (tmp_path / "spiece.model").write_bytes(T5_LIKE)
    assert load_tokenizer(f"hf:{tmp_path}", 7, ()).vocabulary.sentinels == 7
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 12}')
    assert load_tokenizer(f"hf:{tmp_path}", 7, ()).vocabulary.sentinels == 12
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": "many"}')
    with pytest.raises(UserError, match=r"tokenizer_config\.json is damaged"):
        load_tokenizer(f"hf:{tmp_path}", 7, ())


def test_a_release_whose_spiece_model_has_other_ids_goes_by_its_tokenizer_json(tmp_path):
    (tmp_path / "spiece.model").write_bytes(train_like_t5(pad_id=-1, unk_id=0, bos_id=1, eos_id=2))
    with pytest.raises(UserError, match=r"spiece\.model.*t5lite needs"):
        load_tokenizer(f"hf:{tmp_path}", 7, ())
    released.llama(tmp_path)
    assert load_tokenizer(f"hf:{tmp_path}", 7, ()).vocabulary.eos == 2


def test_the_table_knows_words_and_sentences():
    ids = OWN.encode("one. two\nthree? four")
    table = OWN.vocabulary.table
    assert table.starts_word[ids].sum() == 4  # with the line break, which stands for the start of "three"
    assert OWN.decode(ids[: int(np.flatnonzero(table.ends_sentence[ids])[0]) + 1]) == "one."


@pytest.mark.parametrize("model", [OWN.model, T5_LIKE], ids=["own", "T5's"])
def test_sentinels_are_read_from_text_only_when_asked_for(model):
    tokenizer = Tokenizer(model, 100, ("[MASK]",))
    first, second, mask = (tokenizer.vocabulary.size + i for i in (-1, -2, 0))
    assert max(tokenizer.encode("one <extra_id_0> [MASK]")) < tokenizer.vocabulary.pieces
    ids = tokenizer.encode("one<extra_id_0> that <extra_id_1>[MASK] three", specials=True).tolist()
    expected = [*tokenizer.encode("one"), first, *tokenizer.encode("that"), second, mask, *tokenizer.encode("three")]
    assert ids == expected
    assert tokenizer.encode("one <extra_id_0> that<extra_id_1>[MASK] three", specials=True).tolist() == expected
    assert tokenizer.decode(ids) == "one<extra_id_0> that<extra_id_1>[MASK] three"


def test_text_within_a_word_goes_on_after_a_sentinel():
    ids = OWN.encode("li<extra_id_3>no", specials=True)
    assert OWN.decode(ids) == "li<extra_id_3>no"
    assert not OWN.vocabulary.table.starts_word[ids[ids.tolist().index(496) + 1]]


def test_specials_are_read_where_there_are_no_names_or_nothing_else():
    bare = Tokenizer(OWN.model, 0, ())
    assert bare.encode("<extra_id_0>", specials=True).tolist() == OWN.encode("<extra_id_0>").tolist()
    assert OWN.encode("", specials=True).tolist() == []
    assert OWN.encode("[CLS]<extra_id_10>", specials=True).tolist() == [501, 489]


def test_ids_beyond_the_vocabulary_are_shown_by_number():
    assert OWN.decode([*OWN.encode("a"), 600]) == "a<600>"


def test_control_pieces_have_no_text():
    tokenizer = Tokenizer(train_like_t5(control_symbols=["<turn>"]), 4)
    ids = tokenizer.encode("the sea").tolist()
    turn = tokenizer._pieces.piece_to_id("<turn>")
    assert tokenizer.decode([turn, *ids, turn]) == tokenizer.decode(ids)


@pytest.mark.parametrize("model", [OWN.model, T5_LIKE, KEEPS_SPACES], ids=["own", "T5's", "keeps spaces"])
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_text_cut_before_a_lone_space_has_the_ids_of_the_whole(model, data):
    tokenizer = Tokenizer(model)
    text = data.draw(st.text("abe rt▁\n", min_size=3, max_size=40)) + data.draw(st.sampled_from([" a b", "z e"]))
    places = [i for i in range(1, len(text) - 1) if text[i] == " " and not (text[i - 1] + text[i + 1]).isspace()]
    places = [i for i in places if not text[i - 1].isspace() and not text[i + 1].isspace()]
    cuts = sorted(data.draw(st.sets(st.sampled_from(places)))) if places else []
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ids = tokenizer.encode_many(parts, [i > 0 for i in range(len(parts))])
    assert np.concatenate(ids).tolist() == tokenizer.encode(text).tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab ▁\n中", max_size=6), min_size=1, max_size=5))
def test_a_text_cut_anywhere_loses_nothing(parts):
    """All but a document that starts with an empty part, which no source cuts off."""
    parts[0] = "x" + parts[0]
    ids = OWN.encode_many(parts, [i > 0 for i in range(len(parts))])
    assert OWN.decode(np.concatenate(ids)) == "".join(parts)


def test_many_texts_are_encoded_like_each_alone():
    texts = ["", *TEXT.split("\n")[:50], "a▁b"]
    assert [ids.tolist() for ids in OWN.encode_many(texts)] == [OWN.encode(text).tolist() for text in texts]
    assert OWN.encode_many([]) == []
    assert {ids.dtype for ids in OWN.encode_many(texts)} == {np.dtype(np.int32)}


# The sample that a tokenizer is trained on


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab é\0", max_size=5000), max_size=8), st.integers(1, 8000), st.integers(0, 3))
def test_the_sample_is_bounded_in_order_and_a_function_of_its_inputs(texts, num_bytes, seed):
    chunks = sample_chunks(texts, num_bytes, seed)
    assert chunks == sample_chunks(iter(texts), num_bytes, seed)
    assert sum(len(chunk.encode()) for chunk in chunks) <= num_bytes or len(chunks) == 1
    everything = iter(sample_chunks(texts, 10**9))
    assert all(chunk in everything for chunk in chunks)  # a subsequence


def test_the_sample_is_all_of_a_short_text_and_a_spread_of_a_long_one():
    numbered = [f"{i:04d} {'x' * 995}" for i in range(1000)]
    assert sample_chunks(numbered, 10**6) == numbered
    kept = [int(chunk[:4]) for chunk in sample_chunks(numbered, 200_000)]
    assert len(kept) == 200
    assert all(kept.count(i) <= 1 for i in kept)
    # Mean of 200 of 0…999 without replacement: 499.5 ± 18.3; five of these are a false alarm once in 1.7 million.
    assert abs(np.mean(kept) - 499.5) < 5 * 18.3
    assert kept != [int(chunk[:4]) for chunk in sample_chunks(numbered, 200_000, seed=1)]


# Errors


def test_a_vocabulary_too_large_for_the_text_is_told_the_most_that_is_possible():
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size.*too short for 50000 pieces; at most \d+"):
        train_tokenizer(sample_chunks([TEXT], 10**6), 50_000)


def test_a_vocabulary_too_small_for_bytes_and_characters_is_told_the_least_that_is_possible():
    chunks = sample_chunks([TEXT], 10**6)
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size: 100 pieces are too few; .* at least \d+$") as raised:
        train_tokenizer(chunks, 100)
    least = int(str(raised.value).rpartition(" ")[2])
    with pytest.raises(UserError, match=f"{least - 1} pieces are too few; .* at least {least}$"):
        train_tokenizer(chunks, least - 1)
    assert train_tokenizer(chunks, least).vocabulary.pieces == least


@pytest.mark.parametrize("texts", [[], [""], [" \n\0"]])
def test_a_text_without_text_trains_no_tokenizer(texts):
    with pytest.raises(UserError, match="has no text"):
        train_tokenizer(sample_chunks(texts, 1000), 300)


OTHER_IDS = {"llama": {"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2}, "swapped": {"pad_id": 1, "eos_id": 0}}


@pytest.mark.parametrize("name", OTHER_IDS)
def test_a_model_with_other_pad_or_eos_ids_is_refused_by_name(tmp_path, name):
    (tmp_path / f"{name}.model").write_bytes(train_like_t5(**OTHER_IDS[name]))
    with pytest.raises(UserError, match=rf"{name}\.model.*t5lite needs \(0, 1, 2\)"):
        load_tokenizer(str(tmp_path / f"{name}.model"), 100, ())


@pytest.mark.parametrize("damaged", [b"", b"junk", OWN.model[:1000], OWN.model[:-3]])
def test_a_damaged_model_is_a_clear_error(tmp_path, damaged):
    (tmp_path / "a.model").write_bytes(damaged)
    with pytest.raises(UserError, match=r"a\.model"):
        load_tokenizer(str(tmp_path / "a.model"), 100, ())


@pytest.mark.parametrize("damaged", ["", "{", "[]", "{}", '{"sentinels": "x", "specials": []}', '{"sentinels": 3}'])
def test_a_damaged_vocabulary_file_is_a_clear_error(tmp_path, damaged):
    OWN.save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "vocabulary.json").write_text(damaged)
    with pytest.raises(UserError, match=r"vocabulary\.json is damaged"):
        load_tokenizer(str(tmp_path), 100, ())


@pytest.mark.parametrize("damaged", ["pieces.model", "vocabulary.json"])
def test_a_tokenizer_of_which_a_file_is_not_what_it_was_is_refused(tmp_path, damaged):
    OWN.save(tmp_path)
    if damaged == "pieces.model":
        (tmp_path / damaged).write_bytes(train_tokenizer(sample_chunks([TEXT], 10**6), 410).model)
    else:
        (tmp_path / damaged).write_text((tmp_path / damaged).read_text().replace("[MASK]", "[MASH]"))
    with pytest.raises(UserError, match=r"is damaged.*delete it if it is in the cache"):
        load_tokenizer(str(tmp_path), 0, ())


def test_a_model_without_a_digest_beside_it_is_read(tmp_path):
    OWN.save(tmp_path)
    (tmp_path / "vocabulary.json").write_text('{"sentinels": 3, "specials": []}')
    assert load_tokenizer(str(tmp_path), 0, ()).vocabulary.sentinels == 3


def test_bytes_of_a_model_that_changed_are_read_or_refused(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(100):
        content = bytearray(OWN.model)
        for place in rng.integers(len(content), size=3):
            content[place] ^= 1 << rng.integers(8)
        (tmp_path / "a.model").write_bytes(content)
        with contextlib.suppress(UserError):
            loaded = load_tokenizer(str(tmp_path / "a.model"), 3, ())
            loaded.decode(loaded.encode("the sea\nand ▁ é"))


@pytest.mark.parametrize("specials", [("",), ("[A]", "[A]"), ("<extra_id_0>",)])
def test_names_of_specials_are_their_own(specials):
    with pytest.raises(UserError, match=r"tokenizer\.specials"):
        Tokenizer(OWN.model, 3, specials)


@pytest.mark.parametrize("sentinels", [-1, 10**12])
def test_the_number_of_sentinels_is_bounded(sentinels):
    with pytest.raises(UserError, match=r"tokenizer\.sentinels"):
        Tokenizer(OWN.model, sentinels)


def test_a_pipe_or_a_name_too_long_is_no_tokenizer(tmp_path):
    os.mkfifo(tmp_path / "a.model")
    for path in (tmp_path / "a.model", "/dev/zero", "a" * 5000):
        with pytest.raises(UserError):
            load_tokenizer(str(path), 3, ())


# Loading


def test_a_workdir_brings_its_own_sentinels_and_specials(tmp_path):
    OWN.save(tmp_path / "tokenizer")
    for place in (tmp_path, tmp_path / "tokenizer"):
        loaded = load_tokenizer(str(place), 7, ("[OTHER]",))
        assert loaded.sha256 == OWN.sha256
        assert loaded.vocabulary.specials == OWN.vocabulary.specials
    assert json.loads((tmp_path / "tokenizer" / "vocabulary.json").read_text())["sentinels"] == 100


def test_a_model_file_and_a_hugging_face_folder_get_those_of_the_config(tmp_path):
    (tmp_path / "spiece.model").write_bytes(T5_LIKE)
    for path in (str(tmp_path / "spiece.model"), f"hf:{tmp_path}", str(tmp_path)):
        loaded = load_tokenizer(path, 7, ("[OTHER]",))
        assert loaded.model == T5_LIKE
        assert (loaded.vocabulary.size, loaded.vocabulary.specials) == (207, {"[OTHER]": 207})


def test_a_place_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        load_tokenizer(str(tmp_path), 100, ())
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_tokenizer(f"hf:{tmp_path}/nowhere", 100, ())
