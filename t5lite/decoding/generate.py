"""Generation in one compiled loop: encode or prefill once, then a token a step for all rows, until all have ended.

    tokens, logprobs = generate(model, params, inputs, lengths, max_new_tokens=32)

A decoder reads what training gave it (see `objectives.batch`): the start id 0, then the prompt. Rows are
padded at their end:

    inputs   5 6 7    lengths 3      read 0 5 6 7    generation starts at position 3, from token 7
             8 0 0            1           0 8        generation starts at position 1, from token 8

so the last token of a row and its position are where the loop takes over, as the start id and position 0 are for an
encoder-decoder. What a row generates depends on its own input and key alone, not on its neighbours or padding.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t5lite.decoding.prefill import prefill
from t5lite.decoding.sampling import FORBIDDEN, next_tokens
from t5lite.errors import UserError
from t5lite.model.transformer import Transformer
from t5lite.vocabulary import EOS, PAD

Array = jax.Array


def generate(model: Transformer, params: dict, inputs: Array, inputs_lengths: Array, *, max_new_tokens: int,
             num_valid_ids: int | None = None, suppress: Sequence[int] = (), temperature: float = 0.0,
             top_k: int = 0, top_p: float = 1.0, keys: Array | None = None, prefix_attention: bool = False,
             eos: int = EOS) -> tuple[Array, Array]:  # fmt: skip
    """Tokens int32 [B, max_new_tokens], padded with 0 after EOS, and the log-probability [B] of each row's tokens.

    inputs int32 [B, L], inputs_lengths int32 [B]: the encoder's inputs, or a decoder's prompts, padded at their end.
    num_valid_ids, suppress: ids from the first on, ids in the second, and padding are never generated.
    temperature: 0 takes the likeliest token. Else tokens are drawn, with `keys` [B], one PRNG key a row.
    top_k, top_p: draw from the likeliest ids only; 0 and 1 allow all.
    prefix_attention: a decoder's prompt sees itself in both directions, as it must have in training.
    The log-probability is the model's, over the ids allowed, whatever the temperature, top_k and top_p.
    """
    config = model.config
    if config.architecture == "encoder":
        raise UserError("an encoder alone generates nothing: model.num_decoder_layers is 0")
    if max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise UserError(f"generation needs max_new_tokens={max_new_tokens} ≥ 1, temperature={temperature} ≥ 0, "
                        f"top_k={top_k} ≥ 0 and 0 < top_p={top_p} ≤ 1")  # fmt: skip
    if temperature > 0 and keys is None:
        raise ValueError("sampling needs `keys`, one a row")
    allowed_V = np.arange(config.vocab_size) < (config.vocab_size if num_valid_ids is None else num_valid_ids)
    allowed_V[[PAD, *suppress]] = False
    if not allowed_V.any():
        raise UserError("every id is suppressed: nothing can be generated")
    sampled = temperature > 0
    return _generate(model, params, jnp.asarray(inputs, jnp.int32), jnp.asarray(inputs_lengths, jnp.int32),
                     jnp.asarray(allowed_V), keys if sampled else None, temperature if sampled else None,
                     top_p if sampled and top_p < 1 else None, max_new_tokens=max_new_tokens,
                     top_k=top_k if sampled else 0, prefix_attention=prefix_attention, eos=eos)  # fmt: skip


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "top_k", "prefix_attention", "eos"))
def _generate(model, params, inputs, lengths, allowed_V, keys, temperature, top_p, *, max_new_tokens, top_k,
              prefix_attention, eos):  # fmt: skip
    ready = prefill(model, params, inputs, lengths, steps=max_new_tokens, prefix_attention=prefix_attention)
    apply = functools.partial(model.apply, {"params": params})
    layers = apply(method=Transformer.decoder_layers)
    batch = inputs.shape[0]

    def unfinished(state):
        step, _, _, _, _, done_B = state
        return (step < max_new_tokens) & ~done_B.all()

    def advance(state):
        step, token_B, cache, tokens_BxM, logprob_B, done_B = state
        slots_S = jnp.arange(ready.visible_BxS.shape[1])
        own_S = (slots_S >= ready.first_slot) & (slots_S <= ready.first_slot + step)
        visible = (ready.visible_BxS | own_S)[:, None]
        hidden, cache = apply(token_B[:, None], cache, ready.first_slot + step, visible, layers,
                              method=Transformer.extend)  # fmt: skip
        logits_BxV = apply(hidden[:, 0], method=Transformer.logits)
        logits_BxV = jnp.where(allowed_V, logits_BxV, FORBIDDEN)
        keys_B = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        token_B = next_tokens(logits_BxV, keys_B, temperature=temperature, top_k=top_k, top_p=top_p)
        own_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BxV), token_B[:, None], axis=-1)[:, 0]
        token_B = jnp.where(done_B, PAD, token_B)
        logprob_B = logprob_B + jnp.where(done_B, 0.0, own_B)
        return step + 1, token_B, cache, tokens_BxM.at[:, step].set(token_B), logprob_B, done_B | (token_B == eos)

    tokens_BxM = jnp.full((batch, max_new_tokens), PAD, jnp.int32)
    state = (
        jnp.int32(0),
        ready.tokens_B,
        ready.cache,
        tokens_BxM,
        jnp.zeros(batch, jnp.float32),
        jnp.zeros(batch, bool),
    )
    _, _, _, tokens_BxM, logprob_B, _ = jax.lax.while_loop(unfinished, advance, state)
    return tokens_BxM, logprob_B
