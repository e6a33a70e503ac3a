"""Read the rules of generation in generation_config.json or config.json of a release, and write them again.

    eos_token_id, forced_bos_token_id, forced_eos_token_id,      part of the meaning of the weights: generation
    suppress_tokens, begin_suppress_tokens, bad_words_ids        always follows them (`Rules`)
    decoder_start_token_id, bos_token_id, pad_token_id           the tokenizer's roles
    min_length, min_new_tokens, no_repeat_ngram_size             hold unless the user sets them (in `Rules.asked`)
    num_beams, temperature, max_length, …                        settings that the user chooses (in `Rules.asked`)

A workdir keeps the rules in tokenizer/vocabulary.json under "generation".
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data.tokenizers.release_files import GENERATION_FILE, MODEL_CONFIG_FILE, ReleaseFiles
from t5lite.system.errors import UserError
from t5lite.system.files import has_shape
from t5lite.system.vocabulary import Rules, Vocabulary

FORMAT = 1  # version of the rules in a workdir
# {setting: (the value that changes nothing, the flag of `generate` that does the same or None)}.
SAMPLING_SETTINGS = {"temperature": (None, "--temperature"), "top_k": (None, "--top_k"), "top_p": (1.0, "--top_p"),
                     "min_p": (None, "--min_p"), "typical_p": (1.0, None), "epsilon_cutoff": (0.0, None),
                     "eta_cutoff": (0.0, None)}  # fmt: skip
SETTINGS = {
    "max_length": (20, "--max_new_tokens"), "max_new_tokens": (None, "--max_new_tokens"), **SAMPLING_SETTINGS,
    "num_beams": (1, "--num_beams"), "length_penalty": (1.0, "--length_penalty"),
    "early_stopping": (False, "--early_stopping"), "repetition_penalty": (1.0, "--repetition_penalty"),
    "num_return_sequences": (1, "--num_return"), "stop_strings": (None, "--stop"),
    "min_length": (0, "--min_new_tokens"), "min_new_tokens": (0, "--min_new_tokens"),
    "no_repeat_ngram_size": (0, "--no_repeat_ngram_size"), "encoder_no_repeat_ngram_size": (0, None),
    **dict.fromkeys(("encoder_repetition_penalty", "num_beam_groups"), (1, None)),
    **dict.fromkeys(("diversity_penalty",), (0.0, None)),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values"), (False, None)),
    **dict.fromkeys(("exponential_decay_length_penalty", "guidance_scale", "penalty_alpha",
                     "sequence_bias", "force_words_ids", "constraints", "forced_decoder_ids", "watermarking_config",
                     "dola_layers", "max_time"), (None, None)),
}  # fmt: skip
WHOLE_NUMBERS = ("min_length", "min_new_tokens", "no_repeat_ngram_size")  # generation follows them
SAMPLING_DEFAULTS = {"temperature": 1.0, "top_k": 50}  # the values of transformers if a file has none
SAVED_SHAPE = {"format": int, "stops": [int], "first": (int, None), "last": (int, None), "never": [int],
               "never_first": [int], "asked": dict}  # fmt: skip


def read_rules(files: ReleaseFiles, vocabulary: Vocabulary) -> Rules:
    """Return the rules of a release. Ids that the vocabulary lacks are dropped.

    Raises UserError for a field that holds no ids, and for a forced id that the vocabulary lacks or that is suppressed.
    """
    fields = files.generation
    file = files.folder / (GENERATION_FILE if files.has(GENERATION_FILE) else MODEL_CONFIG_FILE)

    def read_ids(name: str) -> tuple[int, ...]:
        value = fields.get(name)
        value = [] if value is None else value if isinstance(value, list) else [value]
        if not has_shape(value, [int]):
            is_now = json.dumps(value)[:60]
            raise UserError(f"{file}: {name} should be an id or a list of ids, but is {is_now}; correct it")
        # Other ids are never generated. They need not be forbidden, and cannot end an answer.
        return tuple(dict.fromkeys(token for token in value if 0 <= token < vocabulary.rows))

    def read_forced(name: str) -> int | None:
        tokens = read_ids(name)
        if fields.get(name) not in (None, [], *tokens, list(tokens)) or len(tokens) > 1:
            raise UserError(
                f"{file}: {name}={json.dumps(fields[name])[:60]} should be one id of the tokenizer; correct it"
            )
        if tokens and tokens[0] in suppressed:
            raise UserError(f"{file}: {name}={tokens[0]} is among suppress_tokens; correct one of them")
        return tokens[0] if tokens else None

    words = fields.get("bad_words_ids") or []
    if not has_shape(words, [[int]]):
        is_now = json.dumps(words)[:60]
        raise UserError(f"{file}: bad_words_ids should be a list of lists of ids, but is {is_now}; correct it")
    single = tuple(word[0] for word in words if len(word) == 1 and 0 <= word[0] < vocabulary.rows)
    longer = [word for word in words if len(word) > 1]
    for name in WHOLE_NUMBERS:
        if (value := fields.get(name)) is not None and not _is_whole(value):
            is_now = json.dumps(value)[:60]
            raise UserError(f"{file}: {name} should be a whole number, at least 0, but is {is_now}; correct it")
    suppressed = read_ids("suppress_tokens")
    first = read_forced("forced_bos_token_id")
    if first is None and fields.get("force_bos_token_to_be_generated") is True:  # a field of older BART files
        first = read_forced("bos_token_id")
    return Rules(
        stops=read_ids("eos_token_id"),
        first=first,
        last=read_forced("forced_eos_token_id"),
        never=tuple(sorted({*suppressed, *single})),
        never_first=read_ids("begin_suppress_tokens"),
        asked=_read_settings(fields) | ({"bad_words_ids": longer} if longer else {}),
    )


def _is_whole(value: Any) -> bool:
    return has_shape(value, int) and value >= 0


def _read_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings whose values have an effect. Leave out sampling settings if the release does not sample."""
    samples = fields.get("do_sample") is True
    settings = {"do_sample": True} if samples else {}
    fields = (
        {**SAMPLING_DEFAULTS, **fields} if samples else {k: v for k, v in fields.items() if k not in SAMPLING_SETTINGS}
    )
    return settings | {
        name: fields[name] for name, (nothing, _) in SETTINGS.items() if fields.get(name) not in (None, nothing)
    }


def describe_ignored(rules: Rules, architecture: str, given: Collection[str] = ()) -> str | None:
    """Return a line that names the settings of a release that generation ignores, and the flags that do the same.

    None: there are no such settings. given: flags of `generate` that the user gave. The line leaves out their settings,
    because the flags decide.
    """
    asked = dict(rules.asked)
    if rules.first is not None and architecture == "decoder":
        asked["forced_bos_token_id"] = rules.first
    followed = {"min_new_tokens", "no_repeat_ngram_size"}
    if architecture == "encoder_decoder" or "min_new_tokens" in asked:  # see `Rules.usual_settings`
        followed.add("min_length")
    flag_of = {name: flag for name, (_, flag) in SETTINGS.items()}
    asked = {name: value for name, value in asked.items() if name not in followed and flag_of.get(name) not in given}
    values = {name: str(value).lower() if isinstance(value, bool) else value for name, value in asked.items()}
    if "max_length" in asked:  # max_length counts the decoder's start, and a decoder's prompt
        length = asked["max_length"]
        new = length - 1 if architecture == "encoder_decoder" and isinstance(length, int) else "N"
        values["max_length"] = values.get("max_new_tokens", new)
    if "min_length" in asked:
        values["min_length"] = "N"
    flags = {flag_of[name]: value for name, value in values.items() if flag_of.get(name) is not None}
    without_flag = [name for name in asked if flag_of.get(name) is None and name != "do_sample"]
    if not flags and not without_flag:
        return None
    settings = ", ".join(f"{name}={json.dumps(value)[:40]}" for name, value in asked.items())
    flags_hint = f"; to use them, give {' '.join(f'{flag} {value}' for flag, value in flags.items())}" if flags else ""
    no_flag_note = f"; there is no flag for {', '.join(without_flag)}" if without_flag else ""
    return f"the release sets {settings}, which generate ignores{flags_hint}{no_flag_note}"


def rules_to_json(rules: Rules) -> dict[str, Any]:
    """Return the JSON value that `rules_from_json` reads."""
    return {"format": FORMAT, **dataclasses.asdict(rules)}


def rules_from_json(saved: Any, file: Path, rows: int) -> Rules | None:
    """Return the rules in a workdir; None if there are none. Raises UserError for damage, or rules of a newer t5lite.

    Args:
        saved: the JSON value.
        file: the file with the value, for errors.
        rows: the number of ids in the vocabulary.
    """
    if saved is None:
        return None
    if isinstance(saved, dict) and isinstance(saved.get("format"), int) and saved["format"] > FORMAT:
        raise UserError(f"{file}: the rules of generation were written by a newer t5lite; update t5lite")
    if not has_shape(saved, SAVED_SHAPE):
        raise UserError(f"{file} is damaged (the rules of generation have a wrong form); restore the file")
    lists = {name: tuple(saved[name]) for name in ("stops", "never", "never_first")}
    used = [*sum(lists.values(), ()), *(saved[name] for name in ("first", "last") if saved[name] is not None)]
    if not all(_is_whole(saved["asked"].get(name, 0)) for name in WHOLE_NUMBERS):
        raise UserError(f"{file} is damaged (the rules of generation have a wrong number); restore the file")
    if not all(0 <= token < rows for token in used):
        raise UserError(f"{file} is damaged (the rules of generation have ids from {rows:,} on); restore the file")
    return Rules(**lists, first=saved["first"], last=saved["last"], asked=saved["asked"])


def write_generation_config(folder: Path, ids: Mapping[str, int], rules: Rules, allowed: np.ndarray, rows: int) -> None:
    """Write generation_config.json, so that transformers generates what t5lite generates.

    Args:
        ids: {"eos_token_id": …}, as in config.json.
        rules: the rules that generation follows in t5lite.
        allowed: bool [n], which of the first n ids may be generated.
        rows: the number of rows of the model. Ids from n on may not be generated.
    """
    forbidden = np.ones(rows, bool)
    forbidden[: len(allowed)] = ~allowed[:rows]
    fields: dict[str, Any] = dict(ids)
    stops = list(dict.fromkeys([*([ids["eos_token_id"]] if "eos_token_id" in ids else []), *rules.stops]))
    fields["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    if rules.first is not None:
        fields["forced_bos_token_id"] = rules.first
        if forbidden[rules.first]:  # suppress_tokens would forbid this id in the first place too
            forbidden[rules.first], fields["bad_words_ids"] = False, [[rules.first]]
    if rules.last is not None:
        fields["forced_eos_token_id"] = rules.last
    fields["suppress_tokens"] = np.flatnonzero(forbidden).tolist()
    if rules.never_first:
        fields["begin_suppress_tokens"] = list(rules.never_first)
    asked = dict(rules.asked)
    if words := [*fields.pop("bad_words_ids", []), *asked.pop("bad_words_ids", [])]:
        fields["bad_words_ids"] = words
    (folder / GENERATION_FILE).write_text(json.dumps({**fields, **asked}, indent=2) + "\n")
