"""Encoders that are BERT with other names and rows: RoBERTa, XLM-R, CamemBERT, DistilBERT, MPNet.

What they compute, BERT computes: their config.json is read as a `BertConfig`, and
`rag_core.checkpoint` gives their weights BERT's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Defaults of 4.37.2 where they are not BERT's: files of old may leave out what is as by default.
_ROBERTA = {"vocab_size": 50265, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_DISTILBERT_NAMES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_DISTILBERT = {"n_layers": 6, "type_vocab_size": 1}
_MPNET = {
    **_ROBERTA,
    "vocab_size": 30527,
    "type_vocab_size": 1,
    "relative_attention_num_buckets": 32,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "roberta": _ROBERTA,
    "xlm-roberta": {**_ROBERTA, "vocab_size": 30522},
    "camembert": {**_ROBERTA, "vocab_size": 30522},
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
}
OTHER_ENCODERS = tuple(_DEFAULTS)


def as_bert(values: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of one of `OTHER_ENCODERS` as that of the BERT which computes the same.

    Args:
        values: its contents, left untouched.

    Raises:
        ValueError: a size that no such file has.
    """
    kind = values["model_type"]
    converted = {**_DEFAULTS[kind], **values, "model_type": "bert", "converted_from": kind}
    converted.pop("architectures", None)
    if kind == "distilbert":
        for theirs, name in _DISTILBERT_NAMES.items():
            if theirs in converted:
                converted[name] = converted.pop(theirs)
        return converted
    # Positions count from the row after the pad token's, so that the first rows are never used.
    unused = first_position(converted.get("pad_token_id"))
    rows = converted.get("max_position_embeddings", 512)
    if type(rows) is not int or rows <= unused:
        raise ValueError(
            f"max_position_embeddings of a {kind!r} model must be above {unused}, got {rows!r}."
        )
    converted["max_position_embeddings"] = rows - unused
    return converted


def first_position(pad_token_id: Any) -> int:
    """The row of RoBERTa's table of positions that a text's first token has."""
    if type(pad_token_id) is not int:
        raise ValueError(f"pad_token_id must be a whole number, got {pad_token_id!r}.")
    return pad_token_id + 1
