"""Stores of conversations: what is packed is what was encoded, EOS may stand inside, and what is cut is counted."""

import numpy as np
import pytest

from t5lite.data.chat.encoder import ChatEncoder
from t5lite.data.chat.messages import Conversation
from t5lite.data.chat.store import ChatLayout, ChatPairs, Conversations, build_chat, plan_conversations
from t5lite.data.cut import describe_cut
from t5lite.data.packing import pair_plan
from t5lite.data.store import TokenStore
from tests.data.chat.conversations import TEMPLATES, TOKENIZER, make_encoder, said

RNG = np.random.default_rng(0)
TALKS = [
    Conversation(said(*(" ".join(RNG.choice(["sea", "whale", "old"], n)) for n in RNG.integers(1, 6, 2 * turns))))
    for turns in RNG.integers(1, 4, 30)
]


def open_rows(folder, encoder, talks=TALKS, length=200, packed=True, every=0, limit=None):
    build_chat(folder, talks, encoder, ChatLayout(False, length), every, lambda size: None)
    stores = [TokenStore(folder / name) for name in ("train", "heldout")]
    return [Conversations(store, plan_conversations(store, length, packed, limit, 0)) for store in stores]


def read_rows(rows):
    """Return {tokens: which are trained} of each segment of each row, after a check that segments lie side by side."""
    found = []
    for row in range(len(rows)):
        fetched = rows.fetch(np.array([row]))
        tokens, segments, trained = (fetched[name][0] for name in ("targets", "targets_segment_ids", "trained"))
        assert set(np.diff(segments[segments > 0])) <= {0, 1} and not tokens[segments == 0].any()
        assert not trained[segments == 0].any() and tokens.dtype == trained.dtype == np.int32
        for segment in range(1, segments.max() + 1):
            found.append((tokens[segments == segment].tolist(), trained[segments == segment].tolist()))
    return found


@pytest.mark.parametrize("template", ["plain", "folded"])
def test_rows_hold_each_conversation_once_in_a_segment(tmp_path, template):
    """With the second template, EOS closes each turn, and stands inside the documents of the store."""
    encoder = make_encoder(template, front=0)
    expected = [encoder.encode(talk) for talk in TALKS]
    expected = [(each.tokens.tolist(), each.is_trained.astype(int).tolist()) for each in expected]
    for packed in (True, False):
        rows, _ = open_rows(tmp_path / str(packed), encoder, packed=packed)
        assert sorted(read_rows(rows)) == sorted(expected)
        assert (len(rows) < len(TALKS)) == packed
    if template == "folded":
        assert any(TOKENIZER.vocabulary.eos in tokens[:-1] for tokens, _ in expected)


def test_every_twentieth_conversation_is_held_out(tmp_path):
    train, heldout = open_rows(tmp_path, make_encoder("plain"), packed=False, every=20)
    assert (len(train), len(heldout)) == (29, 1)
    assert read_rows(heldout)[0][0] == make_encoder("plain").encode(TALKS[19]).tokens.tolist()


def test_a_limit_keeps_the_first_of_a_random_order(tmp_path):
    few, more = (open_rows(tmp_path / str(n), make_encoder("plain"), limit=n)[0] for n in (5, 9))
    assert len(read_rows(few)) == 5 and len(read_rows(more)) == 9
    assert {str(each) for each in read_rows(few)} <= {str(each) for each in read_rows(more)}


def test_what_is_cut_is_counted_and_said(tmp_path):
    encoder = make_encoder("plain")
    talks = [
        Conversation(said("a", "b")),
        Conversation(said("sea sea sea", "old old old", "a", "b", system="x")),
        Conversation(said("sea " * 50, "old")),
    ]
    lengths = [len(encoder.encode(talk).tokens) for talk in talks]
    rows, _ = open_rows(tmp_path, encoder, talks, length=12, packed=False)
    cut = rows.count_cut()
    kept = encoder.encode(Conversation(said("a", "b", system="x")))
    assert cut["rows"] == 2 and cut["inputs"] == cut["histories"] == 1 and cut["messages"] == 2
    assert cut["tokens"] == cut["history_tokens"] == lengths[1] - len(kept.tokens)
    assert cut["left_out"] == 1 and cut["longest"] == cut["longest_history"] == lengths[2]
    assert rows.count_lost_target_tokens(np.arange(2)) == encoder.encode(talks[1]).is_trained.sum() - 2
    note = describe_cut(cut, {"inputs_length": 12, "targets_length": None})
    assert "the oldest messages of 1 of 2 conversations are left out (2 messages" in note
    assert "1 conversations are left out" in note and f"the longest: {lengths[2]} tokens" in note
    assert describe_cut(open_rows(tmp_path / "all", encoder, talks[:2])[0].count_cut(), {"inputs_length": 100}) is None


def test_each_trained_turn_is_a_pair_for_an_encoder_decoder(tmp_path):
    encoder = make_encoder("plain")
    talks = [Conversation(said("a", "b", "c", "d")), Conversation(said("e", "f", "g", "h"), 3)]
    build_chat(tmp_path, talks, encoder, ChatLayout(True, 100), 0, lambda size: None)
    store = TokenStore(tmp_path / "train")
    rows = ChatPairs(store, pair_plan(store, 100, 10, packed=False))
    fetched = rows.fetch(np.arange(3))
    asked = [said("a"), said("a", "b", "c"), said("e", "f", "g")]
    for row, (messages, answer) in enumerate(zip(asked, "bdh", strict=True)):
        inputs = fetched["inputs"][row][fetched["inputs_segment_ids"][row] > 0]
        targets = fetched["targets"][row][fetched["targets_segment_ids"][row] > 0]
        assert inputs.tolist() == [*encoder.encode_prompt(messages), 1]
        assert targets.tolist() == [*encoder.encode_answer(answer), 1]
    assert describe_cut(rows.count_cut(), {"inputs_length": 100, "targets_length": 10}) is None


def test_a_long_history_loses_its_oldest_messages_before_it_is_cut(tmp_path):
    encoder = make_encoder("plain", front=None)
    talks = [Conversation(said("old " * 9, "b", "c", "d", system="x")), Conversation(said("sea " * 30, "b"))]
    build_chat(tmp_path, talks, encoder, ChatLayout(True, 12), 0, lambda size: None)
    store = TokenStore(tmp_path / "train")
    rows = ChatPairs(store, pair_plan(store, 12, 10, packed=False))
    inputs = rows.fetch(np.arange(3))["inputs"]
    expected = [*encoder.encode_prompt(said("c", system="x")), 1]
    assert inputs[1].tolist() == [*expected, *[0] * (12 - len(expected))]
    cut = rows.count_cut()
    assert (cut["histories"], cut["messages"], cut["inputs"]) == (1, 2, 3)
    note = describe_cut(cut, {"inputs_length": 12, "targets_length": 10})
    assert "the oldest messages of 1 of 3" in note and "2 of 3 inputs are longer than inputs_length=12" in note


def test_the_encoder_of_every_template_says_where_turns_stop():
    stops = {name: [TOKENIZER.names[stop] for stop in make_encoder(name).stops] for name in TEMPLATES}
    expected = {"plain": "<|end|>", "chatml": "<|im_end|>", "headers": "<|eot|>", "folded": "</s>", "closed": "<|end|>"}
    assert stops == {name: [stop] for name, stop in expected.items()}
    assert isinstance(make_encoder(), ChatEncoder)
