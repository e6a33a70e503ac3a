"""Write a tokenizer in the files that transformers reads.

`AutoTokenizer.from_pretrained(folder)` then gives the ids that the model gets in training and generation. The
ids before and after a text are included. Ids decode to the same text.

    trained here            tokenizer.json, a unigram model of its pieces
    T5's and its family's   spiece.model, and the name of the class in transformers that does the rest
    from a tokenizer.json   the released file, with t5lite's sentinels and specials above its ids

The folder tokenizer/ beside these files is as in a workdir. t5lite itself opens the tokenizer from that folder.

Known differences of the tokenizer in transformers:

- If a text holds the name of padding, EOS or unknown, the name becomes the token. In t5lite the name stays text.
- Trained here: SentencePiece adds log-probabilities in float32, the library in float64. If two ways to cut a text are
  equally likely, each may choose another way: a run of spaces as 8 + 12 or as 12 + 8. With 4,000 pieces this
  happened in 117 of 4,000 excerpts, of up to 3,000 characters, of Python's standard library.
- Trained here: if a run of bytes is not UTF-8, the library decodes every byte to �, not only the wrong bytes.
- From a tokenizer.json: a name that t5lite added removes all white space before the name, not one space. The text after
  the name may get a space in front, as with Llama. A text that begins with a space may get no space in front.
  WordPiece's decoder removes spaces before punctuation. [MASK] is text if the mask has another name.
- T5's class ends every text with EOS. Encode prompts of a decoder with add_special_tokens=False, and begin prompts with
  the decoder's start. mT5's sentinels are read only after a space. The unknown token decodes to its name.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from t5lite.data.tokenizers.release_files import TOKENIZER_FILE
from t5lite.data.tokenizers.released import NAMED_ROLES, ReleasedTokenizer
from t5lite.data.tokenizers.sentence_pieces import OWN_NAMES, SPACE, Tokenizer
from t5lite.data.tokenizers.text_tokenizer import TextTokenizer
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import CLS, EOS, MASK, PAD, SEP, UNKNOWN, Vocabulary

CONFIG, SENTENCEPIECE = "tokenizer_config.json", "spiece.model"
GENERIC = "PreTrainedTokenizerFast"
# A text that many normalisers would change.
PROBE = "Ａ①ﬁ e\u0301  é\t▁\n \n x "


class Frame(NamedTuple):
    """The ids that stand before and after a text when the model reads it; None: no id."""

    front: int | None
    last: int | None


def make_frame(tokenizer: TextTokenizer, architecture: str, closes: bool) -> Frame:
    """Return the frame that the objectives and generation use. closes: EOS ends the inputs."""
    vocabulary = tokenizer.vocabulary
    if architecture == "encoder":
        return Frame(vocabulary.specials[CLS], vocabulary.specials[SEP])
    last = vocabulary.eos if closes else None
    if architecture == "decoder":
        return Frame(vocabulary.start if tokenizer.begins_with_start else None, last)
    return Frame(vocabulary.bos if closes else None, last)


def export_tokenizer(tokenizer: TextTokenizer, folder: Path, architecture: str, closes: bool) -> dict[str, int]:
    """Write the tokenizer's files into `folder`. Return the ids for the model's config.json: {"eos_token_id": …}.

    closes: EOS ends the model's inputs. Raises UserError for ids that a tokenizer.json cannot have.
    """
    frame, names = make_frame(tokenizer, architecture, closes), tokenizer.names
    tokenizer.save(folder / "tokenizer")
    if isinstance(tokenizer, ReleasedTokenizer):
        content = _make_released_file(tokenizer, frame)
        roles = {role: token for role in NAMED_ROLES if (token := getattr(tokenizer.roles, role)) is not None}
    elif tokenizer.decode(tokenizer.encode(PROBE)) == PROBE:
        content = make_library(tokenizer, frame).to_str().encode()
        roles = _find_roles(tokenizer.vocabulary, architecture)
    else:
        return _write_t5(tokenizer, folder)
    (folder / TOKENIZER_FILE).write_bytes(content)
    library = Library.from_str(content.decode())
    for token, name in names.items():
        if library.token_to_id(name) != token:
            raise UserError(
                f"{name} has id {token}, but in a tokenizer.json it would have {library.token_to_id(name)}; this "
                "tokenizer cannot be exported"
            )
    if architecture == "decoder":
        roles.setdefault("bos", tokenizer.vocabulary.start)
    types = ["token_type_ids"] if architecture == "encoder" else []
    config = {
        "tokenizer_class": GENERIC,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": names[token] for role, token in roles.items()},
        "model_input_names": ["input_ids", *types, "attention_mask"],
        **({"padding_side": "left"} if architecture == "decoder" else {}),
    }
    _dump(folder / CONFIG, config)
    ids = {f"{role}_token_id": roles[role] for role in ("pad", "eos", "bos") if role in roles}
    return ids | ({"decoder_start_token_id": tokenizer.vocabulary.start} if architecture == "encoder_decoder" else {})


def _find_roles(vocabulary: Vocabulary, architecture: str) -> dict[str, int]:
    """Return {role: id} of a tokenizer trained here.

    A decoder's first input has the id of padding, so a mask that transformers makes for padding would hide it. So the
    padding of a decoder is the unknown token here: no text has an unknown token.
    """
    pad = UNKNOWN if architecture == "decoder" else PAD
    named = {"mask": MASK, "cls": CLS, "sep": SEP} if architecture == "encoder" else {}
    more = {role: vocabulary.specials[name] for role, name in named.items() if name in vocabulary.specials}
    return {"pad": pad, "eos": EOS, "unk": UNKNOWN, **more}


def make_library(tokenizer: Tokenizer, frame: Frame) -> Library:
    """Return a tokenizer of the `tokenizers` library that equals `tokenizer`, which t5lite trained.

    Its pieces hold spaces instead of ▁. So the character ▁ becomes bytes, as in t5lite. The normalizer handles the
    space in front of a text and the space before a name, because it sees the whole text before names are found.
    """
    pieces, scores = tokenizer.pieces_and_scores()
    pieces = [piece if place in OWN_NAMES else piece.replace(SPACE, " ") for place, piece in enumerate(pieces)]
    pieces[: len(OWN_NAMES)] = OWN_NAMES.values()
    library = Library(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=UNKNOWN, byte_fallback=True))
    names = tokenizer.names
    any_name = _match_any(names.values())
    library.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(f" (?={any_name})"), ""),
            normalizers.Replace(Regex(rf"\A(?!{any_name}|{SPACE})(?=[\s\S])"), " "),
        ]
    )
    library.pre_tokenizer = pre_tokenizers.Split(Regex(_make_byte_name_pattern(pieces)), "merged_with_previous")
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    # normalized=True, because other tokens cut the text before the normalizer sees it.
    library.add_special_tokens([AddedToken(names[token], normalized=True) for token in sorted(names)])
    library.post_processor = _make_post_processor(frame, names)
    return library


def _match_any(names: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})"


def _make_byte_name_pattern(pieces: list[str]) -> str:
    """Return a pattern that finds where to cut a text inside <0x41> and other names of bytes.

    Without the cut, the library would read such a name as a byte, not as text. No piece crosses the cut, if possible.
    """
    crossed = {"<": "<0", "<0": "0x", "<0x": "x"}
    text = [piece for piece in pieces if not re.fullmatch("<0x..>", piece)]
    free = (cut for cut, across in crossed.items() if not any(across in piece for piece in text))
    cut = next(free, "<")
    return f"{cut}(?={'<0x'.removeprefix(cut)}[0-9A-F]{{2}}>)"


def _make_post_processor(frame: Frame, names: Mapping[int, str]) -> processors.TemplateProcessing:
    """Return a post-processor that adds the frame.

    In a pair, which only BERT reads, the second text follows the `last` id of the first text.
    """
    front, last = ("" if token is None else f" {names[token]}" for token in frame)
    single, pair = f"{front} $A{last}", f"{front} $A{last} $B:1{last and last + ':1'}"
    special = [(names[token], token) for token in dict.fromkeys(frame) if token is not None]
    return processors.TemplateProcessing(single=single.split(), pair=pair.split(), special_tokens=special)


def _make_released_file(tokenizer: ReleasedTokenizer, frame: Frame) -> bytes:
    """Return the released file, changed if it lacks an id or frames a text in another way than the model needs."""
    library, alone = (Library.from_str(tokenizer.content.decode()) for _ in range(2))
    missing = {token: name for token, name in tokenizer.names.items() if library.token_to_id(name) is None}
    alone.no_padding()
    alone.no_truncation()
    full, bare = (alone.encode("a", add_special_tokens=special).ids for special in (True, False))
    is_framed = full == [token for token in (frame.front, *bare, frame.last) if token is not None]
    if not missing and is_framed:
        return tokenizer.content
    library.add_special_tokens([AddedToken(missing[token], lstrip=True, normalized=False) for token in sorted(missing)])
    if not is_framed:
        library.post_processor = _make_post_processor(frame, tokenizer.names)
    return library.to_str().encode()


def _write_t5(tokenizer: Tokenizer, folder: Path) -> dict[str, int]:
    if tokenizer.specials_below:
        raise UserError(
            f"{tokenizer.added_specials[0]} has an id below the sentinels, but T5's class puts sentinels first; this "
            "tokenizer cannot be exported"
        )
    (folder / SENTENCEPIECE).write_bytes(tokenizer.model)
    vocabulary, flags = tokenizer.vocabulary, {"lstrip": True, "rstrip": False, "normalized": False}
    added = {
        str(token): {"content": name, **flags, "single_word": False, "special": True}
        for name, token in vocabulary.specials.items()
    }
    config = {
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 0 if tokenizer.own_sentinels else vocabulary.sentinels,
        "added_tokens_decoder": added,
        **{f"{role}_token": OWN_NAMES[token] for role, token in (("eos", EOS), ("pad", PAD), ("unk", UNKNOWN))},
    }
    _dump(folder / CONFIG, config)
    return {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": vocabulary.start}


def _dump(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
