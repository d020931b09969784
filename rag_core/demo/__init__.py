"""The demo: its text, its questions, its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.demo.card import write_card as write_card
    from rag_core.demo.checkpoint import SHIPPED as SHIPPED
    from rag_core.demo.checkpoint import assemble_model as assemble_model
    from rag_core.demo.checkpoint import check_shipped as check_shipped
    from rag_core.demo.checkpoint import package_model as package_model
    from rag_core.demo.clues import Article as Article
    from rag_core.demo.clues import description_clue as description_clue
    from rag_core.demo.clues import held_out_titles as held_out_titles
    from rag_core.demo.clues import natural_questions as natural_questions
    from rag_core.demo.clues import questions as questions
    from rag_core.demo.clues import read_articles as read_articles
    from rag_core.demo.material import ENCODER as ENCODER
    from rag_core.demo.material import ENCODER_FINGERPRINT as ENCODER_FINGERPRINT
    from rag_core.demo.material import corpus_file as corpus_file
    from rag_core.demo.material import demo_knowledge_base as demo_knowledge_base
    from rag_core.demo.material import demo_model_folder as demo_model_folder
    from rag_core.demo.material import encoder_folder as encoder_folder
    from rag_core.demo.material import encoder_here as encoder_here
    from rag_core.demo.material import has_demo_text as has_demo_text
    from rag_core.demo.material import home as home
    from rag_core.demo.material import is_demo_model as is_demo_model
    from rag_core.demo.material import knowledge_here as knowledge_here
    from rag_core.demo.material import missing as missing
    from rag_core.demo.material import model_here as model_here

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "card": ["write_card"],
        "checkpoint": ["SHIPPED", "assemble_model", "check_shipped", "package_model"],
        "clues": [
            "Article",
            "description_clue",
            "held_out_titles",
            "natural_questions",
            "questions",
            "read_articles",
        ],
        "material": [
            "ENCODER",
            "ENCODER_FINGERPRINT",
            "corpus_file",
            "demo_knowledge_base",
            "demo_model_folder",
            "encoder_folder",
            "encoder_here",
            "has_demo_text",
            "home",
            "is_demo_model",
            "knowledge_here",
            "missing",
            "model_here",
        ],
    },
)
