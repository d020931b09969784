"""The demo's small BART before training: weights drawn so that copying is easy to learn.

Drawn in the customary way, such a network learns no copying in a thousand steps. Here the first
half of the width holds sinusoidal positions, cross-attention starts as "look at the position with
my number and pass on what is there", and two heads of the lower encoder layers start as "look at my
other occurrences". All of it is trained further like any other weight. The idea is that of mimetic
initialisation (Trockman & Kolter 2023, arXiv 2305.09828).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rag_core.config import BartConfig
from rag_torch.bart import POSITION_OFFSET, BartForConditionalGeneration

TOKEN_STD = 0.0625
POSITION_GAIN = 3.0
QUERY_GAIN = 1.6
COPY_GAIN = 1.7
REPEAT_GAIN = 2.3
FREQUENCIES = (2.5, 0.05)


def demo_generator_config(vocab_size: int) -> BartConfig:
    """3 + 2 layers of width 256.

    Decoding starts with `<s>`, the token in front of every label (compatibility Q18).
    """
    return BartConfig(
        vocab_size=vocab_size,
        d_model=256,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=768,
        decoder_ffn_dim=768,
        max_position_embeddings=256,
        dropout=0.0,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
        # `<mask>` is what a passage without the answer is read as; no answer holds it.
        suppress_tokens=[4],
        max_length=32,
    )


@torch.no_grad()
def demo_generator(config: BartConfig, seed: int = 0) -> BartForConditionalGeneration:
    """A generator that half knows how to copy.

    Args:
        config: of width and heads as `demo_generator_config` gives them.
        seed: of the random part; the caller's generator of random numbers is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BartForConditionalGeneration(config)
        tokens = model.model.shared.weight
        tokens.normal_(0, TOKEN_STD)
        tokens[config.pad_token_id] = 0
        width, heads = config.d_model, config.encoder_attention_heads
        places = width // 2
        table = _positions(config.max_position_embeddings + 1, places) * TOKEN_STD * POSITION_GAIN
        for position, part in ((0, model.model.encoder), (1, model.model.decoder)):
            # The decoder's place t carries the encoder's t + 1: what it reads there is its next
            # token.
            part.embed_positions.weight.zero_()
            rows = table[position : position + config.max_position_embeddings]
            part.embed_positions.weight[POSITION_OFFSET:, :places] = rows
        same_place = torch.cat([torch.eye(places, width)] * 2)
        for layer in model.model.decoder.layers:
            _add(layer.encoder_attn.q_proj, same_place * QUERY_GAIN)
            _add(layer.encoder_attn.k_proj, same_place * QUERY_GAIN)
            _add(layer.encoder_attn.v_proj, torch.eye(width) * COPY_GAIN)
            _add(layer.encoder_attn.out_proj, torch.eye(width) * COPY_GAIN)
        same_token = torch.eye(width)
        same_token[: width // heads * (heads // 2)] = 0
        for layer in model.model.encoder.layers[:2]:
            _add(layer.self_attn.q_proj, same_token * REPEAT_GAIN)
            _add(layer.self_attn.k_proj, same_token * REPEAT_GAIN)
            _add(layer.self_attn.v_proj, torch.roll(torch.eye(width), places, 0))
        model.tie_weights()
    return model


def _positions(count: int, size: int) -> Tensor:
    """Sines and cosines (count, size) of variance 1.

    Each half of the columns spans all frequencies.
    """
    high, low = FREQUENCIES
    pairs = torch.arange(size // 2)
    order = pairs % (size // 4) * 2 + pairs // (size // 4)
    angles = torch.arange(count)[:, None] * high * (low / high) ** (order / (size // 2 - 1))
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(count, size) * 2**0.5


def _add(linear: nn.Linear, matrix: Tensor) -> None:
    linear.weight.add_(matrix)
