"""Small configurations and random weights for them.

Shared by the tests of weight names and of checkpoints.
"""

import numpy as np

from rag_core.checkpoint.weights import expected_shapes, tied_names
from rag_core.config.rag import BartConfig, DPRConfig, RagConfig, T5Config

BERT = {
    "vocab_size": 11,
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 6,
}
DPR = DPRConfig(**BERT, max_position_embeddings=8, projection_dim=3)
BART = BartConfig(
    vocab_size=13,
    d_model=4,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=2,
    decoder_attention_heads=1,
    encoder_ffn_dim=5,
    decoder_ffn_dim=6,
    max_position_embeddings=8,
)
T5_SIZES = {"vocab_size": 13, "d_model": 4, "d_kv": 3, "d_ff": 5, "num_layers": 2, "num_heads": 2}
T5 = T5Config(**T5_SIZES)
T5_GATED = T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)


def rag(generator=BART):
    return RagConfig(question_encoder=DPR, generator=generator)


def some_weights(config, head=None):
    """Random weights, tied names sharing one array."""
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(size=size).astype(np.float32)
        for name, size in expected_shapes(config, head).items()
    }
    for group in tied_names(config, head):
        weights |= dict.fromkeys(group, weights[group[0]])
    return weights


def same(one, other):
    assert sorted(one) == sorted(other)
    for name in one:
        np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(other[name]))
