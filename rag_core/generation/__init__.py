"""How tokens are chosen: options, rules, beams."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.generation.beam import BeamSearch as BeamSearch
    from rag_core.generation.beam import RowSearch as RowSearch
    from rag_core.generation.beam import SearchResult as SearchResult
    from rag_core.generation.beam import order_candidates as order_candidates
    from rag_core.generation.beam import transition_scores as transition_scores
    from rag_core.generation.candidates import Candidates as Candidates
    from rag_core.generation.candidates import PrefixTree as PrefixTree
    from rag_core.generation.candidates import collect_candidates as collect_candidates
    from rag_core.generation.candidates import prefix_tree as prefix_tree
    from rag_core.generation.config import GenerationConfig as GenerationConfig
    from rag_core.generation.config import as_generation_config as as_generation_config
    from rag_core.generation.config import as_ids as as_ids
    from rag_core.generation.config import asked_rows as asked_rows
    from rag_core.generation.config import default_of as default_of
    from rag_core.generation.config import own_options as own_options
    from rag_core.generation.config import resolve_options as resolve_options
    from rag_core.generation.config import with_options as with_options
    from rag_core.generation.decode import encode_as_given as encode_as_given
    from rag_core.generation.decode import generate_sequence as generate_sequence
    from rag_core.generation.decode import generate_token as generate_token
    from rag_core.generation.decode import plain_generate as plain_generate
    from rag_core.generation.decode import rag_sequence_generate as rag_sequence_generate
    from rag_core.generation.decode import rag_token_generate as rag_token_generate
    from rag_core.generation.decoder import Decoder as Decoder
    from rag_core.generation.decoder import Encoded as Encoded
    from rag_core.generation.decoder import GuidedDecoder as GuidedDecoder
    from rag_core.generation.engine import Engine as Engine
    from rag_core.generation.engine import is_native as is_native
    from rag_core.generation.hooks import Hooks as Hooks
    from rag_core.generation.hooks import SearchCancelledError as SearchCancelledError
    from rag_core.generation.hooks import pop_hooks as pop_hooks
    from rag_core.generation.inputs import UNREAD_BY_GENERATE as UNREAD_BY_GENERATE
    from rag_core.generation.inputs import check_context as check_context
    from rag_core.generation.inputs import check_embeds as check_embeds
    from rag_core.generation.inputs import check_head_masks as check_head_masks
    from rag_core.generation.inputs import check_label_shape as check_label_shape
    from rag_core.generation.inputs import check_one_of as check_one_of
    from rag_core.generation.inputs import next_inputs as next_inputs
    from rag_core.generation.inputs import start_and_pad as start_and_pad
    from rag_core.generation.keywords import AnswerKeywords as AnswerKeywords
    from rag_core.generation.keywords import GenerationOptions as GenerationOptions
    from rag_core.generation.keywords import PlainKeywords as PlainKeywords
    from rag_core.generation.keywords import SequenceKeywords as SequenceKeywords
    from rag_core.generation.keywords import TokenKeywords as TokenKeywords
    from rag_core.generation.logits_rules import LogitsProcessor as LogitsProcessor
    from rag_core.generation.logits_rules import LogitsWarper as LogitsWarper
    from rag_core.generation.logits_rules import StepRules as StepRules
    from rag_core.generation.logits_rules import logits_warpers as logits_warpers
    from rag_core.generation.logits_rules import min_tokens_to_keep as min_tokens_to_keep
    from rag_core.generation.logits_rules import start_tokens as start_tokens
    from rag_core.generation.model_options import loaded_options as loaded_options
    from rag_core.generation.model_options import returned_sequences as returned_sequences
    from rag_core.generation.model_options import sequence_options as sequence_options
    from rag_core.generation.model_options import token_options as token_options
    from rag_core.generation.model_options import written_options as written_options
    from rag_core.generation.noise import gumbel_noise as gumbel_noise
    from rag_core.generation.rescoring import target_scores as target_scores

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "beam": [
            "BeamSearch",
            "RowSearch",
            "SearchResult",
            "order_candidates",
            "transition_scores",
        ],
        "candidates": ["Candidates", "PrefixTree", "collect_candidates", "prefix_tree"],
        "config": [
            "GenerationConfig",
            "as_generation_config",
            "as_ids",
            "asked_rows",
            "default_of",
            "own_options",
            "resolve_options",
            "with_options",
        ],
        "decode": [
            "encode_as_given",
            "generate_sequence",
            "generate_token",
            "plain_generate",
            "rag_sequence_generate",
            "rag_token_generate",
        ],
        "decoder": ["Decoder", "Encoded", "GuidedDecoder"],
        "engine": ["Engine", "is_native"],
        "hooks": ["Hooks", "SearchCancelledError", "pop_hooks"],
        "inputs": [
            "UNREAD_BY_GENERATE",
            "check_context",
            "check_embeds",
            "check_head_masks",
            "check_label_shape",
            "check_one_of",
            "next_inputs",
            "start_and_pad",
        ],
        "keywords": [
            "AnswerKeywords",
            "GenerationOptions",
            "PlainKeywords",
            "SequenceKeywords",
            "TokenKeywords",
        ],
        "logits_rules": [
            "LogitsProcessor",
            "StepRules",
            "LogitsWarper",
            "min_tokens_to_keep",
            "logits_warpers",
            "start_tokens",
        ],
        "model_options": [
            "loaded_options",
            "returned_sequences",
            "sequence_options",
            "token_options",
            "written_options",
        ],
        "noise": ["gumbel_noise"],
        "rescoring": ["target_scores"],
    },
)
