"""The vocabulary: what each id means. The data makes it, the objectives use it.

    id      0     1     2      3 … pieces-1     then N sentinels              further specials
            pad   EOS   unk    pieces           … <extra_id_1> <extra_id_0>   [MASK] [CLS] …

`size` counts pieces and sentinels. So the k-th sentinel (k from 1) is `size - k`, as in T5. Specials that a config asks
for stand above the sentinels. Two kinds stand below and count among `pieces`: a released tokenizer's own specials, and
specials that are older than the sentinels. The model's embedding may have more rows than `rows`; the ids of the
additional rows are never generated.

The tokenizer decides which ids close, start and stand in front of a text. T5's are the defaults:

            eos                  start                bos
    T5      1 </s>               0 <pad>              none
    BART    2 </s>               2 </s>               0 <s>
    BERT    102 [SEP]                                 none
    GPT-2   50256 <|endoftext|>  50256 <|endoftext|>  none

Arrays are padded with id 0, whatever 0 stands for. Segment ids, lengths and weights say what is padding.
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

    Tables and vocabularies with equal contents are equal, and hashable.

    num_bytes: UTF-8 bytes of the text that a token stands for, 0 for specials; bits per byte comes from it.
    num_bytes_first: the same for the first token of a text, without the space that the tokenizer puts in front.
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
    """Rules that every answer follows, whatever settings the user chooses. They come from a release's files and are
    part of the meaning of its weights.

    stops: ids that end an answer, as EOS does. first: the id with which every answer of an encoder-decoder begins;
    None: any id. last: the id in the last place that `max_new_tokens` leaves; None: any id. never: ids that are not
    generated. never_first: ids that are not generated in the first place, or in the second after `first`. asked: {name:
    value} of other settings in the files, which the user may choose.
    """

    stops: tuple[int, ...] = ()
    first: int | None = None
    last: int | None = None
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def after_training(self, in_targets: np.ndarray, bos: int | None, continues: bool = False) -> "Rules":
        """Return the rules of a run that takes this tokenizer.

        The run learns to generate everything in its targets. So no id in them ends an answer, no id is forbidden, and
        an answer begins with `bos`.

        Args:
            in_targets: bool [R], which ids occur in targets.
            bos: the id that stands in front of targets; None: no id.
            continues: the run starts from weights with these rules, and is an encoder-decoder as they are; `last`
                stays.
        """
        stops = tuple(token for token in self.stops if not in_targets[token] and token != bos)
        return Rules(stops=stops, first=bos, last=self.last if continues else None)

    def below(self, rows: int) -> "Rules":
        """Return the rules for weights with `rows` rows.

        Ids without a row are never generated, so they need no rule.
        """
        lists = {name: getattr(self, name) for name in ("stops", "never", "never_first")}
        kept = {name: tuple(token for token in tokens if token < rows) for name, tokens in lists.items()}
        forced = {name: token for name in ("first", "last") if (token := getattr(self, name)) is not None}
        return dataclasses.replace(self, **kept, **{name: t if t < rows else None for name, t in forced.items()})


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Ids of pieces, sentinels and specials, with the table of facts about each token.

    eos: closes every document and both sides of an example. start: a decoder's first input, at each start of a segment.
    bos: stands in front of both sides of an encoder-decoder's example; None: no id does. unknown: stands for text that
    has no piece; None: every text has pieces. The unknown token is read but never generated.
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
        """Number of ids in use: V and the specials above it."""
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
