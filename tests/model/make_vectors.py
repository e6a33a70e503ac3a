"""Make t5_vectors.npz: logits of tiny T5s with seeded weights, from transformers. Needs torch and transformers.

python -m tests.model.make_vectors
"""

import pathlib

import numpy as np
import torch
import transformers

from tests.model.t5_reference import KEPT, VARIANTS, seeded_ids, seeded_state, state_shapes


def reference_model(config, state: dict[str, np.ndarray]) -> transformers.T5ForConditionalGeneration:
    """Return Hugging Face's T5 with this config and these weights, in float32."""
    theirs = transformers.T5Config(
        vocab_size=config.vocab_size, d_model=config.d_model, d_ff=config.d_ff, d_kv=config.head_dim,
        num_heads=config.num_heads, num_layers=config.num_encoder_layers, num_decoder_layers=config.num_decoder_layers,
        feed_forward_proj={"geglu": "gated-gelu", "relu": "relu"}[config.activation], dropout_rate=0.0,
        tie_word_embeddings=config.tie_embeddings, decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    if not config.tie_embeddings:
        # transformers 5 ties the embeddings of every T5. A new parameter makes the head independent again.
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(config.vocab_size, config.d_model))
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(state), set(parameters) ^ set(state)
    with torch.no_grad():
        for name, values in state.items():
            parameters[name].copy_(torch.from_numpy(values))
    return model


def reference_logits(config, state, inputs, decoder_inputs, mask) -> np.ndarray:
    model = reference_model(config, state)
    with torch.no_grad():
        output = model(input_ids=torch.from_numpy(inputs), attention_mask=torch.from_numpy(mask),
                       decoder_input_ids=torch.from_numpy(decoder_inputs), use_cache=False)  # fmt: skip
    return output.logits.numpy()


def main() -> None:
    vectors = {"versions": np.array(f"transformers {transformers.__version__}, torch {torch.__version__}")}
    for name, config in VARIANTS.items():
        logits = reference_logits(config, seeded_state(state_shapes(config), seed=0), *seeded_ids(config, seed=1))
        vectors[name] = logits[:, list(KEPT)]
    path = pathlib.Path(__file__).with_name("t5_vectors.npz")
    np.savez_compressed(path, **vectors)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
