"""A tokenizer written as transformers reads it."""

from pathlib import Path

from t5lite.data.text_tokenizer import TextTokenizer


def write_release(tokenizer: TextTokenizer, folder: Path, closes: bool) -> dict[str, object]:
    """TODO"""
    tokenizer.save(folder)
    vocabulary = tokenizer.vocabulary
    return {"eos_token_id": vocabulary.eos, "decoder_start_token_id": vocabulary.start}
