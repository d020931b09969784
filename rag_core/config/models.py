"""Configurations of the networks a RAG model is made of: DPR, BERT, BART and T5.

Names and defaults are those of transformers 4.37.2, so one `config.json` serves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rag_core.config.base import KNOWN, PretrainedConfig
from rag_core.config.other_encoders import OTHER_ENCODERS, as_bert

# Beyond any model: a number that is wrong by accident would fill the memory with layers.
MOST_LAYERS = 10_000
_SIZES: Mapping[str, float] = {"vocab_size": 1, "max_position_embeddings": 1}


def _divides(config: PretrainedConfig, width: str, *heads: str) -> None:
    """Refuses a width that its attention heads can't share evenly."""
    for name in heads:
        if getattr(config, width) % getattr(config, name):
            raise ValueError(
                f"{type(config).__name__}.{width} must be a multiple of {name}, "
                f"got {getattr(config, width)} and {getattr(config, name)}."
            )


@dataclass(init=False, repr=False, eq=False)
class _BertBase(PretrainedConfig):
    """What BERT and DPR's BERT have in common."""

    positional: ClassVar[tuple[str, ...]] = tuple(
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size "
        "hidden_act hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings "
        "type_vocab_size initializer_range layer_norm_eps pad_token_id position_embedding_type".split()
    )
    maximum: ClassVar[Mapping[str, float]] = dict.fromkeys(("num_hidden_layers",), MOST_LAYERS)
    minimum: ClassVar[Mapping[str, float]] = {
        **_SIZES,
        "hidden_size": 1,
        "num_hidden_layers": 0,
        "num_attention_heads": 1,
        "intermediate_size": 1,
        "type_vocab_size": 1,
        "projection_dim": 0,
    }

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    position_embedding_type: str = "absolute"
    projection_dim: int = 0

    def validate(self) -> None:
        """Checks every field (see `PretrainedConfig.validate`)."""
        super().validate()
        _divides(self, "hidden_size", "num_attention_heads")


@dataclass(init=False, repr=False, eq=False)
class BertConfig(_BertBase):
    """A BERT encoder, and how its states become one question vector.

    The vector is: pool, `encode_proj` if `projection_dim` > 0, L2 normalisation if `normalize`,
    times `scale`. These four and what a question's text goes through before it (`query_...`, done
    by `RagTokenizer`) are this library's own; transformers carries them as foreign keys.

    A config.json of RoBERTa, XLM-R, CamemBERT, DistilBERT or MPNet is read as the BERT that
    computes the same.

    Attributes:
        pooling: "cls" (first state), "mean" (over unmasked tokens), "pooler" (BERT's tanh pooler),
            or as sentence-transformers has them "max", "mean_sqrt_len_tokens" (the sum over the
            root of their number), "weightedmean" (the n-th token weighs n) and "lasttoken".
        projection_dim: width of a linear layer after pooling, 0 for none.
        projection_activation: an activation after that layer, as "tanh".
        relative_attention_num_buckets: MPNet's buckets of distances, whose learned bias is added
            to the scores of all layers; 0 for none.
        converted_from: the `model_type` that the config was read from, where it was another.
        normalize: divide the vector by its L2 norm.
        scale: factor on the vector; sets how sharply documents differ when vectors are normalised.
        query_prompt: text that the encoder was trained to see in front of a question.
        query_lower_case: lower-case questions, whatever the tokenizer does.
        query_max_length: tokens a question is cut to; None for the tokenizer's limit.
    """

    model_type: ClassVar[str] = "bert"
    readable: ClassVar[tuple[str, ...]] = ("dpr",)
    own: ClassVar[tuple[str, ...]] = tuple(
        "projection_dim pooling normalize scale query_prompt query_lower_case query_max_length "
        "projection_activation relative_attention_num_buckets converted_from".split()
    )
    positional: ClassVar[tuple[str, ...]] = (
        *_BertBase.positional,
        "use_cache",
        "classifier_dropout",
    )
    minimum: ClassVar[Mapping[str, float]] = {
        **_BertBase.minimum,
        "relative_attention_num_buckets": 0,
    }
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "pooling": (
            *("cls", "mean", "pooler"),
            *("max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"),
        )
    }

    use_cache: bool = True
    classifier_dropout: float | None = None
    pooling: str = "cls"
    normalize: bool = False
    scale: float = 1.0
    query_prompt: str = ""
    query_lower_case: bool = False
    query_max_length: int | None = None
    projection_activation: str | None = None
    relative_attention_num_buckets: int = 0
    converted_from: str | None = None

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> Any:
        """A configuration out of the contents of a `config.json`, perhaps of another encoder.

        See `PretrainedConfig.from_dict`.
        """
        if isinstance(config_dict, Mapping) and config_dict.get("model_type") in OTHER_ENCODERS:
            config_dict = as_bert(config_dict)
        return super().from_dict(config_dict, **overrides)


KNOWN.update(dict.fromkeys(OTHER_ENCODERS, BertConfig))


@dataclass(init=False, repr=False, eq=False)
class DPRConfig(_BertBase):
    """A DPR encoder: BERT, its first state, and a linear projection if `projection_dim` > 0."""

    model_type: ClassVar[str] = "dpr"
    positional: ClassVar[tuple[str, ...]] = (*_BertBase.positional, "projection_dim")
    readable: ClassVar[tuple[str, ...]] = ("bert",)


@dataclass(init=False, repr=False, eq=False)
class BartConfig(PretrainedConfig):
    """A BART encoder-decoder.

    `hidden_size` and `num_attention_heads` are other names for the encoder's.
    """

    model_type: ClassVar[str] = "bart"
    labels: ClassVar[int] = 3
    positional: ClassVar[tuple[str, ...]] = tuple(
        "vocab_size max_position_embeddings encoder_layers encoder_ffn_dim "
        "encoder_attention_heads decoder_layers decoder_ffn_dim decoder_attention_heads "
        "encoder_layerdrop decoder_layerdrop activation_function d_model dropout "
        "attention_dropout activation_dropout init_std classifier_dropout scale_embedding "
        "use_cache num_labels pad_token_id bos_token_id eos_token_id is_encoder_decoder "
        "decoder_start_token_id forced_eos_token_id".split()
    )
    aliases: ClassVar[dict[str, str]] = PretrainedConfig.aliases | {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
    }
    maximum: ClassVar[Mapping[str, float]] = dict.fromkeys(
        ("encoder_layers", "decoder_layers"), MOST_LAYERS
    )
    minimum: ClassVar[Mapping[str, float]] = {
        **_SIZES,
        "d_model": 1,
        "encoder_layers": 0,
        "decoder_layers": 0,
        "encoder_attention_heads": 1,
        "decoder_attention_heads": 1,
        "encoder_ffn_dim": 1,
        "decoder_ffn_dim": 1,
    }

    vocab_size: int = 50265
    max_position_embeddings: int = 1024
    encoder_layers: int = 12
    encoder_ffn_dim: int = 4096
    encoder_attention_heads: int = 16
    decoder_layers: int = 12
    decoder_ffn_dim: int = 4096
    decoder_attention_heads: int = 16
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    activation_function: str = "gelu"
    d_model: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    init_std: float = 0.02
    classifier_dropout: float | None = 0.0
    scale_embedding: bool = False
    use_cache: bool = True
    num_hidden_layers: int | None = None
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    is_encoder_decoder: bool = True
    decoder_start_token_id: int | None = 2
    forced_eos_token_id: int | list[int] | None = 2

    def _complete(self) -> None:
        if self.num_hidden_layers is None:
            self.num_hidden_layers = self.encoder_layers

    def validate(self) -> None:
        """Checks every field (see `PretrainedConfig.validate`)."""
        super().validate()
        _divides(self, "d_model", "encoder_attention_heads", "decoder_attention_heads")


@dataclass(init=False, repr=False, eq=False)
class T5Config(PretrainedConfig):
    """A T5 encoder-decoder: v1.0 ("relu", tied) or v1.1 ("gated-gelu",
    `tie_word_embeddings=False`).

    Attributes:
        feed_forward_proj: "relu", "gelu", ... or "gated-<activation>".
        dense_act_fn: the activation itself; "gated-gelu" means the tanh approximation "gelu_new".
        is_gated_act: whether the feed-forward has a gate.
    """

    model_type: ClassVar[str] = "t5"
    positional: ClassVar[tuple[str, ...]] = tuple(
        "vocab_size d_model d_kv d_ff num_layers num_decoder_layers num_heads "
        "relative_attention_num_buckets relative_attention_max_distance dropout_rate "
        "layer_norm_epsilon initializer_factor feed_forward_proj is_encoder_decoder use_cache "
        "pad_token_id eos_token_id classifier_dropout".split()
    )
    aliases: ClassVar[dict[str, str]] = PretrainedConfig.aliases | {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    }
    maximum: ClassVar[Mapping[str, float]] = dict.fromkeys(
        ("num_layers", "num_decoder_layers"), MOST_LAYERS
    )
    minimum: ClassVar[Mapping[str, float]] = {
        "vocab_size": 1,
        "d_model": 1,
        "d_kv": 1,
        "d_ff": 1,
        "num_layers": 0,
        "num_decoder_layers": 0,
        "num_heads": 1,
        "relative_attention_num_buckets": 2,
        "relative_attention_max_distance": 1,
    }

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"
    dense_act_fn: str | None = None
    is_gated_act: bool | None = None
    is_encoder_decoder: bool = True
    use_cache: bool = True
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    classifier_dropout: float | None = 0.0

    def _complete(self) -> None:
        # transformers 5 writes an untied model as tied (which weights are tied, it sees in the
        # file) but not scaled.
        if self.extra.get("scale_decoder_outputs") is False:
            self.tie_word_embeddings = False
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        parts = []
        if isinstance(self.feed_forward_proj, str):
            parts = self.feed_forward_proj.split("-")
        if len(parts) not in (1, 2) or (len(parts) == 2 and parts[0] != "gated"):
            raise ValueError(
                "T5Config.feed_forward_proj must be an activation or 'gated-' and an activation, "
                f"as in 'gated-gelu', got {self.feed_forward_proj!r}."
            )
        if self.is_gated_act is None:
            self.is_gated_act = len(parts) == 2
        if self.dense_act_fn is None:
            self.dense_act_fn = "gelu_new" if parts == ["gated", "gelu"] else parts[-1]

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **overrides: Any) -> T5Config:
        """A configuration out of the contents of a `config.json`.

        See `PretrainedConfig.from_dict`.
        """
        if "feed_forward_proj" in overrides:
            derived = ("dense_act_fn", "is_gated_act")
            config_dict = {
                name: value for name, value in config_dict.items() if name not in derived
            }
        return super().from_dict(config_dict, **overrides)
