"""Every weight of every network, computed from its configuration: name -> shape.

Names and layouts are those of transformers' PyTorch classes, so a file of ours loads there and
back. Linear weights are (out, in). Letters: d model width, f feed-forward width, h heads, k width
of one head, V vocabulary, P positions.
"""

from __future__ import annotations

from collections.abc import Mapping

from rag_core.config import BartConfig, BertConfig, DPRConfig, PretrainedConfig, RagConfig, T5Config

Shapes = dict[str, tuple[int, ...]]

RAG_HEADS = {"model": "", "token": "rag.", "sequence": "rag."}
DPR_HEADS = {"question": "question_encoder.", "context": "ctx_encoder."}

# Switches of transformers that change the function or its weights and that no network here has.
_UNSUPPORTED = {"is_decoder": False, "add_cross_attention": False, "tie_encoder_decoder": False}


def expected_shapes(
    config: PretrainedConfig,
    head: str | None = None,
    *,
    context_encoder: PretrainedConfig | None = None,
) -> Shapes:
    """Name and shape of every weight, tied copies included, as the PyTorch `state_dict` of
    transformers lists them.

    Args:
        config: what the network is.
        head: for RAG "model" (names without prefix), "token" or "sequence" (prefix "rag."); for DPR
            "question" or "context". None means "model" and "question".
        context_encoder: configuration of a context encoder that is trained along (RAG only).

    Raises:
        ValueError: an unknown head, or a configuration that no network here computes.
    """
    if isinstance(config, RagConfig):
        prefix = _prefix(RAG_HEADS, head, "model")
        parts = {"question_encoder.": expected_shapes(config.question_encoder)}
        parts["generator."] = expected_shapes(config.generator)
        if isinstance(context_encoder, DPRConfig):
            parts["ctx_encoder."] = expected_shapes(context_encoder, "context")
        elif context_encoder is not None:
            parts["ctx_encoder."] = expected_shapes(context_encoder)
        return {
            f"{prefix}{part}{name}": size
            for part, shapes in parts.items()
            for name, size in shapes.items()
        }
    if isinstance(config, DPRConfig):
        prefix = _prefix(DPR_HEADS, head, "question")
        _refuse_unsupported(config)
        shapes = {f"{prefix}bert_model.{name}": size for name, size in _bert(config).items()}
        return shapes | _linear(f"{prefix}encode_proj", config.projection_dim, config.hidden_size)
    if head is not None:
        raise ValueError(
            f"head must be None for a {config.model_type!r} configuration, got {head!r}."
        )
    _refuse_unsupported(config)
    if isinstance(config, BertConfig):
        d = config.hidden_size
        shapes = _bert(config)
        if config.pooling == "pooler":
            shapes |= _linear("pooler.dense", d, d)
        if buckets := config.relative_attention_num_buckets:
            heads = config.num_attention_heads
            shapes["encoder.relative_attention_bias.weight"] = (buckets, heads)
        return shapes | _linear("encode_proj", config.projection_dim, d)
    if isinstance(config, BartConfig):
        return _bart(config)
    if isinstance(config, T5Config):
        return _t5(config)
    raise ValueError(
        f"model_type must be bart, bert, dpr, rag or t5, got {config.model_type!r}. Other "
        "networks go through a backend's `foreign`."
    )


def tied_names(config: PretrainedConfig, head: str | None = None) -> list[tuple[str, ...]]:
    """Groups of names that are one weight; the first of each group is the one written to files."""
    if isinstance(config, RagConfig):
        prefix = _prefix(RAG_HEADS, head, "model") + "generator."
        return [tuple(prefix + name for name in group) for group in tied_names(config.generator)]
    if not isinstance(config, BartConfig | T5Config):
        return []
    names = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    if isinstance(config, BartConfig):
        names = [f"model.{name}" for name in names]
    if config.tie_word_embeddings:
        names.append("lm_head.weight")
    return [tuple(names)]


def _prefix(heads: Mapping[str, str], head: str | None, default: str) -> str:
    if (head or default) not in heads:
        raise ValueError(f"head must be one of {', '.join(heads)} or None, got {head!r}.")
    return heads[head or default]


def _refuse_unsupported(config: PretrainedConfig) -> None:
    for name, value in _UNSUPPORTED.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{type(config).__name__}.{name}={getattr(config, name)!r} is not supported; only "
                f"{value!r}."
            )
    if config.pruned_heads:
        raise ValueError(
            f"{type(config).__name__}.pruned_heads is not supported, got {config.pruned_heads!r}."
        )
    positions = getattr(config, "position_embedding_type", "absolute")
    if positions != "absolute":
        raise ValueError(
            f"{type(config).__name__}.position_embedding_type must be 'absolute', got "
            f"{positions!r}."
        )


def _linear(name: str, out: int, width: int) -> Shapes:
    """Weight and bias of a linear layer; nothing where `out` is 0."""
    if not out:
        return {}
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _bert(config: BertConfig | DPRConfig) -> Shapes:
    d = config.hidden_size
    f = config.intermediate_size
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (config.vocab_size, d),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, d),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, d),
        **_norm("embeddings.LayerNorm", d),
    }
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            shapes |= _linear(f"{layer}.attention.{part}", d, d)
        shapes |= _norm(f"{layer}.attention.output.LayerNorm", d)
        shapes |= _linear(f"{layer}.intermediate.dense", f, d)
        shapes |= _linear(f"{layer}.output.dense", d, f)
        shapes |= _norm(f"{layer}.output.LayerNorm", d)
    return shapes


def _bart(config: BartConfig) -> Shapes:
    d = config.d_model
    v = config.vocab_size
    shapes: Shapes = {"final_logits_bias": (1, v), "model.shared.weight": (v, d)}
    stacks = {
        "encoder": (config.encoder_layers, config.encoder_ffn_dim, ("self_attn",)),
        "decoder": (config.decoder_layers, config.decoder_ffn_dim, ("self_attn", "encoder_attn")),
    }
    for stack, (layers, f, attentions) in stacks.items():
        root = f"model.{stack}"
        shapes[f"{root}.embed_tokens.weight"] = (v, d)
        # BART's learned positions start at row 2.
        shapes[f"{root}.embed_positions.weight"] = (config.max_position_embeddings + 2, d)
        for number in range(layers):
            layer = f"{root}.layers.{number}"
            for attention in attentions:
                for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
                    shapes |= _linear(f"{layer}.{attention}.{part}", d, d)
                shapes |= _norm(f"{layer}.{attention}_layer_norm", d)
            shapes |= _linear(f"{layer}.fc1", f, d)
            shapes |= _linear(f"{layer}.fc2", d, f)
            shapes |= _norm(f"{layer}.final_layer_norm", d)
        shapes |= _norm(f"{root}.layernorm_embedding", d)
    shapes["lm_head.weight"] = (v, d)
    return shapes


def _t5(config: T5Config) -> Shapes:
    d = config.d_model
    f = config.d_ff
    v = config.vocab_size
    h = config.num_heads
    inner = h * config.d_kv
    ups = ["wi"]
    if config.is_gated_act:
        ups = ["wi_0", "wi_1"]
    shapes: Shapes = {"shared.weight": (v, d)}
    stacks = {
        "encoder": (config.num_layers, ("SelfAttention",)),
        "decoder": (config.num_decoder_layers or 0, ("SelfAttention", "EncDecAttention")),
    }
    for stack, (blocks, attentions) in stacks.items():
        shapes[f"{stack}.embed_tokens.weight"] = (v, d)
        for number in range(blocks):
            block = f"{stack}.block.{number}.layer"
            for place, attention in enumerate(attentions):
                root = f"{block}.{place}.{attention}"
                shapes |= {f"{root}.{part}.weight": (inner, d) for part in "qkv"}
                shapes[f"{root}.o.weight"] = (d, inner)
                if number == place == 0:
                    buckets = config.relative_attention_num_buckets
                    shapes[f"{root}.relative_attention_bias.weight"] = (buckets, h)
                shapes[f"{block}.{place}.layer_norm.weight"] = (d,)
            last = f"{block}.{len(attentions)}"
            shapes |= {f"{last}.DenseReluDense.{part}.weight": (f, d) for part in ups}
            shapes[f"{last}.DenseReluDense.wo.weight"] = (d, f)
            shapes[f"{last}.layer_norm.weight"] = (d,)
        shapes[f"{stack}.final_layer_norm.weight"] = (d,)
    shapes["lm_head.weight"] = (v, d)
    return shapes
