"""A decoder in plain NumPy and float64, from the formulas of the papers, with options that no released family has."""

import numpy as np

from t5lite.model.config import ModelConfig


def _norm(config: ModelConfig, x: np.ndarray, params: dict, kind: str | None = None) -> np.ndarray:
    if (kind or config.norm) == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * params["scale"]
    return x + params["bias"] if "bias" in params else x


def _dense(x: np.ndarray, params: dict) -> np.ndarray:
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


def sinusoids(length: int, d_model: int) -> np.ndarray:
    """Return [T, D]: the sines of all frequencies, then the cosines."""
    table = np.zeros((length, d_model))
    for position in range(length):
        for i in range(d_model // 2):
            angle = position / 10000 ** (2 * i / d_model)
            table[position, i], table[position, d_model // 2 + i] = np.sin(angle), np.cos(angle)
    return table


def _rotate(x_TxK: np.ndarray, base: float) -> np.ndarray:
    """Turn each pair (i, i + K/2), as a complex number."""
    half = x_TxK.shape[1] // 2
    turn = np.exp(1j * np.arange(len(x_TxK))[:, None] * base ** (-np.arange(half) / half))
    turned = (x_TxK[:, :half] + 1j * x_TxK[:, half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=1)


def _attention(config: ModelConfig, x_TxD: np.ndarray, params: dict, slopes: list[float] | None) -> np.ndarray:
    """Compute causal self-attention of one sequence, one head at a time."""
    length, outputs = len(x_TxD), []
    q_TxHK, k_TxGK, v_TxGK = (_dense(x_TxD, params[name]) for name in ("query", "key", "value"))
    for head in range(config.num_heads):
        group = head // (config.num_heads // config.kv_heads)
        q, k, v = (x[:, i * config.head_dim : (i + 1) * config.head_dim]
                   for x, i in ((q_TxHK, head), (k_TxGK, group), (v_TxGK, group)))  # fmt: skip
        if config.qk_norm:
            q, k = _norm(config, q, params["query_norm"], "rms"), _norm(config, k, params["key_norm"], "rms")
        if config.positions == "rotary":
            q, k = _rotate(q, config.rotary_base), _rotate(k, config.rotary_base)
        scores = q @ k.T / np.sqrt(config.head_dim)
        for i in range(length):
            for j in range(length):
                if slopes is not None:
                    scores[i, j] -= slopes[head] * abs(i - j)
                if j > i:
                    scores[i, j] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(weights / weights.sum(-1, keepdims=True) @ v)
    return _dense(np.concatenate(outputs, axis=1), params["output"])


def _mlp(x_TxD: np.ndarray, params: dict) -> np.ndarray:
    """Compute the feed-forward block, with ReLU and without a gate."""
    return _dense(np.maximum(_dense(x_TxD, params["up"]), 0), params["down"])


def logits(config: ModelConfig, params: dict, tokens: np.ndarray, slopes: list[float] | None = None) -> np.ndarray:
    """Return logits [T, V] of one sequence. params: the Transformer's, in float64. slopes: ALiBi's, one a head."""
    decoder, pre = params["decoder"], config.norm_position == "pre"
    x = params["token_embedding"]["embedding"][tokens]
    if config.positions == "sinusoidal":
        x = x + sinusoids(len(tokens), config.d_model)
    if config.positions == "learned":
        x = x + decoder["position_embedding"]["embedding"][config.position_offset + np.arange(len(tokens))]
    for layer in range(config.num_decoder_layers):
        attention, mlp = (_layer(decoder["layers"][name], layer) for name in ("self_attention", "mlp"))
        blocks = (
            (attention, lambda h, at=attention: _attention(config, h, at, slopes)),
            (mlp, lambda h, at=mlp: _mlp(h, at)),
        )
        for block, apply in blocks:
            x = x + apply(_norm(config, x, block["norm"])) if pre else _norm(config, x + apply(x), block["norm"])
    x = _norm(config, x, decoder["final_norm"]) if pre else x
    y = x @ params["lm_head"]["kernel"]
    cap = config.logits_soft_cap
    return y if cap is None else cap * np.tanh(y / cap)


def _layer(tree: dict, layer: int) -> dict:
    return {key: _layer(value, layer) if isinstance(value, dict) else value[layer] for key, value in tree.items()}
