"""Denoisers: objectives that add noise to a window. The model predicts the noise, or the whole window.

`DENOISERS` has a line for each of them, except for `bart`, which combines several noises.

T5's family replaces noise by sentinels, or drops noise (Raffel et al. 2020, "Exploring the Limits of Transfer Learning
with a Unified Text-to-Text Transformer", sections 3.1.4 and 3.3; text-to-text-transfer-transformer,
t5/data/preprocessors.py). BART's family replaces noise by [MASK], drops it, or changes the order of tokens. Its targets
are the whole window (Lewis et al. 2020; fairseq, denoising_dataset.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5lite.objectives import noise, order, rules
from t5lite.objectives.batch import Example
from t5lite.objectives.lengths import span_corruption_lengths
from t5lite.objectives.objective import (
    Expected,
    Fields,
    Kind,
    Objective,
    Row,
    TooFewSentinels,
    choose_bos,
    require_window,
)
from t5lite.system.errors import UserError, nearest
from t5lite.system.vocabulary import MASK, TokenTable, Vocabulary

Array = jax.Array


class Denoiser(NamedTuple):
    """Which tokens are noise, and the rules that make inputs and targets from the window and its noise.

    order: reorders the tokens before noise is chosen. Inputs have the new order; targets have the order of the window.
    density: the noise density if the config does not set one.
    random_share: the share of noise tokens that become random tokens.
    """

    process: Callable[[noise.Settings], noise.Process]
    inputs: rules.Rule
    targets: rules.Rule
    order: Callable[[Array, Array, TokenTable], Array] = order.keep_order
    density: float | None = 0.15
    random_share: float = 0.0


DENOISERS = {
    "span_corruption": Denoiser(
        noise.spans, rules.noise_span_to_unique_sentinel, rules.nonnoise_span_to_unique_sentinel
    ),
    "iid_denoising": Denoiser(noise.iid, rules.noise_span_to_unique_sentinel, rules.nonnoise_span_to_unique_sentinel),
    "drop_tokens": Denoiser(noise.iid, rules.drop_noise, rules.drop_nonnoise),
    "bert_style": Denoiser(noise.iid, rules.noise_token_to_same_sentinel, rules.keep_all, random_share=0.1),
    "mass_style": Denoiser(noise.iid, rules.noise_token_to_same_sentinel, rules.keep_all),
    "deshuffling": Denoiser(noise.no_noise, rules.keep_all, rules.keep_all, order.shuffle_tokens),
    "prefix_lm": Denoiser(noise.suffix, rules.drop_noise, rules.drop_nonnoise, density=None),
    "text_infilling": Denoiser(noise.poisson_words, rules.infill, rules.keep_all, density=0.3),
    "token_masking": Denoiser(noise.iid, rules.noise_token_to_mask, rules.keep_all, density=0.3),
    "token_deletion": Denoiser(noise.iid, rules.drop_noise, rules.keep_all, density=0.3),
    "sentence_permutation": Denoiser(noise.no_noise, rules.keep_all, rules.keep_all, order.shuffle_sentences),
    "document_rotation": Denoiser(noise.no_noise, rules.rotate(rules.keep_all), rules.keep_all),
}
TOKEN_NOISES = ("text_infilling", "token_masking", "token_deletion")
BART_NOISES = ("sentence_permutation", *TOKEN_NOISES, "document_rotation")


def combine_noises(noises: tuple[str, ...]) -> Denoiser:
    """Return the denoiser that combines BART's `noises`. The order of `noises` does not matter.

    Raises UserError for an unknown noise, for two token noises, and for empty `noises`.
    """
    for name in noises:
        if name not in BART_NOISES:
            raise UserError(f"config.objective.noises: unknown noise {name!r}; {nearest(name, BART_NOISES)}")
    token_noises = [name for name in TOKEN_NOISES if name in noises]
    if len(token_noises) > 1:
        raise UserError(f"config.objective.noises: {' and '.join(token_noises)} exclude each other; keep only one")
    if not noises:
        raise UserError(f"config.objective.noises: is empty; name some of {', '.join(BART_NOISES)}")
    denoiser = DENOISERS[token_noises[0] if token_noises else "sentence_permutation"]._replace(order=order.keep_order)
    if "sentence_permutation" in noises:
        denoiser = denoiser._replace(order=order.shuffle_sentences)
    if "document_rotation" in noises:
        denoiser = denoiser._replace(inputs=rules.rotate(denoiser.inputs))
    return denoiser


def _find_denoiser(fields: Fields) -> Denoiser:
    return combine_noises(tuple(fields["noises"])) if fields["name"] == "bart" else DENOISERS[fields["name"]]


def _make_noise_settings(fields: Fields, window: int, vocabulary: Vocabulary) -> noise.Settings:
    """Return the settings of the noise. Raises UserError for settings outside their ranges."""
    denoiser = _find_denoiser(fields)
    density, mean_length = fields["noise_density"], fields["mean_noise_span_length"]
    density = denoiser.density if density is None else density
    if density is not None and not 0 <= density < 1:
        raise UserError(f"config.objective.noise_density: must be at least 0 and below 1, is {density}")
    if density == 0 and denoiser.process is noise.suffix:
        raise UserError("config.objective.noise_density: with 0, a prefix LM has no targets; set it above 0")
    if mean_length < 1:
        raise UserError(f"config.objective.mean_noise_span_length: must be at least 1, is {mean_length}")
    needs_sentinels = denoiser.inputs.unique_sentinels or denoiser.targets.unique_sentinels
    # A window can have one more clean span than noise spans, and clean spans may need sentinels too.
    return noise.Settings(window, density, mean_length, max(vocabulary.sentinels - 1, 0) if needs_sentinels else None)


def _compute_window(fields: Fields, vocabulary: Vocabulary) -> int:
    """Return the largest window whose inputs, with EOS and BOS, always fit `inputs_length`."""
    length, denoiser = fields["inputs_length"] - (choose_bos(fields, vocabulary) is not None), _find_denoiser(fields)
    settings = _make_noise_settings(fields, length, vocabulary)
    window = length - 1
    if denoiser.process is noise.spans:
        window, _ = span_corruption_lengths(length, settings.noise_density, settings.mean_noise_span_length)
    else:
        while length >= 2 and _max_inputs_length(denoiser, settings, window + 1) < length:
            window += 1
    return require_window(fields, window)


def _max_inputs_length(denoiser: Denoiser, settings: noise.Settings, window: int) -> int:
    return denoiser.inputs.max_kept_tokens(window, denoiser.process(settings._replace(window=window)))


def _check_sentinels(name: str, denoiser: Denoiser, settings: noise.Settings, vocabulary: Vocabulary) -> None:
    """Raise TooFewSentinels if the vocabulary has too few sentinels for a likely number of spans."""
    process = denoiser.process(settings._replace(max_spans=None))
    more_clean = process.clean_spans - process.spans
    likely, needed = (
        max(rule.count_sentinels(spans, spans + more_clean) for rule in (denoiser.inputs, denoiser.targets))
        for spans in (process.likely_spans, process.spans)
    )
    same = int(rules.noise_token_to_same_sentinel in (denoiser.inputs, denoiser.targets))
    if max(likely, same) > vocabulary.sentinels:
        raise TooFewSentinels(name, max(needed, same), vocabulary.sentinels)


def _build(fields: Fields, vocabulary: Vocabulary, window: int) -> Objective:
    denoiser, settings = _find_denoiser(fields), _make_noise_settings(fields, window, vocabulary)
    _check_sentinels(fields["name"], denoiser, settings, vocabulary)
    process, ids = denoiser.process(settings), rules.Ids.from_vocabulary(vocabulary, denoiser.random_share)
    is_text = denoiser.targets is rules.drop_nonnoise and denoiser.process is noise.suffix
    # On a decoder, a prefix and its continuation are one text, without EOS between them.
    eos = None if is_text and fields["architecture"] == "decoder" else vocabulary.eos
    bos = choose_bos(fields, vocabulary)
    added = (eos is not None) + (bos is not None)
    sides = {"inputs": denoiser.inputs, "targets": denoiser.targets}
    lengths = {name: rule.max_kept_tokens(window, process) + added for name, rule in sides.items()}
    has_fixed_length = {name: process.least == process.most or not rule.varies for name, rule in sides.items()}

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        order_key, noise_key, *keys = jax.random.split(key, 4)
        tokens = row["tokens"]
        ordered = denoiser.order(order_key, tokens, table)
        chosen = process.sample(noise_key, ordered, table)
        compacted, segments = {}, {}
        for (name, rule), rule_key, source in zip(sides.items(), keys, (ordered, tokens), strict=True):
            compacted[name], count = rules.compact(*rule.apply(rule_key, source, chosen, ids), lengths[name], eos, bos)
            segments[name] = None if has_fixed_length[name] else (jnp.arange(lengths[name]) < count).astype(jnp.int32)
        weights = (
            jnp.ones(lengths["targets"]) if has_fixed_length["targets"] else segments["targets"].astype(jnp.float32)
        )
        new_order = None if denoiser.order is order.keep_order else ordered
        return Example(
            inputs=compacted["inputs"],
            targets=compacted["targets"],
            weights=weights,
            inputs_segment_ids=segments["inputs"],
            targets_segment_ids=segments["targets"],
            noise=chosen,
            ordered=new_order,
        )

    return Objective(
        name=fields["name"],
        architecture=fields["architecture"],
        make=make,
        rows="windows",
        window=window,
        inputs_length=lengths["inputs"],
        targets_length=lengths["targets"],
        decoder_length=rules.max_kept_tokens(tuple(sides.values()), window, process) + 2 * added,
        predicts_text=is_text,
        closes_inputs=eos is not None,
        targets_hold_specials=denoiser.targets.unique_sentinels,
        prefix_attention=is_text if fields["prefix_attention"] is None else fields["prefix_attention"],
        expected=Expected(None if process.mean is None else process.mean / window, process.mean_span),
    )


def _list_used_fields(fields: Fields) -> tuple[str, ...]:
    denoiser = _find_denoiser(fields)
    noise_fields = ("noises",) if fields["name"] == "bart" else ()
    return ("prefix_attention", *noise_fields, *noise.USES[denoiser.process])


def _list_specials(fields: Fields) -> tuple[str, ...]:
    return (MASK,) if _find_denoiser(fields).inputs.inserts_mask else ()


KIND = Kind(
    architectures=("encoder_decoder", "decoder"),
    window=_compute_window,
    build=_build,
    uses=_list_used_fields,
    specials=_list_specials,
    standards=("span_corruption",),
)
KINDS = dict.fromkeys((*DENOISERS, "bart"), KIND)
