"""Language models, on a decoder: predict the next token of a text. One objective moves the text's middle to its end."""

import jax
import jax.numpy as jnp

from t5lite.objectives.batch import Example
from t5lite.objectives.noise import Noise, make_noise
from t5lite.objectives.objective import Fields, Kind, Objective, Row, require_window
from t5lite.system.errors import UserError
from t5lite.system.vocabulary import MIDDLE, PREFIX, SUFFIX, TokenTable, Vocabulary

Array = jax.Array
FIM_TOKENS = (PREFIX, SUFFIX, MIDDLE)
STANDARD = ("causal_lm",)


def _compute_causal_window(fields: Fields, vocabulary: Vocabulary) -> int:
    """Return the window of a causal language model. Raises UserError for settings that it cannot have."""
    del vocabulary
    if fields["prefix_attention"]:
        raise UserError(
            f"config.objective.prefix_attention: {fields['name']} has no inputs, so no position may see a later one; "
            "set the field to False"
        )
    if fields["inputs_length"] < 2:
        raise UserError(f"config.objective.inputs_length: must be at least 2, is {fields['inputs_length']}")
    return fields["inputs_length"]


def _build_causal(fields: Fields, vocabulary: Vocabulary, window: int) -> Objective:
    del vocabulary

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del key, table
        empty = jnp.zeros(0, jnp.int32)
        return Example(empty, row["tokens"], jnp.ones(window, jnp.float32), None, row.get("segment_ids"))

    return Objective(
        name=fields["name"],
        architecture=fields["architecture"],
        make=make,
        rows="windows",
        window=window,
        inputs_length=0,
        targets_length=window,
        with_eos=True,
        segments=fields["segments"],
        predicts_text=True,
        closes_inputs=False,
    )


def _compute_fim_window(fields: Fields, vocabulary: Vocabulary) -> int:
    return require_window(fields, _compute_causal_window(fields, vocabulary) - len(FIM_TOKENS))


def number_parts(window: int, low: Array | int, high: Array | int) -> Array:
    """Return int32 [L]: the part that each token of a window belongs to. The window is cut at `low` and `high`.

    0: prefix, 1: middle, 2: suffix.
    """
    place = jnp.arange(window)
    return (place >= low).astype(jnp.int32) + (place >= high)


def move_middle(tokens: Array, part: Array, specials: Array, suffix_first: Array | bool) -> Array:
    """Return int32 [L + 3]: the three parts of `tokens` and the three specials.

    They have one of the two orders that `_build_fill_in_the_middle` shows. The middle is always the last part.

    Args:
      part: int32 [L], see `number_parts`.
      specials: int32 [3], the ids of `FIM_TOKENS`.
      suffix_first: whether to use the second order that `_build_fill_in_the_middle` shows.
    """
    # Tokens are sorted by rank. These are the ranks of the three specials, and of prefix, middle and suffix.
    marks = jnp.where(suffix_first, jnp.array([0, 1, 3]), jnp.array([0, 2, 4]))
    parts = jnp.where(suffix_first, jnp.array([4, 5, 2]), jnp.array([1, 5, 3]))
    rank = jnp.concatenate([marks, parts[part]])
    return jnp.concatenate([specials, tokens])[jnp.argsort(rank, stable=True)]


def _build_fill_in_the_middle(fields: Fields, vocabulary: Vocabulary, window: int) -> Objective:
    """Return the objective that moves a window's middle to the window's end, with probability `fim_rate`.

    Two orders of the three parts are equally likely:

        prefix, suffix, middle    <fim_prefix> p <fim_suffix> s <fim_middle> m
        suffix, prefix, middle    <fim_prefix> <fim_suffix> s <fim_middle> p m

    The places of the two cuts are uniform in [0, L], and parts may be empty. The loss is on all tokens, also on the
    three specials.
    Source: Bavarian et al. 2022, "Efficient Training of Language Models to Fill in the Middle", section 3.
    """
    rate = fields["fim_rate"]
    if not 0 <= rate <= 1:
        raise UserError(f"config.objective.fim_rate: must be from 0 to 1, but is {rate}")
    length = window + len(FIM_TOKENS)
    specials = jnp.array([vocabulary.specials[name] for name in FIM_TOKENS], jnp.int32)

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        del table
        cuts_key, rate_key, order_key = jax.random.split(key, 3)
        low, high = jnp.sort(jax.random.randint(cuts_key, (2,), 0, window + 1))
        part = number_parts(window, low, high)
        moved = move_middle(row["tokens"], part, specials, jax.random.bernoulli(order_key))
        is_moved = jax.random.uniform(rate_key) < rate
        targets = jnp.where(is_moved, moved, jnp.pad(row["tokens"], (0, len(FIM_TOKENS))))
        segment_ids = (is_moved | (jnp.arange(length) < window)).astype(jnp.int32)
        noise: Noise = make_noise((part == 1) & is_moved)
        empty = jnp.zeros(0, jnp.int32)
        return Example(empty, targets, segment_ids.astype(jnp.float32), None, segment_ids, noise)

    return Objective(
        name=fields["name"],
        architecture=fields["architecture"],
        make=make,
        rows="windows",
        window=window,
        inputs_length=0,
        targets_length=length,
        with_eos=True,
        closes_inputs=False,
        targets_hold_specials=True,
    )


KINDS = {
    "causal_lm": Kind(
        architectures=("decoder",),
        window=_compute_causal_window,
        build=_build_causal,
        uses=lambda fields: ("segments",),
        standards=STANDARD,
    ),
    "fill_in_the_middle": Kind(
        architectures=("decoder",),
        window=_compute_fim_window,
        build=_build_fill_in_the_middle,
        uses=lambda fields: ("fim_rate",),
        specials=lambda fields: FIM_TOKENS,
        standards=STANDARD,
    ),
}
