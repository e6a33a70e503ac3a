"""Questions with spans: the answer's characters come back, windows cover each context, and wrong files are refused."""

import json

import numpy as np
import pytest

from t5lite.data.columns import Columns
from t5lite.data.labelled import Facts
from t5lite.data.questions import (
    NOT_HERE,
    QuestionWindows,
    build_questions,
    cut_windows,
    encode_context,
    most_asked,
    read_questions,
)
from t5lite.data.sources import open_source
from t5lite.data.store import TokenStore
from t5lite.data.tokenizers.training import train_tokenizer
from t5lite.system.errors import UserError

TEXT = "The captain of the white whale sailed from Nantucket (in 1851). “It’s 5 °C!”, said naïve Ishmael…\n日本語 ok"
TOKENIZER = train_tokenizer([TEXT] * 20, 305, 10)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(f"files:{path}", Columns())


def row(context, *answers, question="who?"):
    texts, starts = [text for text, _ in answers], [start for _, start in answers]
    return {"question": question, "context": context, "answers": {"text": texts, "answer_start": starts}}


def windows_of(tmp_path, source, length, for_evaluation=True):
    build_questions(tmp_path / "store", read_questions(source), TOKENIZER, False, lambda _: None)
    store = TokenStore(tmp_path / "store" / "train")
    order = np.arange(store.num_documents // 4)
    return QuestionWindows(store, order, length, 1, Facts(for_evaluation=for_evaluation))


def test_tokens_know_their_characters():
    ids, characters = encode_context(TOKENIZER, TEXT)
    assert "".join(TEXT[start:stop] for start, stop in characters if stop > start)[-2:] == "ok"
    covered = np.zeros(len(TEXT), int)
    for start, stop in characters:
        assert 0 <= start <= stop <= len(TEXT)
        covered[start:stop] += 1
    assert covered.min() >= 1  # a character of several bytes may be covered several times
    for token, (start, stop) in zip(ids, characters, strict=True):
        piece = TOKENIZER.decode([token])
        assert len(piece) == 0 or piece.strip() in TEXT[start:stop] or "\N{REPLACEMENT CHARACTER}" in piece


def test_every_substring_made_of_whole_tokens_comes_back(tmp_path):
    """The places of an answer in a row lead back to its characters."""
    ids, characters = encode_context(TOKENIZER, TEXT)
    rng, rows, spans = np.random.default_rng(0), [], []
    for _ in range(60):
        first = int(rng.integers(len(ids)))
        last = min(first + int(rng.integers(6)), len(ids) - 1)
        answer = TEXT[characters[first, 0] : characters[last, 1]]
        if answer.strip():
            rows.append(row(TEXT, (answer, int(characters[first, 0]))))
            spans.append(answer)
    source = windows_of(tmp_path, write(tmp_path / "q.jsonl", *rows), 200)
    assert len(source) == len(rows)
    fetched = source.fetch(np.arange(len(source)))
    for answer, (first, last), window in zip(spans, fetched["answers"], source.windows, strict=True):
        _, asked, start, _ = window
        found = slice(characters[start + first - asked - 1, 0], characters[start + last - asked - 1, 1])
        assert answer in TEXT[found] and len(TEXT[found]) <= len(answer) + 2


@pytest.mark.parametrize("length", [12, 16, 40])
def test_windows_cover_every_token_and_fit_in_their_row(length):
    for asked in range(1, most_asked(length) + 1):
        for context in range(0, 4 * length):
            windows = cut_windows(asked, context, length)
            covered = np.zeros(context, bool)
            for start, stop in windows:
                covered[start:stop] = True
                assert stop - start + asked + 2 <= length
            assert covered.all() and len(set(windows)) == len(windows)
            assert windows[-1][1] == context and (len(windows) == 1 or windows[-2][1] < context)


def test_only_windows_with_the_whole_answer_have_its_places(tmp_path):
    context = " ".join(["whale"] * 30) + " Nantucket"
    source = windows_of(tmp_path, write(tmp_path / "q.jsonl", row(context, ("Nantucket", len(context) - 9))), 24)
    rows = source.fetch(np.arange(len(source)))
    has = rows["answers"][:, 0] >= 0
    assert len(source) > 3 and has[-1] and not has[0]
    assert (rows["answers"][~has] == NOT_HERE).all()
    for tokens, (first, last) in zip(rows["inputs"][has], rows["answers"][has], strict=True):
        assert TOKENIZER.decode(tokens[first : last + 1]).strip() == "Nantucket"


def test_evaluation_reads_all_windows_of_a_question_or_none(tmp_path):
    rows = [row(" ".join(["white whale"] * n)) for n in range(1, 40)]
    source = windows_of(tmp_path, write(tmp_path / "q.jsonl", *rows), 30)
    number_of = np.bincount(source.windows[:, 0])
    for count in (1, 7, 40, 10**6):
        chosen = source.windows[source.choose(count), 0]
        found = np.bincount(chosen, minlength=len(rows))
        assert ((found == 0) | (found == number_of)).all() and found.any()


WRONG = {
    "start": (row("a whale", ("whale", 3)), "answer_start=3 points to"),
    "negative": (row("a whale", ("whale", -5)), "answer_start=-5 points to"),
    "counts": (
        {"question": "q", "context": "c", "answers": {"text": ["c", "c"], "answer_start": [0]}},
        "2 texts and 1",
    ),
    "no starts": ({"question": "q", "context": "c", "answers": {"text": ["c"]}}, "1 texts and 0"),
    "text": ({"question": "q", "context": "c", "answers": "c"}, "must be"),
    "number": ({"question": "q", "context": "c", "answers": [{"text": "c", "answer_start": "0"}]}, "must be"),
    "empty": (row("a whale", ("", 0)), "answer_start=0"),
    "column": ({"question": "q", "answers": []}, "no column 'context'"),
    "null": ({"question": "q", "context": None, "answers": []}, "null"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_rows_are_refused_with_file_and_line(name, tmp_path):
    wrong, message = WRONG[name]
    source = write(tmp_path / "q.jsonl", row("a whale", ("whale", 2)), wrong)
    with pytest.raises(UserError) as caught:
        list(read_questions(source))
    assert message in str(caught.value) and "q.jsonl, line 2" in str(caught.value) and "\n" not in str(caught.value)


def test_answers_may_be_a_list_or_missing(tmp_path):
    listed = {"question": "q", "context": "a whale", "answers": [{"text": "whale", "answer_start": 2}]}
    source = write(tmp_path / "q.jsonl", listed, row("a whale"), listed | {"answers": []})
    assert [question.answers for question in read_questions(source)] == [("whale",), (), ()]


def test_a_long_question_is_cut_and_counted(tmp_path):
    source = windows_of(tmp_path, write(tmp_path / "q.jsonl", row("a whale", question="whale " * 30)), 20)
    cut = source.count_cut()
    assert cut["inputs"] == 1 and cut["tokens"] > 10 and cut["targets"] == 0
