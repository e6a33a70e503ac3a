"""Rules of generation in the files of a release: read from generation_config.json or config.json, and written again.

    eos_token_id, forced_bos_token_id, forced_eos_token_id,      part of the meaning of the weights: `Rules`, which
    suppress_tokens, begin_suppress_tokens, bad_words_ids        generation follows
    decoder_start_token_id, bos_token_id, pad_token_id           the tokenizer's roles
    num_beams, temperature, max_length, …                        settings, which the user chooses: `Rules.asked`

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
# {setting: (the value that changes nothing, the flag of `generate` that does the same)}.
OF_SAMPLES = {"temperature": (None, "--temperature"), "top_k": (None, "--top_k"), "top_p": (1.0, "--top_p"),
              "min_p": (None, "--min_p"), "typical_p": (1.0, None), "epsilon_cutoff": (0.0, None),
              "eta_cutoff": (0.0, None)}  # fmt: skip
SETTINGS = {
    "max_length": (20, "--max_new_tokens"), "max_new_tokens": (None, "--max_new_tokens"), **OF_SAMPLES,
    "num_beams": (1, "--num_beams"), "length_penalty": (1.0, "--length_penalty"),
    "early_stopping": (False, "--early_stopping"), "repetition_penalty": (1.0, "--repetition_penalty"),
    "num_return_sequences": (1, "--num_return"), "stop_strings": (None, "--stop"),
    **dict.fromkeys(("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0, None)),
    **dict.fromkeys(("encoder_repetition_penalty", "num_beam_groups"), (1, None)),
    **dict.fromkeys(("diversity_penalty",), (0.0, None)),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values"), (False, None)),
    **dict.fromkeys(("min_new_tokens", "exponential_decay_length_penalty", "guidance_scale", "penalty_alpha",
                     "sequence_bias", "force_words_ids", "constraints", "forced_decoder_ids", "watermarking_config",
                     "dola_layers", "max_time"), (None, None)),
}  # fmt: skip
SAMPLING = {"temperature": 1.0, "top_k": 50}  # what transformers uses for sampling if a file does not say
SAVED = {"format": int, "stops": [int], "first": (int, None), "last": (int, None), "never": [int],
         "never_first": [int], "asked": dict}  # fmt: skip


def read_rules(files: ReleaseFiles, vocabulary: Vocabulary) -> Rules:
    """Return the rules of a release. Ids that the vocabulary lacks are dropped.

    Raises UserError for a field that holds no ids, and for a forced id that the vocabulary lacks or that is suppressed.
    """
    fields = files.generation
    file = files.folder / (GENERATION_FILE if files.has(GENERATION_FILE) else MODEL_CONFIG_FILE)

    def ids(name: str) -> tuple[int, ...]:
        value = fields.get(name)
        value = [] if value is None else value if isinstance(value, list) else [value]
        if not has_shape(value, [int]):
            raise UserError(f"{file}: {name} should be an id or a list of ids, is {json.dumps(value)[:60]}")
        # Other ids are never generated, so they neither end an answer nor need to be forbidden.
        return tuple(dict.fromkeys(token for token in value if 0 <= token < vocabulary.rows))

    def forced(name: str) -> int | None:
        tokens = ids(name)
        if fields.get(name) not in (None, [], *tokens, list(tokens)) or len(tokens) > 1:
            raise UserError(
                f"{file}: {name}={json.dumps(fields[name])[:60]} should be one id of the tokenizer; mend it"
            )
        if tokens and tokens[0] in suppressed:
            raise UserError(f"{file}: {name}={tokens[0]} is among suppress_tokens; mend one of them")
        return tokens[0] if tokens else None

    words = fields.get("bad_words_ids") or []
    if not has_shape(words, [[int]]):
        raise UserError(f"{file}: bad_words_ids should be a list of lists of ids, is {json.dumps(words)[:60]}")
    single = tuple(word[0] for word in words if len(word) == 1 and 0 <= word[0] < vocabulary.rows)
    longer = [word for word in words if len(word) > 1]
    suppressed = ids("suppress_tokens")
    first = forced("forced_bos_token_id")
    if first is None and fields.get("force_bos_token_to_be_generated") is True:  # as older BART files have it
        first = forced("bos_token_id")
    return Rules(
        stops=ids("eos_token_id"),
        first=first,
        last=forced("forced_eos_token_id"),
        never=tuple(sorted({*suppressed, *single})),
        never_first=ids("begin_suppress_tokens"),
        asked=_settings_of(fields) | ({"bad_words_ids": longer} if longer else {}),
    )


def _settings_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings whose values change something. Those for sampling count only if the release samples."""
    samples = fields.get("do_sample") is True
    settings = {"do_sample": True} if samples else {}
    fields = {**SAMPLING, **fields} if samples else {k: v for k, v in fields.items() if k not in OF_SAMPLES}
    return settings | {
        name: fields[name] for name, (nothing, _) in SETTINGS.items() if fields.get(name) not in (None, nothing)
    }


def describe_ignored(rules: Rules, architecture: str, given: Collection[str] = ()) -> str | None:
    """Return a line on what a release asks for and generation ignores, with the flags that do the same; None: nothing.

    given: flags of `generate` that the user gave. They decide, so the line does not mention their settings.
    """
    asked = dict(rules.asked)
    if rules.first is not None and architecture == "decoder":
        asked["forced_bos_token_id"] = rules.first
    flag_of = {name: flag for name, (_, flag) in SETTINGS.items()}
    asked = {name: value for name, value in asked.items() if flag_of.get(name) not in given}
    values = {name: str(value).lower() if isinstance(value, bool) else value for name, value in asked.items()}
    if "max_length" in asked:  # it counts the decoder's start, and a decoder's prompt
        length = asked["max_length"]
        new = length - 1 if architecture == "encoder_decoder" and isinstance(length, int) else "N"
        values["max_length"] = values.get("max_new_tokens", new)
    flags = {flag_of[name]: value for name, value in values.items() if flag_of.get(name) is not None}
    without = [name for name in asked if flag_of.get(name) is None and name != "do_sample"]
    if not flags and not without:
        return None
    shown = ", ".join(f"{name}={json.dumps(value)[:40]}" for name, value in asked.items())
    wanted = f"; to have it, give {' '.join(f'{flag} {value}' for flag, value in flags.items())}" if flags else ""
    lacking = f"; there is no flag for {', '.join(without)}" if without else ""
    return f"the release asks for {shown}, which generate does not take over{wanted}{lacking}"


def rules_to_json(rules: Rules) -> dict[str, Any]:
    """Return the JSON value that `rules_from_json` reads."""
    return {"format": FORMAT, **dataclasses.asdict(rules)}


def rules_from_json(saved: Any, file: Path, rows: int) -> Rules | None:
    """Return the rules in a workdir, None if it has none. Raises UserError if they are damaged or from a newer t5lite.

    Args:
        saved: the JSON value.
        file: where it stands, for errors.
        rows: of the vocabulary.
    """
    if saved is None:
        return None
    if isinstance(saved, dict) and isinstance(saved.get("format"), int) and saved["format"] > FORMAT:
        raise UserError(f"{file}: its rules of generation were written by a newer t5lite: update this one")
    if not has_shape(saved, SAVED):
        raise UserError(f"{file} is damaged (its rules of generation are not what they should be); restore it")
    lists = {name: tuple(saved[name]) for name in ("stops", "never", "never_first")}
    used = [*sum(lists.values(), ()), *(saved[name] for name in ("first", "last") if saved[name] is not None)]
    if not all(0 <= token < rows for token in used):
        raise UserError(f"{file} is damaged (its rules of generation name ids beyond {rows:,}); restore it")
    return Rules(**lists, first=saved["first"], last=saved["last"], asked=saved["asked"])


def write_generation_config(folder: Path, ids: Mapping[str, int], rules: Rules, allowed: np.ndarray, rows: int) -> None:
    """Write generation_config.json, so that transformers generates what t5lite generates.

    Args:
        ids: {"eos_token_id": …}, as in config.json.
        rules: the rules that generation follows in t5lite.
        allowed: bool [n], which of the first n ids may be generated.
        rows: rows of the model. No id from n on may be generated.
    """
    forbidden = np.ones(rows, bool)
    forbidden[: len(allowed)] = ~allowed[:rows]
    fields: dict[str, Any] = dict(ids)
    stops = list(dict.fromkeys([*([ids["eos_token_id"]] if "eos_token_id" in ids else []), *rules.stops]))
    fields["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    if rules.first is not None:
        fields["forced_bos_token_id"] = rules.first
        if forbidden[rules.first]:  # suppress_tokens would forbid it in the first place too
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
