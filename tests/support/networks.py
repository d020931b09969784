"""Configurations of small networks, and PyTorch's networks with strong seeded weights."""

import torch

from conformance.seeded import seeded_weights
from rag_core.config.rag import BartConfig, T5Config

BART = BartConfig(
    vocab_size=23, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=3,
    encoder_ffn_dim=20, decoder_ffn_dim=16, max_position_embeddings=24, scale_embedding=True, dropout=0.2,
)  # fmt: skip
T5_TIED = T5Config(
    vocab_size=23, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_decoder_layers=2, num_heads=2,
    relative_attention_num_buckets=8, relative_attention_max_distance=12, decoder_start_token_id=0,
)  # fmt: skip
T5_UNTIED = T5Config.from_dict(
    T5_TIED.to_dict(), feed_forward_proj="gated-gelu", tie_word_embeddings=False
)
BERT = {
    "vocab_size": 19, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
    "max_position_embeddings": 16,
}  # fmt: skip
GENERATORS = {"bart": BART, "t5": T5_TIED, "t5v11": T5_UNTIED}
DROPPING = {
    "dropout": 0.2,
    "attention_dropout": 0.1,
    "encoder_layerdrop": 0.3,
    "decoder_layerdrop": 0.3,
}
NO_LAYERS = {
    "bart": BartConfig.from_dict(BART.to_dict(), encoder_layers=0, decoder_layers=0),
    "t5": T5Config.from_dict(T5_TIED.to_dict(), num_layers=0, num_decoder_layers=0),
    "t5v11": T5Config.from_dict(T5_UNTIED.to_dict(), num_decoder_layers=0),
}


def seeded(model, dtype=torch.float64):
    """The model with strong seeded weights, in eval mode."""
    shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    tied = getattr(model.config, "tie_word_embeddings", False)
    weights = seeded_weights(
        {n: s for n, s in shapes.items() if not (tied and n.endswith("lm_head.weight"))}, 7
    )
    model.to(dtype).load_state_dict(
        {n: torch.tensor(w, dtype=dtype) for n, w in weights.items()}, strict=False
    )
    return model.eval()
