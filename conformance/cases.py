"""The case catalogue: small models and their inputs, as data. Read by the recorder and by the
tests; numpy only.

Nothing here is drawn from a framework's generator: weights come from
`conformance.seeded`, tokens and scores from the same kind of stream, so a golden file
holds outputs only.

B questions, N documents a question, Q question length, S context length, T target length, V
vocabulary, D vector size.
"""

from typing import Any

import numpy as np

from conformance.seeded import seeded_weights
from rag_core.parity.inputs import integers, seeded_noise

SEEDS = (1, 2, 4)
PASSAGES = 12
CONTEXT_LENGTH = 18
QUESTION_LENGTH = 7


def _dpr(**changes: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    rest = {
        "vocab_size": 80,
        "max_position_embeddings": 40,
        "projection_dim": 0,
        "hidden_act": "gelu",
    }
    return {"model_type": "dpr", **sizes, **rest, **changes}


def _bart(**changes: Any) -> dict[str, Any]:
    layers = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
    }
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 96}
    tokens = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    # bart's own default forces </s> at max_length; here the cases that want it ask for it.
    rest = {"max_position_embeddings": 48, "scale_embedding": False, "forced_eos_token_id": None}
    return {"model_type": "bart", **layers, **sizes, **tokens, **rest, **changes}


def _t5(**changes: Any) -> dict[str, Any]:
    sizes = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_layers": 2,
        "num_decoder_layers": 2,
    }
    positions = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 16}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "vocab_size": 90}
    return {
        "model_type": "t5",
        **sizes,
        **positions,
        **tokens,
        "feed_forward_proj": "relu",
        **changes,
    }


# Deeper on one side, fewer heads on the other, an inner width that is not the model's: what equal
# sizes would hide.
_LOPSIDED = {
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_ffn_dim": 40,
}
_NARROW = {"d_kv": 6, "num_heads": 3, "num_decoder_layers": 3}
_HABITS = {
    "num_beams": 3,
    "no_repeat_ngram_size": 2,
    "min_length": 4,
    "length_penalty": 0.7,
    "max_length": 9,
}

MODELS: dict[str, dict[str, Any]] = {
    "bart": {"question_encoder": _dpr(), "generator": _bart()},
    "bart_scaled": {
        "question_encoder": _dpr(projection_dim=24, num_hidden_layers=1, num_attention_heads=2),
        "generator": _bart(scale_embedding=True, activation_function="relu", **_LOPSIDED),
    },
    "t5": {"question_encoder": _dpr(hidden_act="relu"), "generator": _t5()},
    "t5_gated": {
        "question_encoder": _dpr(projection_dim=20),
        "generator": _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **_NARROW),
    },
    # As bart-large-cnn: generation options in the generator's own config (Q19, Q20).
    "bart_habits": {
        "question_encoder": _dpr(),
        "generator": _bart(
            **_HABITS, early_stopping=True, forced_bos_token_id=0, forced_eos_token_id=2
        ),
    },
}


def rag_config(model: str, n_docs: int = 3, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of a RagConfig for one catalogue model, fresh at each call."""
    parts = {name: dict(part) for name, part in MODELS[model].items()}
    return {**parts, "n_docs": n_docs, "max_combined_length": CONTEXT_LENGTH, **changes}


def model_weights(
    model: str, shapes: dict[str, tuple[int, ...]], seed: int
) -> dict[str, np.ndarray]:
    """Seeded weights of one catalogue model.

    The end-of-sequence token is made likely, so that searches end.
    """
    eos = MODELS[model]["generator"]["eos_token_id"]
    return with_likely_end(seeded_weights(shapes, seed), eos)


def with_likely_end(weights: dict[str, np.ndarray], eos: int) -> dict[str, np.ndarray]:
    """Weights, changed in place, of a generator that likes to end."""
    for name, array in weights.items():
        if name.endswith("final_logits_bias"):
            array[0, eos] += 2.0
        elif name.endswith(("generator.lm_head.weight", "generator.shared.weight")):
            array[eos] *= 1.7
    return weights


def _ragged(
    key: str, rows: int, length: int, vocabulary: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token rows of different lengths, right-padded, and their masks; the first row is full."""
    lengths = integers(f"{key}:lengths", length // 2, length + 1, (rows,))
    lengths[0] = length
    mask = np.arange(length) < lengths[:, None]
    return np.where(mask, integers(f"{key}:ids", 4, vocabulary, (rows, length)), pad), mask.astype(
        np.int64
    )


def questions(model: str, key: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Question ids (B, Q) and mask."""
    return _ragged(
        f"question:{key}",
        batch,
        QUESTION_LENGTH,
        MODELS[model]["question_encoder"]["vocab_size"],
        0,
    )


def contexts(model: str, key: str, batch: int, n_docs: int) -> dict[str, np.ndarray]:
    """What a retriever would hand over: context_input_ids and mask (B*N, S), doc_scores (B, N)."""
    generator = MODELS[model]["generator"]
    rows = _ragged(
        f"context:{key}",
        batch * n_docs,
        CONTEXT_LENGTH,
        generator["vocab_size"],
        generator["pad_token_id"],
    )
    scores = 2.0 * seeded_noise(f"scores:{key}", (batch, n_docs))
    return {"context_input_ids": rows[0], "context_attention_mask": rows[1], "doc_scores": scores}


def targets(model: str, kind: str, batch: int = 2) -> np.ndarray:
    """Target ids (B, T) of one kind; each kind meets another corner of the losses (Q10-Q14)."""
    generator = MODELS[model]["generator"]
    pad, eos, bos = (
        generator["pad_token_id"],
        generator["eos_token_id"],
        generator.get("bos_token_id", 3),
    )
    ids = integers(f"target:{kind}", 4, generator["vocab_size"], (batch, 6))
    ids[:, -1] = eos
    if kind == "padded":
        ids[1, 3:] = [eos, pad, pad]
    elif kind == "length_one":
        ids = ids[:, :1]
    elif kind == "length_two":
        ids = ids[:, :2]
    elif kind == "pad_second":
        ids[1, 2:] = pad
    elif kind == "bos_first":
        ids[:, 1] = bos
    elif kind == "bos_in_one_row":
        ids[0, 1] = bos
    return ids


TARGETS = (
    "plain",
    "padded",
    "length_one",
    "length_two",
    "pad_second",
    "bos_first",
    "bos_in_one_row",
)


def passage_bank(model: str) -> dict[str, np.ndarray]:
    """The toy index: vectors (P, D) and passages, in the generator's and in the context
    encoder's tokens.
    """
    encoder, generator = MODELS[model]["question_encoder"], MODELS[model]["generator"]
    width = encoder["projection_dim"] or encoder["hidden_size"]
    ids, mask = _ragged(
        "bank", PASSAGES, CONTEXT_LENGTH - 4, generator["vocab_size"], generator["pad_token_id"]
    )
    encoder_ids, encoder_mask = _ragged("bank:encoder", PASSAGES, 9, encoder["vocab_size"], 0)
    vectors = 0.35 * seeded_noise("bank:vectors", (PASSAGES, width))
    names = ("vectors", "ids", "mask", "encoder_ids", "encoder_mask")
    return dict(zip(names, (vectors, ids, mask, encoder_ids, encoder_mask), strict=True))


def toy_retrieve(
    model: str, question_ids: np.ndarray, question_vectors: np.ndarray, n_docs: int
) -> dict[str, Any]:
    """Exact inner-product search over the bank.

    A context is the passage with four question tokens after it.
    """
    bank, generator = passage_bank(model), MODELS[model]["generator"]
    # (B, N)
    order = np.argsort(-(question_vectors @ bank["vectors"].T), axis=1, kind="stable")[:, :n_docs]
    pad, vocabulary = generator["pad_token_id"], generator["vocab_size"]
    rows = np.full((order.size, CONTEXT_LENGTH), pad, dtype=np.int64)
    for row, passage in enumerate(order.reshape(-1)):
        text = bank["ids"][passage][bank["mask"][passage] == 1]
        asked = question_ids[row // n_docs][:4] % (vocabulary - 4) + 4
        rows[row, : len(text) + 4] = np.concatenate([text, asked])
    return {
        "context_input_ids": rows,
        "context_attention_mask": (rows != pad).astype(np.int64),
        "retrieved_doc_embeds": bank["vectors"][order],
        "doc_ids": order,
        "tokenized_doc_ids": bank["encoder_ids"][order.reshape(-1)],
        "tokenized_doc_attention_mask": bank["encoder_mask"][order.reshape(-1)],
    }
