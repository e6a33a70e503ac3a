"""Settings and inputs for comparisons with the beam search of transformers, and the call of transformers.

Only `ask` needs torch and transformers.
"""

import numpy as np

from tests.model.t5_reference import VARIANTS, seeded_state, state_shapes

CONFIG = VARIANTS["v1_1_tied"]
LENGTHS = np.array([9, 5, 7, 8, 3, 6])
NEW_TOKENS = 10
CASES = [
    dict(num_beams=4, length_penalty=1.0, early_stopping=False),
    dict(num_beams=4, length_penalty=2.0, early_stopping="never"),
    dict(num_beams=3, length_penalty=-1.0, early_stopping="never"),
    dict(num_beams=3, length_penalty=0.0, early_stopping=True),
    dict(num_beams=2, length_penalty=0.6, early_stopping=True, repetition_penalty=1.3),
]


def weights():
    """Return weights whose logits have a moderate scale: several tokens compete, so that beams diverge."""
    state = seeded_state(state_shapes(CONFIG), seed=3)
    return {name: values * (0.4 if name == "shared.weight" else 1) for name, values in state.items()}


def inputs():
    ids = np.random.RandomState(4).randint(3, CONFIG.vocab_size, (len(LENGTHS), LENGTHS.max()))
    return np.where(np.arange(LENGTHS.max()) < LENGTHS[:, None], ids, 0).astype(np.int64)


def ask(model, case, eos):
    """Return tokens [B, beams, M] after the start, and scores [B, beams], from transformers."""
    import torch

    mask = torch.from_numpy((np.arange(LENGTHS.max()) < LENGTHS[:, None]).astype(np.int64))
    asked = model.generate(torch.from_numpy(inputs()), attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS,
                           eos_token_id=eos, pad_token_id=0, decoder_start_token_id=0,
                           num_return_sequences=case["num_beams"], return_dict_in_generate=True, output_scores=True,
                           **case)  # fmt: skip
    tokens = asked.sequences[:, 1:].numpy()
    tokens = np.pad(tokens, ((0, 0), (0, NEW_TOKENS - tokens.shape[1])))
    shape = (len(LENGTHS), case["num_beams"])
    return tokens.reshape(*shape, NEW_TOKENS), asked.sequences_scores.numpy().reshape(shape)
