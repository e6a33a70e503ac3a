"""Prepare: build a config's tokenizer and token stores in the cache, and print what they hold.

    python -m t5lite.prepare --config configs/tiny.py

Every verb builds the tokenizer and the stores that the cache lacks. This verb builds them ahead of time, for example
on a machine without an accelerator.
"""

import json
from collections.abc import Sequence
from typing import Any

from t5lite import cli
from t5lite.data.store import Span
from t5lite.run.experiment import open_experiment
from t5lite.system.cache import cache_dir


def _describe(span: Span) -> dict[str, Any]:
    """Return token count, document count, bytes a token and folder of `span`, a part of a token store."""
    card = span.store.card
    share = (span.stop - span.start) / max(card["tokens"], 1)
    facts = {
        "tokens": span.stop - span.start,
        "documents": card["documents"],
        "bytes_per_token": round(card["bytes_of_text"] / max(card["tokens"], 1), 3),
        "folder": str(span.store.folder),
    }
    return facts | ({"share_of_store": round(share, 4)} if share < 1 else {})


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Build the tokenizer and the token stores of a config, and print a line for each of them."""
    parser = cli.parser("prepare", __doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    arguments, config = cli.parse_with_config(parser, argv)
    experiment = open_experiment(config, given=arguments.given)
    dataset = experiment.dataset
    parts = {name: _describe(span) for name, span in {**dataset.train, **dataset.heldout}.items()}
    vocabulary = dataset.tokenizer.vocabulary
    if arguments.json:
        print(json.dumps({"tokenizer": {"sha256": dataset.tokenizer.sha256, "size": vocabulary.size}, "parts": parts}))
        return
    specials = [name for name, token in vocabulary.specials.items() if token >= vocabulary.size]
    specials_text = f", specials {', '.join(specials)}" if specials else ""
    print(f"tokenizer: {vocabulary.pieces} pieces, {vocabulary.sentinels} sentinels{specials_text}")
    for name, facts in parts.items():
        print(
            f"{name}: {facts['tokens']:,} tokens in {facts['documents']:,} documents, "
            f"{facts['bytes_per_token']} bytes a token, {facts['folder']}"
        )
    if dataset.labels is not None:
        print(f"labels: {', '.join(dataset.labels)}")
    for name, labels in dataset.member_labels.items():
        print(f"labels of {name}: {'none, free text' if labels is None else ', '.join(labels)}")
    print(f"cache: {cache_dir()}")


if __name__ == "__main__":
    main()
