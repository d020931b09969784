"""Configurations: what a model is, as config.json says it, and the checks of single values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.config.auto import AutoClass as AutoClass
    from rag_core.config.base import MOST as MOST
    from rag_core.config.base import PretrainedConfig as PretrainedConfig
    from rag_core.config.base import read_config as read_config
    from rag_core.config.models import BartConfig as BartConfig
    from rag_core.config.models import BertConfig as BertConfig
    from rag_core.config.models import DPRConfig as DPRConfig
    from rag_core.config.models import T5Config as T5Config
    from rag_core.config.other_encoders import OTHER_ENCODERS as OTHER_ENCODERS
    from rag_core.config.rag import AutoConfig as AutoConfig
    from rag_core.config.rag import RagConfig as RagConfig
    from rag_core.config.rag import config_from_dict as config_from_dict
    from rag_core.config.sentence_transformers import SentenceSettings as SentenceSettings
    from rag_core.config.sentence_transformers import prepared_texts as prepared_texts
    from rag_core.config.sentence_transformers import sentence_settings as sentence_settings

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "auto": ["AutoClass"],
        "base": ["MOST", "PretrainedConfig", "read_config"],
        "models": ["BartConfig", "BertConfig", "DPRConfig", "T5Config"],
        "other_encoders": ["OTHER_ENCODERS"],
        "rag": ["AutoConfig", "RagConfig", "config_from_dict"],
        "sentence_transformers": ["SentenceSettings", "prepared_texts", "sentence_settings"],
    },
)
