"""The vocabulary: which id is what. Shared by the data (which makes it) and the objectives (which use it).

    id      0     1     2      3 … pieces-1     then N sentinels              further specials
            pad   EOS   unk    pieces           … <extra_id_1> <extra_id_0>   [MASK] [CLS] …

`size` counts pieces and sentinels, so that the k-th sentinel (k from 1) is `size - k`, as in T5. The specials that a
config asks for come above, but for those that a released tokenizer has among its own ids, and those that there were
before the sentinels: both count among `pieces`. The model's embedding may
have more rows than `rows`; these are never generated.

Which ids close, begin and start a text is the tokenizer's to say. T5's are the defaults:

            eos                  start                bos
    T5      1 </s>               0 <pad>              none
    BART    2 </s>               2 </s>               0 <s>
    BERT    102 [SEP]                                 none
    GPT-2   50256 <|endoftext|>  50256 <|endoftext|>  none

Arrays are padded with id 0 whatever that stands for: what is padding is told by segment ids, lengths and weights.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

PAD, EOS, UNKNOWN = 0, 1, 2
MASK, CLS, SEP = "[MASK]", "[CLS]", "[SEP]"
PREFIX, SUFFIX, MIDDLE = "<fim_prefix>", "<fim_suffix>", "<fim_middle>"


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """Facts about each token, as arrays over ids (int32 or bool, [R] with R = `Vocabulary.rows`).

    `num_bytes` is the UTF-8 bytes of text that a token stands for (0 for specials): bits per byte comes from it.
    """

    num_bytes: np.ndarray
    starts_word: np.ndarray
    ends_sentence: np.ndarray
    is_special: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ids of pieces, sentinels and specials, with the table of facts about each token.

    eos: closes every document and both sides of an example. start: a decoder's first input, at each start of a
    segment. bos: stands in front of both sides of an encoder-decoder's example; None: nothing does. unknown: what
    stands for text that has no piece.
    """

    pieces: int
    sentinels: int
    specials: Mapping[str, int]
    table: TokenTable
    eos: int = EOS
    start: int = PAD
    bos: int | None = None
    unknown: int = UNKNOWN

    @property
    def size(self) -> int:
        """V: pieces and sentinels. The k-th sentinel, k from 1, is V - k."""
        return self.pieces + self.sentinels

    @property
    def rows(self) -> int:
        """Number of ids in use: V and the specials above it."""
        return max([self.size, *(token + 1 for token in self.specials.values())])

    @classmethod
    def synthetic(cls, pieces: int, sentinels: int, specials: tuple[str, ...] = ()) -> "Vocabulary":
        """A vocabulary without a tokenizer, for benchmarks and tests: every piece is a word of four bytes."""
        size = pieces + sentinels
        rows = size + len(specials)
        is_special = np.arange(rows) >= pieces
        is_special[: UNKNOWN + 1] = True
        table = TokenTable(
            num_bytes=np.where(is_special, 0, 4).astype(np.int32),
            starts_word=~is_special,
            ends_sentence=np.arange(rows) == UNKNOWN + 1,
            is_special=is_special,
        )
        return cls(pieces, sentinels, {name: size + i for i, name in enumerate(specials)}, table)
