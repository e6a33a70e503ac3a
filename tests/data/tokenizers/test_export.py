"""A tokenizer that is exported gives the ids, in transformers, that training and generation here give the model."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from t5lite.data.tokenizers.export import export_tokenizer, make_frame
from t5lite.data.tokenizers.sentence_pieces import OWN_NAMES
from t5lite.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from t5lite.data.tokenizers.training import sample_chunks, train_tokenizer
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS, PAD, UNKNOWN
from tests.data import released
from tests.data.tokenizers.test_tokenizer import ODD_TEXTS, OWN, T5_LIKE, TEXT, like_mt5

FOR_ENCODER = Tokenizer(OWN.model, 0, ("[MASK]", "[CLS]", "[SEP]"))
BITS = ["a", "the ", " ", "  ", "\n", "\t", "▁", "é", "🙂", "<", "0x", "<0x41>", "0x41>", "<extra_id_3>", 
        "<extra_id_30>", " <extra_id_0> ", "[MASK]", "[CLS", "]"]  # fmt: skip
TEXTS = st.lists(st.sampled_from(BITS), max_size=20).map("".join) | st.text(max_size=40)
FAMILIES = {
    "gpt2": (released.gpt2, "decoder", False, "gpt2"),
    "neox": (released.neox, "decoder", False, "gpt2"),
    "bart": (released.bart, "encoder_decoder", True, "bart"),
    "bert": (released.bert, "encoder", True, "bert"),
    "llama": (released.llama, "decoder", False, "llama"),
    "t5": (released.t5, "encoder_decoder", True, "t5"),
}


def written(tokenizer, folder, architecture="encoder_decoder", closes=True):
    """(the tokenizer of the library, tokenizer_config.json, what config.json is to say)."""
    folder.mkdir(exist_ok=True)
    ids = export_tokenizer(tokenizer, folder, architecture, closes)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    library = Library.from_file(str(folder / "tokenizer.json"))
    library.no_padding()
    return library, said, ids


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return written(OWN, tmp_path_factory.mktemp("own"))[0]


# Trained here


def assert_same(library, text):
    ids = OWN.encode(text, specials=True).tolist()
    assert library.encode(text, add_special_tokens=False).ids == ids
    assert library.decode(ids, skip_special_tokens=False) == OWN.decode(ids)


@pytest.mark.parametrize("text", [text for text in ODD_TEXTS if "</s>" not in text])
def test_odd_texts_have_our_ids_and_our_text(own, text):
    assert_same(own, text)


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_any_text_has_our_ids_and_our_text(own, text):
    if not any(name in text for name in OWN_NAMES.values()):
        assert_same(own, text)


def test_prose_has_our_ids(own):
    for start in range(0, len(TEXT) - 300, 97):
        assert_same(own, TEXT[start : start + 300])


def test_names_of_roles_are_these_tokens_there(own):
    assert own.encode("<pad></s><unk>", add_special_tokens=False).ids == [PAD, EOS, UNKNOWN]
    assert not {PAD, EOS, UNKNOWN} & set(OWN.encode("<pad></s><unk>", specials=True))


def test_the_name_of_a_byte_is_text_where_a_piece_goes_across_its_first_cut(tmp_path):
    tokenizer = train_tokenizer(sample_chunks(["<0 a<0 it<0 the<0 so<0"] * 500 + [TEXT], 10**6), 400, 0)
    library = written(tokenizer, tmp_path)[0]
    assert "<0" in tokenizer.pieces_and_scores()[0]
    for text in ("a<0x41>", "<0x41><0xC3>", "the<0"):
        assert library.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).tolist()


@pytest.mark.parametrize(
    ("tokenizer", "architecture", "closes", "expected"),
    [
        (OWN, "encoder_decoder", True, [..., EOS]),
        (OWN, "encoder_decoder", False, [...]),
        (OWN, "decoder", False, [PAD, ...]),
        (OWN, "decoder", True, [PAD, ..., EOS]),
        (FOR_ENCODER, "encoder", True, [401, ..., 402]),
    ],
)
def test_a_text_stands_between_what_the_model_has_around_it(tokenizer, architecture, closes, expected, tmp_path):
    library, _, _ = written(tokenizer, tmp_path, architecture, closes)
    at, ids = expected.index(...), tokenizer.encode("the oil").tolist()
    assert library.encode("the oil").ids == [*expected[:at], *ids, *expected[at + 1 :]]


def test_files_name_the_roles(tmp_path):
    _, said, ids = written(OWN, tmp_path / "pairs")
    assert ids == {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast" and "bos_token" not in said
    assert (said["pad_token"], said["eos_token"], said["unk_token"]) == ("<pad>", "</s>", "<unk>")
    assert said["model_input_names"] == ["input_ids", "attention_mask"]
    _, said, ids = written(OWN, tmp_path / "decoder", "decoder", False)
    assert ids == {"pad_token_id": 2, "eos_token_id": 1, "bos_token_id": 0}, "padding is not what a text begins with"
    assert (said["bos_token"], said["pad_token"], said["padding_side"]) == ("<pad>", "<unk>", "left")
    _, said, _ = written(FOR_ENCODER, tmp_path / "encoder", "encoder")
    assert (said["mask_token"], said["cls_token"], said["sep_token"]) == ("[MASK]", "[CLS]", "[SEP]")
    assert "token_type_ids" in said["model_input_names"]


@pytest.mark.parametrize("tokenizer", [OWN, Tokenizer(T5_LIKE, 7, ("[NLU]",)), Tokenizer(like_mt5(4))])
def test_what_was_exported_is_opened_here_as_what_it_was(tokenizer, tmp_path):
    export_tokenizer(tokenizer, tmp_path, "encoder_decoder", True)
    assert load_tokenizer(f"hf:{tmp_path}", 3, ()).sha256 == tokenizer.sha256


# From elsewhere


@pytest.mark.parametrize(("tokenizer", "extra"), [(Tokenizer(T5_LIKE, 7, ("[NLU]",)), 7), (Tokenizer(like_mt5(4)), 0)])
def test_a_model_of_t5s_kind_stays_with_the_class_that_reads_it(tokenizer, extra, tmp_path):
    ids = export_tokenizer(tokenizer, tmp_path, "encoder_decoder", True)
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (tmp_path / "spiece.model").read_bytes() == tokenizer.model
    assert (said["tokenizer_class"], said["extra_ids"]) == ("T5Tokenizer", extra)
    assert {token: each["content"] for token, each in said["added_tokens_decoder"].items()} == (
        {"207": "[NLU]"} if extra else {}
    )
    assert ids == {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_json_stays_as_it_was_where_it_has_all(name, tmp_path):
    make, architecture, closes, _ = FAMILIES[name]
    tokenizer = load_tokenizer(f"hf:{make(tmp_path / 'source')}", 0, ())
    _, said, ids = written(tokenizer, tmp_path / "to", architecture, closes)
    assert (tmp_path / "to" / "tokenizer.json").read_bytes() == tokenizer.content
    assert ids.get("eos_token_id", tokenizer.vocabulary.eos) == tokenizer.vocabulary.eos
    assert ("decoder_start_token_id" in ids) == (architecture == "encoder_decoder")
    assert ("bos_token" in said) == (name not in ("bert", "t5"))


@pytest.mark.parametrize("name", FAMILIES)
def test_sentinels_and_specials_above_a_tokenizer_json_have_our_ids(name, tmp_path):
    make, architecture, closes, _ = FAMILIES[name]
    tokenizer = load_tokenizer(f"hf:{make(tmp_path / 'source')}", 10, ("[NLU]",))
    library, _, _ = written(tokenizer, tmp_path / "to", architecture, closes)
    last = tokenizer.vocabulary.size - 1
    for text in ("to<extra_id_0>", "[NLU]", "to", *(["to <extra_id_1>"] if name != "t5" else [])):  # whose are its own
        ids = tokenizer.encode(text, specials=True).tolist()
        assert library.encode(text, add_special_tokens=False).ids == ids
    assert library.token_to_id("<extra_id_0>") == last and library.token_to_id("[NLU]") == last + 1


def test_a_text_begins_with_start_where_training_had_it_so(tmp_path):
    tokenizer = load_tokenizer(f"hf:{released.gpt2(tmp_path / 'source')}", 0, ())
    tokenizer.begins_with_start = True
    library, said, ids = written(tokenizer, tmp_path / "to", "decoder", False)
    assert library.encode("to").ids == [400, *tokenizer.encode("to")]
    assert said["bos_token"] == "<|endoftext|>" and ids["bos_token_id"] == 400


def test_ids_that_no_tokenizer_json_has_are_refused(tmp_path):
    """Those above a vocabulary with a gap: the library fills it."""
    spec = {"model": {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1, "b": 7}, "unk_token": "a"}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = load_tokenizer(f"hf:{tmp_path}", 2, ())
    with pytest.raises(UserError, match=r"<extra_id_\d> has id \d+, but in a tokenizer\.json it would have"):
        export_tokenizer(tokenizer, tmp_path, "encoder_decoder", True)


# Where transformers is installed


def cases():
    yield "own", lambda _: OWN, "encoder_decoder", True, "t5"
    yield "own, decoder", lambda _: OWN, "decoder", False, "llama"
    yield "own, encoder", lambda _: FOR_ENCODER, "encoder", True, "bert"
    yield "t5", lambda _: Tokenizer(T5_LIKE, 100, ("[NLU]",)), "encoder_decoder", True, "t5"
    for name, (make, architecture, closes, model_type) in FAMILIES.items():
        opened = lambda folder, make=make: load_tokenizer(f"hf:{make(folder)}", 10, ("[NLU]",))
        yield name, opened, architecture, closes, model_type


@pytest.mark.parametrize(
    ("name", "make", "architecture", "closes", "model_type"), list(cases()), ids=lambda x: str(x)[:12]
)
def test_transformers_gives_our_ids(name, make, architecture, closes, model_type, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: no live comparison")
    tokenizer = make(tmp_path / "source")
    (tmp_path / "to").mkdir()
    ids = export_tokenizer(tokenizer, tmp_path / "to", architecture, closes)
    (tmp_path / "to" / "config.json").write_text(json.dumps({"model_type": model_type, **ids}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "to")
    frame = make_frame(tokenizer, architecture, closes)
    texts = [line for line in TEXT.split("\n") if not line.startswith(" ")][:100]
    texts += ["to<extra_id_1>"] if tokenizer.vocabulary.sentinels else []
    for text in texts:
        own = tokenizer.encode(text, specials=True).tolist()
        assert theirs(text)["input_ids"] == [token for token in (frame.front, *own, frame.last) if token is not None]
        if name.startswith("own"):
            assert theirs.decode(own, skip_special_tokens=False) == tokenizer.decode(own)
    for role in ("pad", "eos", "bos"):
        assert ids.get(f"{role}_token_id", getattr(theirs, f"{role}_token_id")) == getattr(theirs, f"{role}_token_id")
