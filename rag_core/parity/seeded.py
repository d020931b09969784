"""Parity: weights every framework can make again, and the comparison of two traces. numpy only.

Two programs are compared by giving them the same weights and holding their outputs against each
other.
The weights are made from their names alone, so they never have to be stored, and they are scaled so
that a mistake shows: with the customary 0.02 initialiser all attention is uniform and a transposed
query matrix hides in the noise.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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
        shapes: Weight name (Hugging Face's) to shape. Leave out a tied `lm_head.weight`: nothing
            here
            knows the config, so it would get values of its own.
        seed: Any integer; another seed gives unrelated weights.

    Returns:
        Name to float64 array of the asked shape, in the order of `shapes`.
    """
    return {name: _draw(canonical_name(name), tuple(shape), seed) for name, shape in shapes.items()}


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = seeded_noise(f"{name}:{seed}", shape)
    for pattern, kind, scale in _SCALES:
        if re.search(pattern, name):
            return noise * (scale / np.sqrt(shape[-1]) if kind == "fan_in" else scale)
    if len(shape) < 2:
        return 1.0 + 0.2 * noise
    return noise * (1.2 / np.sqrt(shape[-1]))


def seeded_noise(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Noise of mean 0, variance 1 and range (-3, 3), by key.

    The stuff of `seeded_weights`, and of test inputs.
    """
    digest = hashlib.sha256(key.encode()).digest()
    stream = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64))
    count = int(np.prod(shape, dtype=np.int64))
    words = stream.random_raw(3 * count).reshape(3, count) >> np.uint64(11)
    uniform = words.astype(np.float64) * 2.0**-52 - 1.0
    return (uniform[0] + uniform[1] + uniform[2]).reshape(shape)


@dataclass(frozen=True)
class Mismatch:
    """One stage at which two traces differ."""

    name: str
    error: float
    tolerance: float
    reason: str

    def __str__(self) -> str:
        """One line for a person."""
        return f"{self.name}: {self.reason}"


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute finite value of `expected`.

    Infinities count as equal where both have the same one. NaN equals nothing, itself included: the
    error is then infinite, as it is for infinities in different places.

    Raises:
        ValueError: If the shapes differ.
    """
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        raise ValueError(f"cannot compare shape {actual.shape} with the expected {expected.shape}")
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    if np.isnan(expected).any() or np.isnan(actual).any():
        return float("inf")
    finite = np.isfinite(expected)
    if not (
        np.array_equal(finite, np.isfinite(actual))
        and np.array_equal(expected[~finite], actual[~finite])
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    worst = float(np.abs(expected[finite] - actual[finite]).max())
    return worst / max(float(np.abs(expected[finite]).max()), np.finfo(np.float64).tiny)


def compare(
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    tolerance: float | Mapping[str, float],
) -> list[Mismatch]:
    """Hold two traces (stage name to array) against each other.

    Floats are compared by `relative_error`; integers, booleans and text must be equal. Stages
    missing on either side, other shapes and other kinds of number are mismatches.

    Args:
        expected: The trace to be met.
        actual: The trace that came out.
        tolerance: One bound on the relative error, or one per stage (a stage not named there is
            held to 0).

    Returns:
        Every mismatch, sorted by stage name; empty if the traces agree.
    """
    found = []
    for name in sorted(set(expected) | set(actual)):
        bound = tolerance.get(name, 0.0) if isinstance(tolerance, Mapping) else float(tolerance)
        reason, error = _difference(expected.get(name), actual.get(name), bound)
        if reason:
            found.append(Mismatch(name, error, bound, reason))
    return found


def _difference(
    expected: np.ndarray | None, actual: np.ndarray | None, bound: float
) -> tuple[str, float]:
    """Why two stages differ ("" if they agree), and by how much."""
    if expected is None or actual is None:
        return ("not expected" if expected is None else "missing"), float("inf")
    expected, actual = np.asarray(expected), np.asarray(actual)
    if expected.shape != actual.shape:
        return f"shape {actual.shape}, expected {expected.shape}", float("inf")
    kinds = {"f": "float", "i": "integer", "u": "integer", "b": "boolean"}
    kind, other = (kinds.get(array.dtype.kind, array.dtype.kind) for array in (expected, actual))
    if kind != other:
        return f"kind {other}, expected {kind}", float("inf")
    if kind != "float":
        differing = int((expected != actual).sum())
        return (f"{differing} of {expected.size} values differ" if differing else ""), float(
            differing
        )
    error = relative_error(expected, actual) if expected.size else 0.0
    # "not <=" rather than ">": a NaN bound must not let anything through.
    return ("" if error <= bound else f"relative error {error:.3g} above {bound:.3g}"), error
