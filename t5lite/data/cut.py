"""Count the tokens that rows cut off longer texts. The counts cover all rows of a split, by the lengths in the store.

{"rows": 200, "inputs": 0, "targets": 12, "tokens": 96, "longest": 31, "longest_inputs": 9, "longest_targets": 31}
"""

from collections.abc import Mapping

import numpy as np

Cut = dict[str, int]
SIDES = ("inputs", "targets")


def count_cut(lengths: np.ndarray, limits: tuple[int | None, int | None]) -> Cut:
    """Count the inputs and targets that are longer than a row allows.

    Args:
        lengths: [n, 2], tokens of each pair's inputs and targets, with EOS and the tokens in front.
        limits: the largest number of tokens of inputs, and of targets; None: that side is not cut.

    Returns:
        rows: n. inputs, targets: how many are cut. tokens: how many are lost. longest_inputs, longest_targets: tokens
            of the longest text of each side, cut or not. longest: tokens of the longest text that is cut, or 0.
    """
    cut: Cut = {"rows": len(lengths), "inputs": 0, "targets": 0, "tokens": 0, "longest": 0}
    for side, name in enumerate(SIDES):
        side_lengths = lengths[:, side]
        cut[f"longest_{name}"] = longest = int(side_lengths.max(initial=0))
        if limits[side] is not None and longest > limits[side]:
            cut[name] = int(np.sum(side_lengths > limits[side]))
            cut["tokens"] += int(np.maximum(side_lengths - limits[side], 0).sum())
            cut["longest"] = max(cut["longest"], longest)
    return cut


def _describe_lost(cut: Cut, length: int | None) -> str:
    """Return a sentence about the messages that conversations have lost, and about conversations that are left out.

    length: the largest number of tokens, `objective.inputs_length`.
    """
    parts = []
    if cut["histories"]:
        parts.append(
            f"the oldest messages of {cut['histories']:,} of {cut['rows']:,} conversations are left out "
            f"({cut['messages']:,} messages, {cut['history_tokens']:,} tokens)"
        )
    if cut["left_out"]:
        parts.append(f"{cut['left_out']:,} conversations are left out, because not even their last exchange fits")
    longest = f"longer than inputs_length={length} (the longest: {cut['longest_history']:,} tokens)"
    return f"{' and '.join(parts)}; they are {longest}; raise config.objective.inputs_length"


def describe_cut(cut: Mapping[str, int], limits: Mapping[str, int | None]) -> str | None:
    """Return a sentence that says how much is cut and which field to raise; None if nothing is cut.

    limits: {"inputs_length": n, "targets_length": m}; None: no limit.
    """
    notes = []
    if cut.get("histories") or cut.get("left_out"):
        notes.append(_describe_lost(cut, limits["inputs_length"]))
    counts = {"inputs": cut.get("inputs", 0) - cut.get("histories", 0), "targets": cut.get("targets", 0)}
    if sides := [name for name in SIDES if counts[name]]:
        parts = [
            f"{counts[name]:,} of {cut['rows']:,} {name} are longer than {name}_length={limits[f'{name}_length']} "
            f"(the longest: {cut[f'longest_{name}']:,} tokens)"
            for name in sides
        ]
        fields = " and ".join(f"config.objective.{name}_length" for name in sides)
        tokens = cut["tokens"] - cut.get("history_tokens", 0)
        notes.append(f"{' and '.join(parts)}, so that {tokens:,} tokens are cut; raise {fields}")
    return "; ".join(notes) or None


def describe_share(counts: Mapping[str, int]) -> str | None:
    """Return a sentence that says how many rows of a held-out set were evaluated; None if all rows were evaluated.

    counts: {"used", "of"}, and "generated" if answers were generated for another number of rows.
    """
    used, rows, generated = counts["used"], counts["of"], counts.get("generated")
    generated = used if generated is None else generated
    if used == generated == rows:
        return None
    answers = "" if generated == used else f", those of generated answers of {generated:,}"
    return f"metrics are of {used:,} of {rows:,} rows{answers} (eval.rows, eval.generate_rows)"
