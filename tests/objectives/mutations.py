"""Known mistakes, which are made one at a time on purpose. A test of the objectives must catch each mistake.

    python -m tests.objectives.mutations                  all mistakes; takes minutes
    python -m tests.objectives.mutations fused upwards    mistakes whose names contain one of these words

Prints a line for each mistake, with the first test that fails, and exits with 1 if a mistake survives. The mistakes are
made in a copy of the code. The test `Mutation.where` runs first. If it passes, all tests of this folder run.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Mutation(NamedTuple):
    """A mistake: `new` replaces `old`, which occurs once in t5lite/objectives/`file`. The test `where` should fail."""

    name: str
    file: str
    old: str
    new: str
    where: str


MUTATIONS = [
    Mutation(
        "adjacent spans fused into one mask", "noise.py",
        "return mark_words(first), begins & ~mark_words(first + 1)",
        "return mark_words(first), span_starts(mark_words(first))",
        "infilling.py::test_spans_cover_whole_words",
    ),
    Mutation(
        "a mask for a span that begins inside another", "noise.py",
        "begins & ~mark_words(first + 1)", "begins & mark_words(first)",
        "infilling.py::test_spans_cover_whole_words",
    ),
    Mutation(
        "no infill of length zero", "noise.py",
        "before = jnp.cumsum(lengths)", "lengths = jnp.maximum(lengths, 1)\n    before = jnp.cumsum(lengths)",
        "infilling.py::test_span_lengths_are_poisson_before_the_last_is_trimmed",
    ),
    Mutation(
        "the last infill not trimmed", "noise.py",
        "jnp.clip(budget - before, 0, lengths)", "jnp.where(before < budget, lengths, 0)",
        "infilling.py::test_lengths_are_drawn_until_they_meet_the_budget",
    ),
    Mutation(
        "the budget of infills rounded down", "noise.py",
        "np.ceil(np.arange(most + 1)", "np.floor(np.arange(most + 1)",
        "infilling.py::test_the_budget_is_rounded_up",
    ),
    Mutation(
        "the budget of infills in tokens instead of words", "noise.py",
        "jnp.asarray(budgets)[words]", "jnp.asarray(budgets)[window]",
        "infilling.py::test_the_budget_counts_words_where_words_have_several_tokens",
    ),
    Mutation(
        "masks on pieces before the first word", "noise.py",
        "dtype=jnp.int32) - 1\n\n\ndef word_budgets", "dtype=jnp.int32).clip(1) - 1\n\n\ndef word_budgets",
        "infilling.py::test_the_budget_counts_words_where_words_have_several_tokens",
    ),
    Mutation(
        "insertions in front instead of anywhere", "rules.py",
        "inserted = random_subset(key, place < total, noise.inserts)", "inserted = place < noise.inserts",
        "infilling.py::test_an_insertion_is_a_mask_more_anywhere_and_takes_nothing_away",
    ),
    Mutation(
        "the targets of a denoising autoencoder permuted too", "denoisers.py",
        "keys, (ordered, tokens), strict", "keys, (ordered, ordered), strict",
        "orders.py::test_targets_are_the_window_in_its_own_order",
    ),
    Mutation(
        "noise first, so that targets end in a sentinel", "noise.py",
        "return jnp.cumsum(flips) % 2 == 1", "return jnp.cumsum(flips) % 2 == 0",
        "span_corruption.py::test_sides_end_in_eos_once_and_are_full",
    ),
    Mutation(
        "counts rounded in float64", "noise.py",
        "np.round(np.float32(length) * np.float32(noise_density))", "np.round(length * noise_density)",
        "span_corruption.py::test_counts_are_rounded_in_float32_halves_to_even",
    ),
    Mutation(
        "sentinels counted upwards", "rules.py",
        "size - jnp.cumsum(starts)", "size - 1 - jnp.sum(starts) + jnp.cumsum(starts)",
        "span_corruption.py::test_rules_give_the_golden_sides",
    ),
    Mutation(
        "spans of equal lengths", "noise.py",
        "is_cut = random_subset(key, jnp.ones(items - 1, bool), parts - 1)",
        "is_cut = jnp.diff(jnp.arange(items) * parts // items) > 0",
        "span_corruption.py::test_every_partition_is_equally_likely",
    ),
    Mutation(
        "a choice by draws of two bits", "noise.py",
        "jax.random.bits(key, among.shape, jnp.uint32)", "jax.random.bits(key, among.shape, jnp.uint32) >> 30",
        "noise.py::test_every_choice_of_two_of_the_first_five_places_is_equally_likely",
    ),
    Mutation(
        "equal draws all chosen", "noise.py",
        "(equal & (jnp.cumsum(equal) <= count - jnp.sum(below)))", "equal",
        "noise.py::test_the_lowest_draws_are_chosen_and_of_equal_ones_the_first",
    ),
    Mutation(
        "the last split point missing", "noise.py",
        "jax.random.randint(key, (), 1, window)", "jax.random.randint(key, (), 1, window - 1)",
        "noise.py::test_a_prefix_ends_anywhere",
    ),
    Mutation(
        "an empty prefix", "noise.py",
        "jax.random.randint(key, (), 1, window)", "jax.random.randint(key, (), 0, window)",
        "noise.py::test_a_prefix_ends_anywhere",
    ),
    Mutation(
        "noise beyond the sentinels not turned off", "noise.py",
        "& (jnp.cumsum(span_starts(mask)) <= max_spans)", "",
        "noise.py::test_noise_beyond_the_bounds_is_turned_off_and_what_is_missing_on",
    ),
    Mutation(
        "noise beyond the room cut off instead of turned off", "noise.py",
        "mask = mask & (jnp.cumsum(mask) <= most)", "mask = mask & True",
        "noise.py::test_noise_beyond_the_bounds_is_turned_off_and_what_is_missing_on",
    ),
    Mutation(
        "a clean span that has no sentinel left", "denoisers.py",
        "max(vocabulary.sentinels - 1, 0) if needs_sentinels", "vocabulary.sentinels if needs_sentinels",
        "noise.py::test_no_token_ever_serves_as_a_sentinel",
    ),
    Mutation(
        "EOS missing", "rules.py",
        "compacted = compacted.at[count].set(eos", "compacted = compacted.at[count].set(0",
        "span_corruption.py::test_sides_end_in_eos_once_and_are_full",
    ),
    Mutation(
        "EOS doubled", "rules.py",
        "compacted.at[count].set(eos", "compacted.at[count - 1].set(eos).at[count].set(eos",
        "span_corruption.py::test_sides_end_in_eos_once_and_are_full",
    ),
    Mutation(
        "random ids among the sentinels", "rules.py",
        "np.flatnonzero(~vocabulary.table.is_special[: vocabulary.pieces])", "np.arange(vocabulary.size)",
        "noise.py::test_a_tenth_of_the_noise_of_bert_style_becomes_a_random_piece",
    ),
    Mutation(
        "twice as many random ids", "denoisers.py",
        "rules.keep_all, random_share=0.1", "rules.keep_all, random_share=0.2",
        "noise.py::test_a_tenth_of_the_noise_of_bert_style_becomes_a_random_piece",
    ),
    Mutation(
        "the same noise for all rows of a batch", "objective.py",
        "jax.random.fold_in(seed_key, place))(places)", "jax.random.fold_in(seed_key, step))(places)",
        "every_objective.py::test_each_example_of_a_run_has_a_key_of_its_own_whatever_the_batch_size",
    ),
    Mutation(
        "the same noise at every step", "objective.py",
        "step.astype(jnp.uint32) * jnp.uint32(batch_size) + ", "",
        "every_objective.py::test_each_example_of_a_run_has_a_key_of_its_own_whatever_the_batch_size",
    ),
    Mutation(
        "sentences sorted by draws of two bits", "order.py",
        "jax.random.uniform(key, tokens.shape)", "jax.random.randint(key, tokens.shape, 0, 4)",
        "orders.py::test_every_order_of_four_sentences_is_equally_likely",
    ),
    Mutation(
        "every stop ends a sentence", "order.py",
        "ends = stops & ~jnp.concatenate([jnp.zeros(1, bool), stops[:-1]])", "ends = stops",
        "orders.py::test_sentences_end_with_the_first_of_several_stops",
    ),
    Mutation(
        "rotation never as far as the last token", "rules.py",
        "jnp.maximum(jnp.sum(keep), 1))", "jnp.maximum(jnp.sum(keep) - 1, 1))",
        "orders.py::test_every_token_of_a_window_is_as_likely_to_become_its_first",
    ),
    Mutation(
        "the prefix before the suffix where the suffix should come first", "language_models.py",
        "jnp.array([4, 5, 2])", "jnp.array([2, 5, 4])",
        "language_models.py::test_the_middle_goes_to_the_end",
    ),
    Mutation(
        "the suffix never empty", "language_models.py",
        "jax.random.randint(cuts_key, (2,), 0, window + 1)", "jax.random.randint(cuts_key, (2,), 0, window)",
        "language_models.py::test_cuts_are_uniform_and_parts_may_be_empty",
    ),
    Mutation(
        "a prefix mask that is one short", "batch.py",
        "shift_right(in_inputs, None) | (segment_starts(_fill_segments(tokens, segment_ids)) & in_inputs)", "in_inputs",
        "batch.py::test_the_decoder_layout_is_the_docstrings",
    ),
    Mutation(
        "the decoder sees the token that it is to predict", "batch.py",
        "shifted = jnp.concatenate([jnp.full(1, start, tokens.dtype), tokens[:-1]])", "shifted = tokens",
        "batch.py::test_the_encoder_decoder_layout_is_the_docstrings",
    ),
    Mutation(
        "loss on padding", "denoisers.py",
        'segments["targets"].astype(jnp.float32)', 'jnp.ones(lengths["targets"])',
        "every_objective.py::test_batches_are_well_formed[iid_denoising-encoder_decoder]",
    ),
    Mutation(
        "weights of a mixture ignored", "mixtures.py",
        "np.cumsum(weights)[:-1] / weights.sum()", "np.arange(1, len(weights)) / len(weights)",
        "mixtures.py::test_members_are_chosen_by_weight",
    ),
    Mutation(
        "the mode token last", "mixtures.py",
        "inputs=jnp.insert(example.inputs, mode_place, jnp.int32(mode))",
        "inputs=jnp.append(example.inputs, jnp.int32(mode))",
        "mixtures.py::test_a_mixture_of_one_is_that_one_with_its_mode_in_front",
    ),
    Mutation(
        "the largest window of a mixture's members", "mixtures.py",
        "return min(kinds", "return max(kinds",
        "mixtures.py::test_the_window_is_the_smallest_of_the_members_and_the_sides_the_largest",
    ),
    Mutation(
        "a masked [CLS]", "masked_lm.py",
        "candidates = ~jnp.asarray(table.is_special)[tokens]", "candidates = jnp.ones(tokens.shape, bool)",
        "masked_lm.py::test_specials_are_never_asked_for_and_all_else_as_often",
    ),
    Mutation(
        "the count of a length without [CLS] and [SEP]", "masked_lm.py",
        "max(1, round(density * length))", "max(1, round(density * (length - 2)))",
        "masked_lm.py::test_every_example_asks_for_its_count",
    ),
    Mutation(
        "no random tokens among the masked", "masked_lm.py",
        "MASKED, MASKED_OR_RANDOM = 0.8, 0.9", "MASKED, MASKED_OR_RANDOM = 0.8, 0.8",
        "masked_lm.py::test_eighty_percent_mask_ten_random_ten_kept",
    ),
    Mutation(
        "a word torn at the count", "masked_lm.py",
        "fits = total + size <= masking.count", "fits = total < masking.count",
        "masked_lm.py::test_a_word_that_would_be_too_much_is_passed_over_for_the_next",
    ),
    Mutation(
        "two thirds of next sentences wrong", "masked_lm.py",
        "jax.random.bernoulli(label_key)", "jax.random.bernoulli(label_key, 2 / 3)",
        "masked_lm.py::test_half_of_the_second_parts_do_not_belong",
    ),
    Mutation(
        "the first [SEP] of the second part's type", "masked_lm.py",
        "> cut + 1).astype", "> cut).astype",
        "masked_lm.py::test_the_second_part_is_how_the_first_goes_on_or_it_is_not",
    ),
    Mutation(
        "evaluated as it trains", "masked_lm.py",
        'return {**fields, **usual, "whole_words": False}', "return fields",
        "masked_lm.py::test_evaluation_is_the_usual_one_whatever_training_does",
    ),
]  # fmt: skip


def find_failing_test(folder: Path, tests: Sequence[str]) -> str | None:
    """Return the first of `tests` that fails in the copy; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    named = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not named:
        sys.exit(f"pytest did not run: {done.stdout}{done.stderr}")
    return named[0].removeprefix("tests/objectives/")


def copy_code(folder: Path) -> None:
    for name in ("t5lite", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)


def find_catching_test(mutation: Mutation) -> str | None:
    """Return the test that catches the mistake; None if no test does."""
    with tempfile.TemporaryDirectory(prefix="t5lite-mutation-") as name:
        folder = Path(name)
        copy_code(folder)
        path = folder / "t5lite" / "objectives" / mutation.file
        text = path.read_text()
        if text.count(mutation.old) != 1:
            sys.exit(f"{mutation.name}: the text to change occurs {text.count(mutation.old)} times in {mutation.file}")
        path.write_text(text.replace(mutation.old, mutation.new))
        likely = f"tests/objectives/test_{mutation.where}"
        return find_failing_test(folder, [likely]) or find_failing_test(folder, ["tests/objectives"])


def main(words: Sequence[str]) -> int:
    chosen = [mutation for mutation in MUTATIONS if not words or any(word in mutation.name for word in words)]
    with tempfile.TemporaryDirectory(prefix="t5lite-mutation-") as folder:
        copy_code(Path(folder))
        if not words and (failing := find_failing_test(Path(folder), ["tests/objectives"])):
            sys.exit(f"{failing} fails without any mistake")
    survivors = 0
    for mutation in chosen:
        test = find_catching_test(mutation)
        survivors += test is None
        print(f"{mutation.name}: {test or 'SURVIVES'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mistakes caught")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
