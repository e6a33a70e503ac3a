"""Train a SentencePiece tokenizer. The same text gives the same model, byte for byte.

A tokenizer trained here loses nothing of a text. It does not normalise, keeps spaces and line breaks, and encodes
unseen characters as bytes.
"""

import heapq
import io
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from t5lite.data.tokenizers.sentence_pieces import SPACE, Tokenizer
from t5lite.data.tokenizers.text_tokenizer import SENTINELS
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import EOS, PAD, UNKNOWN

# The number of training threads changes the model. So the number is the same on every machine.
TRAINING_THREADS = 2
TRAINING_CHUNK = 2000  # characters; longer texts are split
SHORT_CHUNK = 16  # bytes; a sample of n bytes holds at most n / SHORT_CHUNK chunks


def _split_chunks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), TRAINING_CHUNK):
            chunk = text[start : start + TRAINING_CHUNK].replace("\0", " ")
            if chunk.strip():
                yield chunk


def sample_chunks(texts: Iterable[str], num_bytes: int, seed: int = 0) -> list[str]:
    """Return a uniform sample of `texts` in chunks of up to 2,000 characters, in the order of the texts.

    num_bytes: size of the sample in UTF-8. Very short chunks give less, because the number of chunks is limited too.
    The texts are read once, in bounded memory: every chunk draws a priority from `seed`, and the lowest ones stay.
    """
    rng = np.random.default_rng(seed)
    heap: list[tuple[float, int, str, int]] = []
    total = 0
    for index, chunk in enumerate(_split_chunks(texts)):
        size = len(chunk.encode())
        heapq.heappush(heap, (-rng.random(), index, chunk, size))
        total += size
        while len(heap) > 1 and (total > num_bytes or len(heap) > num_bytes // SHORT_CHUNK):
            total -= heapq.heappop(heap)[3]
    return [chunk for _, _, chunk, _ in sorted(heap, key=lambda item: item[1])]


def train_tokenizer(
    chunks: Sequence[str], vocab_size: int, sentinels: int = SENTINELS, specials: Sequence[str] = ()
) -> Tokenizer:
    """Train a unigram model of `vocab_size` pieces. The same text gives the same model, byte for byte.

    Source of the method: Kudo 2018, "Subword Regularization" (the unigram language model). Raises UserError if
    `vocab_size` does not suit the text.
    """
    if not chunks:
        raise UserError("cannot train a tokenizer: the training source has no text; give a source with text")
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(chunks),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNKNOWN,
            bos_id=-1,
            byte_fallback=True,
            required_chars=SPACE,  # also if the text has no spaces, because ▁ stands before each text
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"],
            max_sentence_length=8 * TRAINING_CHUNK,
            num_threads=TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_explain(str(error), vocab_size)) from error
    return Tokenizer(model.getvalue(), sentinels, specials)


def _explain(error: str, vocab_size: int) -> str:
    if limit := re.search(r"value <= (\d+)", error):
        return f"tokenizer.vocab_size: the text is too short for {vocab_size} pieces; at most {limit[1]} are possible"
    if need := re.search(r"required_chars\D*(\d+) vs (\d+)", error):
        return (
            f"tokenizer.vocab_size: {vocab_size} pieces are too few; bytes and the text's characters need at least "
            f"{need[2]}"
        )
    return f"tokenizer.vocab_size={vocab_size}: SentencePiece cannot train on this text: {error.strip()}"
