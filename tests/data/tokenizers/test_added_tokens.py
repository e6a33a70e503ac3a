"""Tokens that a release's files add have their ids, or the release is refused: none is dropped."""

import json

import pytest

from t5lite.data.tokenizers.tokenizer import load_tokenizer
from t5lite.system.errors import UserError
from tests.data import released
from tests.data.tokenizers.test_tokenizer import T5_LIKE

FAMILIES = {name: getattr(released, name) for name in ("gpt2", "neox", "bart", "bert", "llama")}


def say(folder, file, **fields):
    """Set fields of a JSON file."""
    path = folder / file
    said = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(said | fields))


@pytest.fixture(params=FAMILIES)
def family(request, tmp_path):
    folder = FAMILIES[request.param](tmp_path / "release")
    return folder, load_tokenizer(f"hf:{folder}", 0, ()).vocabulary.rows


HOW = {
    "added_tokens.json": lambda folder, rows: say(folder, "added_tokens.json", **{"<tool>": rows}),
    "decoder": lambda folder, rows: say(
        folder, "tokenizer_config.json", added_tokens_decoder={str(rows): {"content": "<tool>", "special": True}}
    ),
    "config's names": lambda folder, rows: say(
        folder, "tokenizer_config.json", additional_special_tokens=[{"content": "<tool>"}]
    ),
    "names": lambda folder, rows: say(folder, "special_tokens_map.json", additional_special_tokens=["<tool>"]),
}


@pytest.mark.parametrize("how", HOW)
def test_an_added_token_has_its_id_whichever_file_names_it(how, family):
    folder, rows = family
    HOW[how](folder, rows)
    tokenizer = load_tokenizer(f"hf:{folder}", 0, ())
    assert tokenizer.vocabulary.rows == rows + 1
    assert rows in tokenizer.encode("the <tool> sea", specials=True)
    assert "<tool>" in tokenizer.decode([rows])
    tokenizer.save(folder.parent / "run" / "tokenizer")
    assert load_tokenizer(str(folder.parent / "run"), 0, ()).sha256 == tokenizer.sha256


def test_files_that_add_nothing_change_nothing(family):
    folder, _ = family
    before = load_tokenizer(f"hf:{folder}", 0, ()).sha256
    spec = json.loads((folder / "tokenizer.json").read_text())
    decoder = {str(each["id"]): each for each in spec["added_tokens"]}
    say(folder, "tokenizer_config.json", added_tokens_decoder=decoder)
    assert load_tokenizer(f"hf:{folder}", 0, ()).sha256 == before


WRONG = {
    "another's id": (lambda f, rows: say(f, "added_tokens.json", **{"<tool>": 5}), "'<tool>' has id 5, which .* gives"),
    "a gap": (lambda f, rows: say(f, "added_tokens.json", **{"<tool>": rows + 7}), "'<tool>' should have id"),
    "two ids": (
        lambda f, rows: (say(f, "added_tokens.json", **{"<tool>": rows}), 
                         say(f, "tokenizer_config.json", added_tokens_decoder={str(rows + 1): {"content": "<tool>"}})),
        "'<tool>' has id .*, but .* in another file",
    ),
    "one id": (lambda f, rows: say(f, "added_tokens.json", **{"<a>": rows, "<b>": rows}), "'<a>' and '<b>' both"),
    "no list": (lambda f, rows: say(f, "special_tokens_map.json", additional_special_tokens=3), "should be a list"),
    "a text for a list": (
        lambda f, rows: say(f, "special_tokens_map.json", additional_special_tokens="<x>"), "should be a list"),
    "no object": (lambda f, rows: say(f, "tokenizer_config.json", added_tokens_decoder=[1]), "damaged"),
    "newer names": (lambda f, rows: say(f, "tokenizer_config.json", extra_special_tokens={"tool": 3}), "be names"),
    "no names": (lambda f, rows: say(f, "special_tokens_map.json", additional_special_tokens=[3]), "should be names"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_ids_that_cannot_be_are_refused(name, family):
    folder, rows = family
    change, message = WRONG[name]
    change(folder, rows)
    with pytest.raises(UserError, match=message):
        load_tokenizer(f"hf:{folder}", 0, ())


def test_normalisation_that_two_files_tell_differently_is_refused(tmp_path):
    folder = released.bert(tmp_path / "bert")
    say(folder, "tokenizer_config.json", do_lower_case=True, strip_accents=None)
    load_tokenizer(f"hf:{folder}", 0, ())
    say(folder, "tokenizer_config.json", do_lower_case=False)
    with pytest.raises(UserError, match=r"do_lower_case=False contradicts lowercase=True of tokenizer\.json"):
        load_tokenizer(f"hf:{folder}", 0, ())
    folder = released.gpt2(tmp_path / "gpt2")
    say(folder, "tokenizer_config.json", add_prefix_space=True)
    with pytest.raises(UserError, match="add_prefix_space=True contradicts"):
        load_tokenizer(f"hf:{folder}", 0, ())


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [("gpt2", "add_bos_token", True), ("bart", "add_bos_token", False), ("gpt2", "add_eos_token", True)],
)
def test_ends_of_a_text_that_two_files_tell_differently_are_refused(family, field, value, tmp_path):
    folder = getattr(released, family)(tmp_path / family)
    say(folder, "tokenizer_config.json", **{field: not value})
    load_tokenizer(f"hf:{folder}", 0, ())
    say(folder, "tokenizer_config.json", **{field: value})
    with pytest.raises(UserError, match=f"{field}={value}, but the post_processor of tokenizer.json adds"):
        load_tokenizer(f"hf:{folder}", 0, ())


# SentencePiece: T5's own file has the pieces alone


@pytest.fixture
def t5(tmp_path):
    (tmp_path / "spiece.model").write_bytes(T5_LIKE)
    size = load_tokenizer(f"hf:{tmp_path}", 5, ()).vocabulary.size
    sentinels = {f"<extra_id_{k}>": size - 1 - k for k in range(5)}
    say(tmp_path, "added_tokens.json", **sentinels)
    return tmp_path, size


def test_sentinels_are_as_many_as_the_files_list(t5):
    folder, size = t5
    tokenizer = load_tokenizer(f"hf:{folder}", 100, ())
    assert (tokenizer.vocabulary.sentinels, tokenizer.vocabulary.size) == (5, size)


def test_added_specials_stand_above_the_sentinels(t5):
    folder, size = t5
    say(folder, "tokenizer_config.json", added_tokens_decoder={str(size): {"content": "<tool>", "special": True}})
    tokenizer = load_tokenizer(f"hf:{folder}", 100, ("[CLS]", "<tool>"))
    assert tokenizer.vocabulary.specials == {"<tool>": size, "[CLS]": size + 1}
    say(folder, "tokenizer_config.json", added_tokens_decoder={str(size + 3): {"content": "<tool>", "special": True}})
    with pytest.raises(UserError, match="'<tool>' has id"):
        load_tokenizer(f"hf:{folder}", 100, ())


def test_added_text_needs_a_tokenizer_json(t5):
    folder, size = t5
    say(folder, "added_tokens.json", **{"{": size})
    with pytest.raises(UserError, match=r"add '\{', which is text and fits only in a tokenizer.json"):
        load_tokenizer(f"hf:{folder}", 100, ())
