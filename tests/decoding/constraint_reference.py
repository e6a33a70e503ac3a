"""Settings and inputs for comparisons of constraints with transformers, and the call of transformers.

The constraints are the shortest length, n-grams that may not occur twice, and a forced first id. Only `ask` needs torch
and transformers. It asks for one row at a time, so that transformers needs no padding, which its n-grams would count.
"""

import numpy as np

from tests.interop.variants import VARIANTS, seeded_state

MODELS = {"encoder_decoder": VARIANTS["t5_v1_1"], "decoder": VARIANTS["gpt2"]}
# The inputs of an encoder-decoder, or the prompts of a decoder. They hold ids twice, so that a decoder's prompt counts.
ROWS = [[7, 14, 14, 30, 41, 14], [55], [12, 12, 80, 3, 12, 80, 3, 12, 80]]
NEW_TOKENS = 12
FORCED = 33
CASES = [
    dict(min_new_tokens=9),
    dict(no_repeat_ngram_size=1),
    dict(no_repeat_ngram_size=2),
    dict(no_repeat_ngram_size=3, min_new_tokens=6),
    dict(forced_bos=FORCED, min_new_tokens=4),
    dict(num_beams=3, min_new_tokens=9, length_penalty=-1.0),
    dict(num_beams=3, no_repeat_ngram_size=1, early_stopping=True),
    dict(num_beams=4, no_repeat_ngram_size=2, min_new_tokens=5, early_stopping="never", length_penalty=2.0),
    dict(num_beams=3, forced_bos=FORCED, no_repeat_ngram_size=2, repetition_penalty=1.2),
]


def weights(name):
    """Return weights whose answers soon repeat ids, and whose beams diverge."""
    return seeded_state(MODELS[name], seed=5)


def rows_of(name, case):
    """Return the indices of the rows to compare. On a decoder, transformers forces an id only after a prompt of one."""
    return [1] if name == "decoder" and "forced_bos" in case else range(len(ROWS))


def ask(model, name, case, eos):
    """Return {row: (tokens of each beam, their scores or None)} from transformers, the best beam first."""
    import torch

    case = {"forced_bos_token_id" if key == "forced_bos" else key: value for key, value in case.items()}
    beams, answers = case.get("num_beams", 1), {}
    for row in range(len(ROWS)):
        ids = torch.tensor([ROWS[row]])
        found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW_TOKENS,
                               eos_token_id=eos, pad_token_id=0, num_return_sequences=beams, use_cache=False,
                               return_dict_in_generate=True, output_scores=True, **case)  # fmt: skip
        read = 1 if name == "encoder_decoder" else len(ROWS[row])
        tokens = found.sequences[:, read:].numpy()
        tokens = np.pad(tokens, ((0, 0), (0, NEW_TOKENS - tokens.shape[1])))
        answers[row] = tokens, found.sequences_scores.numpy() if beams > 1 else None
    return answers
