"""A tokenizer that grows: what it lacks gets ids above, and every id that it had means what it meant."""

import itertools

import numpy as np
import pytest

from t5lite.data.tokenizers.export import export_tokenizer
from t5lite.data.tokenizers.text_tokenizer import extends
from t5lite.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from t5lite.data.tokenizers.training import sample_chunks, train_tokenizer
from t5lite.system.errors import UserError
from tests.data import released
from tests.data.tokenizers.test_tokenizer import T5_LIKE, like_mt5

PIECES = train_tokenizer(sample_chunks([released.prose(3)], 10**6), 320, sentinels=0).model
TEXTS = ["the sea, a ship.", " old\nman ▁ [MASK] <extra_id_0>", "é🙂", "</s> <fim_middle> z"]
MASK, FIM = ("[MASK]", "[CLS]", "[SEP]"), ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
# What may be asked of a tokenizer one after the other: (sentinels, specials).
WISHES = [(0, MASK), (20, ()), (0, FIM), (30, (*MASK, "[NLU]")), (7, FIM)]
FAMILIES = ("own", "t5", "mt5", "gpt2", "bert", "llama")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function that makes a tokenizer of a family without sentinels or specials beyond its own."""

    def make(family):
        if family in ("own", "t5"):
            return Tokenizer({"own": PIECES, "t5": T5_LIKE}[family], 0, ())
        if family == "mt5":
            return Tokenizer(like_mt5(1), 0, ())
        folder = getattr(released, family)(tmp_path_factory.mktemp(family))
        return load_tokenizer(f"hf:{folder}", 0, ())

    return make


def _assert_extends(after, before):
    """Every id of `before` is the same in `after`: of texts, of names, of sentinels by their number, back to text."""
    assert extends(after, before)
    for text in TEXTS:
        np.testing.assert_array_equal(after.encode(text), before.encode(text))
    for name in before.vocabulary.specials | dict.fromkeys(
        f"<extra_id_{k}>" for k in range(before.vocabulary.sentinels)
    ):
        text = f"the {name} sea"
        np.testing.assert_array_equal(after.encode(text, specials=True), before.encode(text, specials=True))
    old, new = before.vocabulary, after.vocabulary
    for token in range(old.rows):
        assert after.decode_parts([token], with_eos=True) == before.decode_parts([token], with_eos=True), token
    assert old.specials.items() <= new.specials.items()
    assert (old.eos, old.start, old.bos, old.unknown) == (new.eos, new.start, new.bos, new.unknown)
    if old.sentinels:
        assert (old.size, old.sentinels) == (new.size, new.sentinels)
    for name in ("num_bytes", "starts_word", "ends_sentence", "is_special"):
        np.testing.assert_array_equal(getattr(new.table, name)[: old.rows], getattr(old.table, name))
        assert len(getattr(new.table, name)) == new.rows
    assert after.begins_with_start == before.begins_with_start


@pytest.mark.parametrize("family", FAMILIES)
def test_every_id_means_the_same_in_whatever_order_a_tokenizer_grows(family, start, tmp_path):
    for number, wishes in enumerate(list(itertools.permutations(WISHES, 3))[::9]):
        tokenizer = start(family)
        for sentinels, specials in wishes:
            grown = tokenizer.grow(sentinels, specials)
            _assert_extends(grown, tokenizer)
            assert set(specials) <= set(grown.vocabulary.specials)
            had = tokenizer.vocabulary.sentinels
            assert grown.vocabulary.sentinels == (had or sentinels)
            assert sorted(grown.names) == sorted(set(grown.names)) and len(set(grown.names.values())) == len(
                grown.names
            )
            for k in range(grown.vocabulary.sentinels):
                assert grown.names[grown.vocabulary.size - 1 - k] == f"<extra_id_{k}>"
                assert grown.vocabulary.table.is_special[grown.vocabulary.size - 1 - k]
            tokenizer = grown
        tokenizer.save(tmp_path / f"{number}" / "tokenizer")
        again = load_tokenizer(str(tmp_path / f"{number}"), 0, ())
        assert again.sha256 == tokenizer.sha256 and again.names == tokenizer.names
        assert again.grow(again.vocabulary.sentinels, tuple(again.vocabulary.specials)) is again, "it has them"


@pytest.mark.parametrize("family", FAMILIES)
def test_growth_in_one_step_is_what_a_config_asks_for_at_once(family, start):
    """Sentinels and specials that are new together stand as in a tokenizer that was made with both."""
    bare = start(family)
    grown = bare.grow(20, MASK)
    if isinstance(bare, Tokenizer):
        assert grown.sha256 == Tokenizer(bare.model, 20, MASK).sha256
    assert not extends(bare, grown) and extends(grown, bare)


def test_other_pieces_other_roles_and_moved_names_are_no_growth(start):
    a, b = Tokenizer(PIECES, 20, MASK), Tokenizer(PIECES, 20, MASK[::-1])
    assert not extends(b, a) and not extends(a, b)
    assert not extends(Tokenizer(T5_LIKE, 20, MASK), a)
    assert not extends(Tokenizer(PIECES, 21, MASK), a), "its sentinels have other ids"
    assert extends(Tokenizer(PIECES, 20, (*MASK, *FIM)), a)
    assert not extends(start("gpt2"), start("llama"))


def test_a_grown_tokenizer_is_published_with_its_ids_or_not_at_all(tmp_path):
    grown = Tokenizer(PIECES, 0, FIM).grow(20, ())
    assert grown.specials_below == 3 and grown.decode([grown.vocabulary.pieces - 1]) == FIM[-1]
    (tmp_path / "own").mkdir()
    export_tokenizer(grown, tmp_path / "own", "decoder", closes=False)  # checks every name's id
    (tmp_path / "t5").mkdir()
    with pytest.raises(UserError, match="<fim_prefix> has an id below the sentinels"):
        export_tokenizer(Tokenizer(T5_LIKE, 0, FIM).grow(20, ()), tmp_path / "t5", "decoder", closes=False)
