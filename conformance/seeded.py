"""Weights that every framework can make again; numpy only.

Two programs are compared by giving them the same weights and holding their outputs against each
other.
The weights are made from their names alone, so they never have to be stored, and they are scaled so
that a mistake shows: with the customary 0.02 initialiser all attention is uniform and a transposed
query matrix hides in the noise.
"""

import re
from collections.abc import Mapping

import numpy as np

from rag_core.parity.inputs import seeded_noise

# (pattern on the name, kind, scale): first match wins. "fan_in" divides by sqrt(last axis), "plain"
# does not, "gain" is centred on 1. T5 does not divide its attention scores by sqrt(d_kv), hence its
# smaller q and k; it divides the hidden state by sqrt(d) before a tied head instead, hence its
# larger embedding. What sublayers add is large, and the gain before a tied head is of either sign,
# or it would mostly repeat the token that came in.
_SCALES = (
    (r"relative_attention_bias\.weight$", "plain", 1.0),
    (r"final_logits_bias$", "plain", 0.5),
    (r"bias$", "plain", 0.2),
    (r"lm_head\.weight$", "fan_in", 1.0),
    (r"model\.shared\.weight$", "fan_in", 2.5),
    (r"(^|\.)shared\.weight$", "plain", 1.0),
    (r"(^|\.)decoder\.final_layer_norm\.weight$", "plain", 2.5),
    (r"(^|\.)decoder\.layers\.\d+\.final_layer_norm\.weight$", "plain", 1.0),
    (r"(word|position|token_type)_embeddings\.weight$", "plain", 0.5),
    (r"embed_positions\.weight$", "plain", 1.0),
    (r"(SelfAttention|EncDecAttention)\.[qk]\.weight$", "fan_in", 0.8),
    (r"encoder_attn\.out_proj\.weight$", "fan_in", 1.0),
    (r"(out_proj|fc2|Attention\.o|wo)\.weight$", "fan_in", 2.0),
    (r"(query|key|q_proj|k_proj)\.weight$", "fan_in", 1.7),
)

_TIED_EMBEDDING = re.compile(r"(^|\.)(model\.)?(encoder|decoder)\.embed_tokens\.weight$")


def canonical_name(name: str) -> str:
    """The name a weight is seeded by.

    No `rag.` in front, tied embeddings under their `shared` name.
    """
    return _TIED_EMBEDDING.sub(r"\1\2shared.weight", name.removeprefix("rag."))


def seeded_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weights that depend on nothing but their names, shapes and a seed.

    Bit-identical on every platform and numpy: only the raw words of a Philox stream and sums are
    used. The distribution is a sum of three uniforms, of variance one before scaling. Matrices are
    scaled by their fan-in, norm gains lie off 1, biases off 0. `rag.generator.x` and `generator.x`
    get the same values.

    Args:
        shapes: weight name (Hugging Face's) to shape. Leave out a tied `lm_head.weight`: nothing
            here knows the config, so it would get values of its own.
        seed: any integer; another seed gives unrelated weights.

    Returns:
        Name to float64 array of the asked shape, in the order of `shapes`.
    """
    return {name: _draw(canonical_name(name), tuple(shape), seed) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = seeded_noise(f"{name}:{seed}", shape)
    for pattern, kind, scale in _SCALES:
        if re.search(pattern, name) and kind == "fan_in":
            return noise * (scale / np.sqrt(shape[-1]))
        if re.search(pattern, name):
            return noise * scale
    if len(shape) < 2:
        return 1.0 + 0.2 * noise
    return noise * (1.2 / np.sqrt(shape[-1]))
