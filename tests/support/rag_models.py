"""Tiny RAG models with strong seeded weights, contexts and a retriever.

Shared by tests of RagModel and its heads.
"""

from __future__ import annotations

import torch

from conformance.seeded import seeded_weights
from rag_core.config.rag import BartConfig, DPRConfig, RagConfig, T5Config
from rag_torch.rag import RagModel, RagSequenceForGeneration, RagTokenForGeneration

V, N, B, S, D = 23, 3, 2, 7, 12
BART = {
    "vocab_size": V, "d_model": 12, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 24,
    "dropout": 0.0,
}  # fmt: skip
T5 = {
    "vocab_size": V, "d_model": 12, "d_kv": 5, "d_ff": 16, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0,
    "relative_attention_num_buckets": 8, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
}  # fmt: skip
BERT = {
    "vocab_size": 19, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
HEADS = [RagModel, RagTokenForGeneration, RagSequenceForGeneration]
GENERATING = HEADS[1:]


def config(generator="bart", **fields):
    part = BartConfig(**BART) if generator == "bart" else T5Config(**T5)
    fields = {"n_docs": N, "max_combined_length": S, "retrieval_vector_size": D} | fields
    return RagConfig.from_question_encoder_generator_configs(DPRConfig(**BERT), part, **fields)


def build(
    kind=RagTokenForGeneration, generator="bart", dtype=torch.float64, retriever=None, **fields
):
    """A model with strong seeded weights, in eval mode."""
    model = kind(config(generator, **fields), retriever=retriever).to(dtype)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = model.config.generator.tie_word_embeddings
    weights = seeded_weights(
        {n: s for n, s in shapes.items() if not (tied and n.endswith("lm_head.weight"))}, 5
    )
    model.load_state_dict({name: torch.tensor(w) for name, w in weights.items()}, strict=False)
    return model.eval()


def given_contexts(dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, V, (B * N, S), generator=draw)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    scores = torch.randn(B, N, generator=draw, dtype=torch.float64).to(dtype)
    return {"context_input_ids": ids, "context_attention_mask": mask, "doc_scores": scores}


LABELS = torch.tensor([[4, 9, 12, 7, 2], [5, 8, 2, 1, 1]])
QUESTIONS = torch.tensor([[5, 6, 7, 8], [9, 4, 0, 0]])


class Retriever:
    """Gives fixed documents and remembers what it was asked."""

    def __init__(self, **extra):
        self.extra = extra
        self.embeds = torch.randn(B, N, D, generator=torch.Generator().manual_seed(4))

    def __call__(
        self,
        question_input_ids,
        question_hidden_states,
        prefix=None,
        n_docs=None,
        return_tensors=None,
    ):
        self.asked = (question_input_ids, question_hidden_states, prefix, n_docs, return_tensors)
        found = {k: v for k, v in given_contexts().items() if k != "doc_scores"}
        ids = torch.arange(B * N).view(B, N)
        return {**found, "retrieved_doc_embeds": self.embeds, "doc_ids": ids, **self.extra}


def close(got, want, tolerance=1e-12):
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, check_dtype=False)
