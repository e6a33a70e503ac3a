"""Mixtures: each example has one of several objectives. The example's key draws the objective, by weight.

All members read windows of one length, the smallest of their windows. Inputs are padded to the longest inputs of any
member, and targets to the longest targets. A member may have a mode token. It is the first token of the inputs, or the
second if the inputs begin with BOS.

    config.objective.name = "mixture"
    config.objective.mixture = {
        "spans": {"name": "span_corruption", "weight": 2.0},
        "continuation": {"name": "prefix_lm", "mode": "[S2S]"},
    }

A field that a member does not set comes from `config.objective`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.objectives.batch import Example
from t5lite.objectives.noise import make_noise
from t5lite.objectives.objective import Fields, Head, Heads, Kind, Member, Objective, Row, TooFewSentinels, choose_bos
from t5lite.system.errors import UserError, nearest
from t5lite.system.vocabulary import TokenTable, Vocabulary

Array = jax.Array


def _make_span_member(mode: str, mean_length: int, density: float, weight: float = 1.0) -> dict[str, Any]:
    return {"name": "span_corruption", "mean_noise_span_length": float(mean_length), "noise_density": density,
            "mode": mode, "weight": weight}  # fmt: skip


def _make_last_quarter_member(weight: float = 1.0) -> dict[str, Any]:
    return {"name": "prefix_lm", "noise_density": 0.25, "mode": "[S2S]", "weight": weight}


# Tay et al. 2022, "UL2: Unifying Language Learning Paradigms", table 1; mode tokens as in the released checkpoints.
UL2 = {
    "R (3, .15)": _make_span_member("[NLU]", 3, 0.15),
    "R (8, .15)": _make_span_member("[NLU]", 8, 0.15),
    "X (3, .5)": _make_span_member("[NLG]", 3, 0.5),
    "X (8, .5)": _make_span_member("[NLG]", 8, 0.5),
    "X (64, .15)": _make_span_member("[NLG]", 64, 0.15),
    "X (64, .5)": _make_span_member("[NLG]", 64, 0.5),
    "S": _make_last_quarter_member(),
}
# Tay et al. 2022, "Transcending Scaling Laws with 0.1% Extra Compute", section 3.
UL2R = {
    "S": _make_last_quarter_member(0.5),
    "R (3, .15)": _make_span_member("[NLU]", 3, 0.15, 0.25),
    "X (32, .15)": _make_span_member("[NLG]", 32, 0.15, 0.125),
    "X (3, .5)": _make_span_member("[NLG]", 3, 0.5, 0.125),
}
MEMBER_FIELDS = ("weight", "mode")


def _configured_members(fields: Fields) -> Mapping[str, Any]:
    return {"ul2": UL2, "ul2r": UL2R}.get(fields["name"], fields["mixture"])


def _resolve_members(fields: Fields, kinds: Mapping[str, Kind]) -> dict[str, dict[str, Any]]:
    """Return {member: its fields, weight and mode}. Raises UserError for fields that cannot work."""
    configured = _configured_members(fields)
    if not configured:
        raise UserError("config.objective.mixture: is empty; set config.objective.mixture.NAME.name to an objective")
    members = {}
    for member, values in configured.items():
        where = f"config.objective.mixture.{member}"
        values = dict(values) if hasattr(values, "items") else {}
        for field in values:
            if field not in (*MEMBER_FIELDS, *fields):
                raise UserError(f"{where}: unknown field {field}; {nearest(field, (*MEMBER_FIELDS, *fields))}")
        name = values.get("name")
        if name not in kinds:
            raise UserError(f"{where}.name: unknown objective {name!r}; {nearest(str(name), kinds)}")
        weight = values.get("weight", 1.0)
        if not (isinstance(weight, int | float) and 0 < weight < np.inf):
            raise UserError(f"{where}.weight: must be a positive number, is {weight!r}")
        members[member] = {**fields, "mode": None, **values, "weight": float(weight)}
    return members


def mixture_kind(kinds: Mapping[str, Kind], architectures: tuple[str, ...]) -> Kind:
    """Return the Kind of a mixture. Its members are objectives in `kinds`."""

    def window(fields: Fields, vocabulary: Vocabulary) -> int:
        members = _resolve_members(fields, kinds).values()
        return min(kinds[member["name"]].window(member, vocabulary) for member in members)

    def build(fields: Fields, vocabulary: Vocabulary, window: int) -> Objective:
        architecture, members = fields["architecture"], _resolve_members(fields, kinds)
        for name, member in members.items():
            if architecture not in kinds[member["name"]].architectures:
                raise UserError(
                    f"config.objective.mixture.{name}: {member['name']} has no meaning on "
                    f"config.model.architecture={architecture!r}; choose another objective"
                )
        objectives, errors = {}, []
        for name, member in members.items():
            try:
                objectives[name] = kinds[member["name"]].build(member, vocabulary, window)
            except TooFewSentinels as error:
                errors.append(TooFewSentinels(f"{fields['name']}, {name}", error.needed, vocabulary.sentinels))
            except UserError as error:
                raise UserError(f"{fields['name']}, {name}: {error}") from error
        if errors:
            raise max(errors, key=lambda error: error.needed)  # enough sentinels for this member are enough for all
        if architecture == "encoder" and any(member["mode"] for member in members.values()):
            raise UserError("config.objective.mixture: an encoder cannot have mode tokens; unset `mode`")
        modes = [vocabulary.specials[member["mode"]] if member["mode"] else None for member in members.values()]
        mode_place = 0 if choose_bos(fields, vocabulary) is None else 1
        return _mix_objectives(
            fields, objectives, modes, mode_place, np.array([member["weight"] for member in members.values()])
        )

    def specials(fields: Fields) -> tuple[str, ...]:
        needed: dict[str, None] = {}
        for member in _resolve_members(fields, kinds).values():
            needed |= dict.fromkeys((*kinds[member["name"]].specials(member), *filter(None, [member["mode"]])))
        return tuple(needed)

    def evaluation_fields(fields: Fields) -> Fields:
        members = _resolve_members(fields, kinds)
        evaluated = {name: kinds[member["name"]].evaluation_fields(member) for name, member in members.items()}
        return fields if evaluated == members else {**fields, "mixture": evaluated}

    def uses(fields: Fields) -> tuple[str, ...]:
        used = {"mixture": fields["name"] == "mixture"}
        configured = _configured_members(fields)
        for name, member in _resolve_members(fields, kinds).items():
            used |= {field: True for field in kinds[member["name"]].uses(member) if field not in configured[name]}
        return tuple(name for name, is_used in used.items() if is_used)

    return Kind(architectures, window, build, uses, specials, evaluation_fields, standards=("span_corruption",))


def _mix_objectives(
    fields: Fields, built: Mapping[str, Objective], modes: list[int | None], mode_place: int, weights: np.ndarray
) -> Objective:
    """Return the objective of the mixture.

    Args:
      built: {member's name: its objective}.
      modes: the id of each member's mode token; None: no mode token.
      mode_place: the index of the mode token in the inputs.
      weights: the relative frequency of each member.
    """
    architecture, objectives = fields["architecture"], list(built.values())
    front = [0 if mode is None else 1 for mode in modes]
    inputs_length = max(extra + each.inputs_length for extra, each in zip(front, objectives, strict=True))
    targets_length = max(each.targets_length for each in objectives)
    other_heads = tuple(dict.fromkeys(head for each in objectives for head in each.heads.others))
    cumulative = jnp.asarray(np.cumsum(weights)[:-1] / weights.sum(), jnp.float32)

    def make(key: Array, row: Row, table: TokenTable) -> Example:
        choice_key, member_key = jax.random.split(key)
        choice = jnp.searchsorted(cumulative, jax.random.uniform(choice_key), side="right").astype(jnp.int32)
        examples = [
            _pad_example(example, row["tokens"], inputs_length, targets_length, other_heads)
            for example in (
                _insert_mode_token(each.make(member_key, row, table), mode, mode_place)
                for each, mode in zip(objectives, modes, strict=True)
            )
        ]
        chosen = jax.tree.map(lambda *leaves: jax.lax.select_n(choice, *leaves), *examples)
        return chosen.replace(member=choice)

    return Objective(
        name=fields["name"],
        architecture=architecture,
        make=make,
        rows="windows",
        window=objectives[0].window,
        inputs_length=inputs_length,
        targets_length=targets_length,
        decoder_length=max(extra + each.lengths[1] for extra, each in zip(front, objectives, strict=True)),
        # Windows have EOS tokens only if all members read EOS, and document segments only if all members use segments.
        with_eos=all(each.with_eos for each in objectives),
        segments=all(each.segments for each in objectives),
        predicts_text=all(each.predicts_text for each in objectives),
        closes_inputs=any(each.closes_inputs for each in objectives),
        targets_hold_specials=any(each.targets_hold_specials for each in objectives),
        prefix_attention=any(each.prefix_attention for each in objectives),
        members=tuple(
            Member(name, float(share), each.expected)
            for (name, each), share in zip(built.items(), weights / weights.sum(), strict=True)
        ),
        second_window=any(each.second_window for each in objectives),
        predicted=None if architecture != "encoder" else max(each.predicted for each in objectives),
        heads=Heads(others=other_heads),
    )


def _insert_mode_token(example: Example, mode: int | None, mode_place: int) -> Example:
    """Insert `mode` into the example's inputs at the index `mode_place`. If `mode` is None, return it unchanged."""
    if mode is None:
        return example
    ids = example.inputs_segment_ids
    return example.replace(
        inputs=jnp.insert(example.inputs, mode_place, jnp.int32(mode)),
        inputs_segment_ids=None if ids is None else jnp.insert(ids, mode_place, jnp.int32(1)),
    )


def _pad_example(
    example: Example, tokens: Array, inputs_length: int, targets_length: int, other_heads: tuple[Head, ...]
) -> Example:
    """Pad both sides, and fill fields that this member does not set, so that all examples have one structure.

    other_heads: all heads of the mixture, except the vocabulary's.
    """
    inputs, targets = example.inputs, example.targets
    inputs_ids, targets_ids = (
        jnp.ones(side.shape, jnp.int32) if ids is None else ids
        for side, ids in ((inputs, example.inputs_segment_ids), (targets, example.targets_segment_ids))
    )

    def pad(side: Array, length: int) -> Array:
        return jnp.pad(side, (0, length - side.shape[0]))

    return Example(
        inputs=pad(inputs, inputs_length),
        targets=pad(targets, targets_length),
        weights=pad(example.weights, targets_length),
        inputs_segment_ids=pad(inputs_ids, inputs_length),
        targets_segment_ids=pad(targets_ids, targets_length),
        noise=make_noise(jnp.zeros(tokens.shape, bool)) if example.noise is None else example.noise,
        ordered=tokens if example.ordered is None else example.ordered,
        token_types=pad(inputs * 0 if example.token_types is None else example.token_types, inputs_length),
        answers={head.name: _pad_answers(example, head, inputs_length) for head in other_heads},
    )


def _pad_answers(example: Example, head: Head, length: int) -> Array:
    """Return the example's answers for `head`; -1 where the example has no answer."""
    answers = example.answers.get(head.name)
    if head.each == "example":
        return jnp.int32(-1) if answers is None else answers
    answers = jnp.zeros(0, jnp.int32) if answers is None else answers
    return jnp.pad(answers, (0, length - len(answers)), constant_values=-1)
