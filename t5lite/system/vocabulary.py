"""The vocabulary: the meaning of each id. The tokenizer of the data makes it, and the objectives use it.

    id      0     1     2      3 … pieces-1     then N sentinels              further specials
            pad   EOS   unk    pieces           … <extra_id_1> <extra_id_0>   [MASK] [CLS] …

`size` counts pieces and sentinels. So the k-th sentinel (k from 1) is `size - k`, as in T5. Specials that a config asks
for have ids above the sentinels. Two kinds of specials have lower ids and count among `pieces`: the specials of a
released tokenizer, and specials that were added before the sentinels. The model's embedding may have more rows than
`rows`. The ids of the additional rows are never generated.

The tokenizer decides which ids close a text (eos), start a decoder (start), and stand in front of a text (bos). The
ids of T5 are the defaults:

            eos                  start                bos
    T5      1 </s>               0 <pad>              none
    BART    2 </s>               2 </s>               0 <s>
    BERT    102 [SEP]                                 none
    GPT-2   50256 <|endoftext|>  50256 <|endoftext|>  none

Arrays are padded with id 0, even if 0 has another meaning too. Segment ids, lengths and weights tell what is padding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

PAD, EOS, UNKNOWN = 0, 1, 2
MASK, CLS, SEP = "[MASK]", "[CLS]", "[SEP]"
PREFIX, SUFFIX, MIDDLE = "<fim_prefix>", "<fim_suffix>", "<fim_middle>"


@dataclasses.dataclass(frozen=True, eq=False)
class TokenTable:
    """Facts about each token, as arrays over ids (int32 or bool, [R] with R = `Vocabulary.rows`).

    Tables with equal contents are equal and have equal hashes. The same is true of vocabularies.

    num_bytes: number of UTF-8 bytes of the token's text, 0 for specials. Bits per byte are computed with it.
    num_bytes_first: the number of bytes as the first token of a text, without the space that the tokenizer adds.
    """

    num_bytes: np.ndarray
    num_bytes_first: np.ndarray
    starts_word: np.ndarray
    ends_sentence: np.ndarray
    is_special: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenTable) and all(map(np.array_equal, vars(self).values(), vars(other).values()))

    def __hash__(self) -> int:
        return hash(self.num_bytes.tobytes())


@dataclasses.dataclass(frozen=True)
class Rules:
    """Rules for every answer, from the files of a release. The user cannot change them: the weights expect them.

    stops: ids that end an answer, as EOS does.
    first: the id with which every answer of an encoder-decoder begins; None: any id.
    last: the id of the last token, if an answer reaches `max_new_tokens`; None: any id.
    never: ids that are never generated.
    never_first: ids that are not generated as the first token (after `first`, if there is one).
    asked: {name: value} of the other settings in the release's files. The user may choose these settings.
        `usual_settings` returns those that hold unless the user sets them.
    """

    stops: tuple[int, ...] = ()
    first: int | None = None
    last: int | None = None
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def usual_settings(self, architecture: str) -> dict[str, int]:
        """Return {field of `decoding.settings.Settings`: value} for the settings that hold unless the user sets them.

        As in transformers, min_new_tokens goes before min_length, which also counts the decoder's start. On a decoder
        min_length counts the prompt too, so it has no fixed value here.
        """
        usual = {name: self.asked[name] for name in ("min_new_tokens", "no_repeat_ngram_size") if name in self.asked}
        if "min_length" in self.asked and architecture == "encoder_decoder":
            usual = {"min_new_tokens": self.asked["min_length"] - 1, **usual}
        return usual

    def adapt_to_training(self, in_targets: np.ndarray, bos: int | None, continues: bool = False) -> "Rules":
        """Return the rules of a run that uses this tokenizer.

        The run learns to generate every id in its targets. So no such id ends an answer, no id is forbidden, and an
        answer begins with `bos`.

        Args:
            in_targets: bool [R], which ids occur in targets.
            bos: the id that stands in front of targets; None: no id.
            continues: whether the run starts from an encoder-decoder with these rules, and is an encoder-decoder too.
                Then the rule `last` stays.
        """
        stops = tuple(token for token in self.stops if not in_targets[token] and token != bos)
        return Rules(stops=stops, first=bos, last=self.last if continues else None)

    def limit_to_rows(self, rows: int) -> "Rules":
        """Return the rules for weights with `rows` rows.

        Ids without a row are never generated, so they need no rule.
        """
        lists = {name: getattr(self, name) for name in ("stops", "never", "never_first")}
        lists = {name: tuple(token for token in tokens if token < rows) for name, tokens in lists.items()}
        forced = {name: token for name in ("first", "last") if (token := getattr(self, name)) is not None}
        return dataclasses.replace(self, **lists, **{name: t if t < rows else None for name, t in forced.items()})


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Ids of pieces, sentinels and specials, with the table of facts about each token.

    eos: the id that closes every document, and the inputs and targets of an example.
    start: the first input of a decoder, at the start of each segment.
    bos: the id in front of the inputs and targets of an encoder-decoder; None: no id.
    unknown: the id for text that has no piece; None: every text has pieces. This id is read but never generated.
    """

    pieces: int
    sentinels: int
    specials: Mapping[str, int]
    table: TokenTable
    eos: int = EOS
    start: int = PAD
    bos: int | None = None
    unknown: int | None = UNKNOWN

    def __hash__(self) -> int:
        return hash((self.pieces, self.sentinels, self.table))

    @property
    def size(self) -> int:
        """V: the number of pieces and sentinels. The k-th sentinel, k from 1, is V - k."""
        return self.pieces + self.sentinels

    @property
    def rows(self) -> int:
        """The number of ids in use: pieces, sentinels, and the specials above them."""
        return max([self.size, *(token + 1 for token in self.specials.values())])

    @classmethod
    def synthetic(cls, pieces: int, sentinels: int, specials: tuple[str, ...] = ()) -> "Vocabulary":
        """Return a vocabulary without a tokenizer, for benchmarks and tests. Every piece is a word of four bytes."""
        size = pieces + sentinels
        rows = size + len(specials)
        is_special = np.arange(rows) >= pieces
        is_special[: UNKNOWN + 1] = True
        num_bytes = np.where(is_special, 0, 4).astype(np.int32)
        table = TokenTable(
            num_bytes=num_bytes,
            num_bytes_first=num_bytes,
            starts_word=~is_special,
            ends_sentence=np.arange(rows) == UNKNOWN + 1,
            is_special=is_special,
        )
        return cls(pieces, sentinels, {name: size + i for i, name in enumerate(specials)}, table)
