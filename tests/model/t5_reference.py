"""T5's parameters with Hugging Face's names and layout: seeded weights for a tiny model, and their paths in t5lite.

The weights come from NumPy's legacy generator, whose stream is frozen, so that vectors need not store them.
"""

import numpy as np

from t5lite.model.config import ModelConfig

TINY = dict(num_encoder_layers=2, num_decoder_layers=2, vocab_size=128, d_model=24, d_ff=40, num_heads=3, head_dim=8)
VARIANTS = {
    "v1_1_untied": ModelConfig(**TINY, activation="geglu", tie_embeddings=False),
    "v1_1_tied": ModelConfig(**TINY, activation="geglu", tie_embeddings=True),
    "v1_0": ModelConfig(**TINY, activation="relu", tie_embeddings=True),
}
LENGTHS = {"inputs": 160, "decoder_inputs": 150}  # Longer than 128: from there on, all distances share a bucket.
KEPT = (0, 1, 40, 149)  # Decoder positions whose logits are stored.


def names(config: ModelConfig) -> dict[str, tuple[tuple[str, ...], int | None, bool]]:
    """Return {Hugging Face's name: (path in t5lite, layer or None, transposed)}."""
    table = {"shared.weight": (("token_embedding", "embedding"), None, False)}
    if not config.tie_embeddings:
        table["lm_head.weight"] = (("lm_head", "kernel"), None, True)
    projections = {"q": "query", "k": "key", "v": "value", "o": "output"}
    mlp = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if config.gated else {"wi": "up", "wo": "down"}
    for side, layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table[first] = ((side, "relative_bias", "embedding"), None, False)
        table[f"{side}.final_layer_norm.weight"] = ((side, "final_norm", "scale"), None, False)
        blocks = [("SelfAttention", "self_attention", projections), ("DenseReluDense", "mlp", mlp)]
        if side == "decoder":
            blocks.insert(1, ("EncDecAttention", "cross_attention", projections))
        for i in range(layers):
            for j, (theirs, ours, kernels) in enumerate(blocks):
                at = f"{side}.block.{i}.layer.{j}"
                table[f"{at}.layer_norm.weight"] = ((side, "layers", ours, "norm", "scale"), i, False)
                for name, own in kernels.items():
                    table[f"{at}.{theirs}.{name}.weight"] = ((side, "layers", ours, own, "kernel"), i, True)
    return table


def seeded_state(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return {name: float32 array}, drawn in the order of names. Norms are near 1; kernels are scaled by fan-in."""
    random, state = np.random.RandomState(seed), {}
    for name, shape in sorted(shapes.items()):
        values = random.standard_normal(shape)
        if "norm" in name:
            values = 1 + 0.3 * values
        elif not name.startswith("shared") and "relative" not in name:
            values = values / np.sqrt(shape[-1])
        state[name] = values.astype(np.float32)
    return state


def to_ours(state: dict[str, np.ndarray], config: ModelConfig) -> dict:
    """Return the parameter tree of `Transformer` for Hugging Face's state."""
    params, stacks = {}, {}
    for name, (path, layer, transposed) in names(config).items():
        values = state[name].T if transposed else state[name]
        if layer is not None:
            stacks.setdefault(path, {})[layer] = values
        else:
            _insert(params, path, values)
    for path, layers in stacks.items():
        _insert(params, path, np.stack([layers[i] for i in range(len(layers))]))
    return params


def state_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of Hugging Face's weights, for `seeded_state`."""
    width = config.num_heads * config.head_dim
    ends = {
        "q": (width, config.d_model), "k": (width, config.d_model), "v": (width, config.d_model),
        "o": (config.d_model, width), "wo": (config.d_model, config.d_ff),
        "relative_attention_bias": (config.relative_buckets, config.num_heads),
        "shared": (config.vocab_size, config.d_model), "lm_head": (config.vocab_size, config.d_model),
    }  # fmt: skip
    shapes = {}
    for name in names(config):
        kind = name.split(".")[-2]
        norm, up = "norm" in kind, kind.startswith("wi")
        shapes[name] = (config.d_model,) if norm else (config.d_ff, config.d_model) if up else ends[kind]
    return shapes


def seeded_ids(config: ModelConfig, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return inputs [2, 160], decoder inputs [2, 150], and the inputs' mask. The second row is padded from 100 on."""
    random = np.random.RandomState(seed)
    inputs = random.randint(2, config.vocab_size, (2, LENGTHS["inputs"]))
    decoder_inputs = random.randint(2, config.vocab_size, (2, LENGTHS["decoder_inputs"]))
    decoder_inputs[:, 0] = 0
    mask = np.ones_like(inputs)
    mask[1, 100:] = 0
    return inputs * mask, decoder_inputs, mask


def _insert(tree: dict, path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
