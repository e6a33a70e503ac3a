"""Read what a release says about generation, from generation_config.json, or from config.json if that does not exist.

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

from t5lite.system.errors import UserError
from t5lite.system.files import has_shape, read_json
from t5lite.system.vocabulary import Rules, Vocabulary

FILE, OLDER_FILE = "generation_config.json", "config.json"
FORMAT = 1  # version of the rules in a workdir
FETCH_ANEW = "fetch it anew, or remove it"
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


def said_of_generation(folder: Path) -> dict[str, Any]:
    """Return the fields of the file that decides on generation. Ids that it lacks come from config.json."""
    older = read_json(folder / OLDER_FILE, FETCH_ANEW) or {}
    said = read_json(folder / FILE, FETCH_ANEW)
    if said is None:
        return older
    ids = ("eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id")
    return {name: older[name] for name in ids if name in older} | {k: v for k, v in said.items() if v is not None}


def read_rules(folder: Path, vocabulary: Vocabulary) -> Rules:
    """Return the rules of the release in `folder`. Ids that the vocabulary lacks are dropped.

    Raises UserError for a field that holds no ids, and for a forced id that the vocabulary lacks or that is suppressed.
    """
    said = said_of_generation(folder)
    file = folder / (FILE if (folder / FILE).is_file() else OLDER_FILE)

    def ids(name: str) -> tuple[int, ...]:
        value = said.get(name)
        value = [] if value is None else value if isinstance(value, list) else [value]
        if not has_shape(value, [int]):
            raise UserError(f"{file}: {name} should be an id or a list of ids, is {json.dumps(value)[:60]}")
        # Other ids are never generated, so they neither end an answer nor need to be forbidden.
        return tuple(dict.fromkeys(token for token in value if 0 <= token < vocabulary.rows))

    def forced(name: str) -> int | None:
        found = ids(name)
        if said.get(name) not in (None, [], *found, list(found)) or len(found) > 1:
            raise UserError(f"{file}: {name}={json.dumps(said[name])[:60]} should be one id of the tokenizer; mend it")
        return found[0] if found else None

    words = said.get("bad_words_ids") or []
    if not has_shape(words, [[int]]):
        raise UserError(f"{file}: bad_words_ids should be a list of lists of ids, is {json.dumps(words)[:60]}")
    single = tuple(word[0] for word in words if len(word) == 1 and 0 <= word[0] < vocabulary.rows)
    longer = [word for word in words if len(word) > 1]
    suppressed, first = ids("suppress_tokens"), forced("forced_bos_token_id")
    if first is None and said.get("force_bos_token_to_be_generated") is True:  # as older BART files have it
        first = forced("bos_token_id")
    last = forced("forced_eos_token_id")
    for name, token in (("forced_bos_token_id", first), ("forced_eos_token_id", last)):
        if token in suppressed:
            raise UserError(f"{file}: {name}={token} is among suppress_tokens; mend one of them")
    return Rules(
        stops=ids("eos_token_id"),
        first=first,
        last=last,
        never=tuple(sorted({*suppressed, *single})),
        never_first=ids("begin_suppress_tokens"),
        asked=_asked(said) | ({"bad_words_ids": longer} if longer else {}),
    )


def _asked(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings whose values change something. Those for sampling count only if the release samples."""
    samples = said.get("do_sample") is True
    said = {**SAMPLING, **said} if samples else {k: v for k, v in said.items() if k not in OF_SAMPLES}
    found = {name: said[name] for name, (nothing, _) in SETTINGS.items() if said.get(name) not in (None, nothing)}
    return ({"do_sample": True} if samples else {}) | found


def note_of(rules: Rules, architecture: str, given: Collection[str] = ()) -> str | None:
    """Return a line on what a release asks for and generation ignores, with the flags that do the same; None: nothing.

    given: flags of `generate` that the user gave. They decide, so the line does not mention their settings.
    """
    asked = dict(rules.asked)
    if rules.first is not None and architecture == "decoder":
        asked["forced_bos_token_id"] = rules.first
    flag_of = {name: flag for name, (_, flag) in SETTINGS.items()}
    asked = {name: value for name, value in asked.items() if flag_of.get(name) not in given}
    flags, without = {}, []
    for name, value in asked.items():
        flag = flag_of.get(name)
        if name == "do_sample":
            continue
        if flag is None:
            without.append(name)
        elif name == "max_length":
            flags.setdefault(flag, value - 1 if architecture == "encoder_decoder" and isinstance(value, int) else "N")
        else:
            flags[flag] = str(value).lower() if isinstance(value, bool) else value
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
    said: dict[str, Any] = dict(ids)
    stops = list(dict.fromkeys([*([ids["eos_token_id"]] if "eos_token_id" in ids else []), *rules.stops]))
    said["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    if rules.first is not None:
        said["forced_bos_token_id"] = rules.first
        if forbidden[rules.first]:  # suppress_tokens would forbid it in the first place too
            forbidden[rules.first], said["bad_words_ids"] = False, [[rules.first]]
    if rules.last is not None:
        said["forced_eos_token_id"] = rules.last
    said["suppress_tokens"] = np.flatnonzero(forbidden).tolist()
    if rules.never_first:
        said["begin_suppress_tokens"] = list(rules.never_first)
    asked = dict(rules.asked)
    if words := [*said.pop("bad_words_ids", []), *asked.pop("bad_words_ids", [])]:
        said["bad_words_ids"] = words
    (folder / FILE).write_text(json.dumps({**said, **asked}, indent=2) + "\n")
