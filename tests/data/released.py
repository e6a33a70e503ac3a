"""Tokenizers of the families of released models, made of a little text by the `tokenizers` library, as files."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def prose(seed: int, words: int = 3000) -> str:
    rng = random.Random(seed)
    known = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 7))) for _ in range(300)]
    return "".join(rng.choice(known) + rng.choice([" ", " ", " ", ". ", ", ", "\n"]) for _ in range(words))


TEXT = prose(0)


def _save(folder: Path, made: Tokenizer, config: dict | None = None, **names) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({f"{role}_token": name for role, name in names.items()}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def _template(made: Tokenizer, first: str | None = None, last: str | None = None) -> None:
    single = [*([first] if first else []), "$A", *([last] if last else [])]
    ids = [(name, made.token_to_id(name)) for name in {first, last} - {None}]
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)


def _byte_level(specials: list[str], add_prefix_space: bool) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=specials, show_progress=False),
    )
    return made


def gpt2(folder: Path, add_prefix_space: bool = False) -> Path:
    """Its one special token is the last id, and id 0 is a piece."""
    made = _byte_level([], add_prefix_space)
    made.add_special_tokens(["<|endoftext|>"])
    name = "<|endoftext|>"
    return _save(folder, made, {"model_type": "gpt2"}, bos=name, eos=name, unk={"content": name})


def neox(folder: Path) -> Path:
    """Its EOS is id 0; files tell of it by number alone."""
    return _save(folder, _byte_level(["<|endoftext|>"], False), {"bos_token_id": 0, "eos_token_id": [0, 7]})


def bart(folder: Path) -> Path:
    made = _byte_level(["<s>", "<pad>", "</s>", "<unk>"], False)
    made.add_special_tokens(["<mask>"])
    _template(made, "<s>", "</s>")
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    return _save(folder, made, {"decoder_start_token_id": 2}, **names, mask={"content": "<mask>", "lstrip": True})


def bert(folder: Path) -> Path:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        [TEXT], trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    )
    _template(made, "[CLS]", "[SEP]")
    roles = dict(zip(("pad", "unk", "cls", "sep", "mask"), names, strict=True))
    made.enable_truncation(8)
    made.enable_padding(length=8)
    return _save(folder, made, {"model_type": "bert"}, **roles)


def llama(folder: Path, metaspace: bool = False, prepend_scheme: str = "first") -> Path:
    """BPE with a piece for each byte, and a ▁ in front of a text, by its normalizer or by its pre-tokenizer."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()  # for training, so that no piece goes beyond a space
    names = ["<unk>", "<s>", "</s>", *BYTES]
    made.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=700, special_tokens=names, show_progress=False))
    spec = json.loads(made.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    spec["pre_tokenizer"] = None
    made = Tokenizer.from_str(json.dumps(spec))
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _template(made, "<s>")
    return _save(folder, made, {"bos_token_id": 1, "eos_token_id": 2}, bos="<s>", eos="</s>", unk="<unk>")


def t5(folder: Path) -> Path:
    """A unigram, to which </s> is a piece like any other, with its sentinels as the last ids."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    names = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator(
        [TEXT],
        trainers.UnigramTrainer(
            vocab_size=200, special_tokens=names, unk_token="<unk>", show_progress=False,
            initial_alphabet=list("</s>padunk_exti0123456789"),
        ),
    )  # fmt: skip
    made.add_special_tokens([f"<extra_id_{k}>" for k in reversed(range(20))])
    _template(made, last="</s>")
    return _save(folder, made, {"decoder_start_token_id": 0}, eos="</s>", pad="<pad>", unk="<unk>")
