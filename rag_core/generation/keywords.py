"""The keywords of `generate` and `answer`, for editors and type checkers; what each does stands in
`GenerationConfig` and in the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from rag_core.generation.config import GenerationConfig


class _Searched(TypedDict, total=False):
    max_length: int | None
    max_new_tokens: int | None
    min_length: int | None
    min_new_tokens: int | None
    early_stopping: bool | str | None
    max_time: float | None
    do_sample: bool | None
    num_beams: int | None
    num_beam_groups: int | None
    penalty_alpha: float | None
    use_cache: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    diversity_penalty: float | None
    repetition_penalty: float | None
    encoder_repetition_penalty: float | None
    length_penalty: float | None
    no_repeat_ngram_size: int | None
    bad_words_ids: Sequence[Sequence[int]] | None
    force_words_ids: list[Any] | None
    renormalize_logits: bool | None
    constraints: list[Any] | None
    forced_bos_token_id: int | None
    forced_eos_token_id: int | Sequence[int] | None
    remove_invalid_values: bool | None
    exponential_decay_length_penalty: tuple[int, float] | None
    suppress_tokens: Sequence[int] | None
    begin_suppress_tokens: Sequence[int] | None
    forced_decoder_ids: Sequence[Sequence[int]] | Mapping[int, int] | None
    sequence_bias: Mapping[tuple[int, ...], float] | None
    guidance_scale: float | None
    low_memory: bool | None
    num_return_sequences: int | None
    output_attentions: bool | None
    output_hidden_states: bool | None
    output_scores: bool | None
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | Sequence[int] | None
    encoder_no_repeat_ngram_size: int | None
    decoder_start_token_id: int | None
    num_assistant_tokens: int | None
    num_assistant_tokens_schedule: str | None
    prompt_lookup_num_tokens: int | None
    generation_kwargs: dict[str, Any] | None


class GenerationOptions(_Searched, total=False):
    """Every option of `GenerationConfig`; None is its default."""

    return_dict_in_generate: bool | None


class _OfTheCall(TypedDict, total=False):
    generation_config: GenerationConfig | Mapping[str, Any] | None
    prefix_allowed_tokens_fn: Callable[[int, Any], Iterable[int]] | None
    logits_processor: Callable[[Any, Any], Any] | Sequence[Callable[[Any, Any], Any]] | None
    stopping_criteria: Callable[[Any, Any], Any] | Sequence[Callable[[Any, Any], Any]] | None
    seed: int | None
    streamer: Any
    decoder_input_ids: Any
    negative_prompt_ids: Any
    negative_prompt_attention_mask: Any
    synced_gpus: bool | None
    assistant_model: Any
    cancelled: Callable[[], Sequence[bool]] | None
    graph: bool | None  # rag_tf
    labels: Any  # of a batch for training: these two are not read
    token_type_ids: Any


class PlainKeywords(_Searched, _OfTheCall, total=False):
    """What `generate` of a generator takes by name besides its first argument."""

    input_ids: Any
    attention_mask: Any
    inputs_embeds: Any
    encoder_outputs: Any


class TokenKeywords(_Searched, _OfTheCall, total=False):
    """What RAG-Token's `generate` takes by name besides questions and contexts."""

    n_docs: int | None
    question_text: Sequence[str] | None
    do_deduplication: bool | None


class SequenceKeywords(TokenKeywords, total=False):
    """What RAG-Sequence's `generate` takes by name besides questions and contexts."""

    decoding: str


class AnswerKeywords(GenerationOptions, _OfTheCall, total=False):
    """What `answer` hands on to `generate`."""

    do_deduplication: bool | None
    decoding: str
