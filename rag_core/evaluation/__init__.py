"""Questions of every common format read, a model's answers measured, runs compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.evaluation.comparison import Comparison as Comparison
    from rag_core.evaluation.comparison import compare as compare
    from rag_core.evaluation.confidence import calibrate_model as calibrate_model
    from rag_core.evaluation.confidence import fit_confidence as fit_confidence
    from rag_core.evaluation.matching import AnswerFinder as AnswerFinder
    from rag_core.evaluation.matching import match_tokens as match_tokens
    from rag_core.evaluation.matching import stands_in as stands_in
    from rag_core.evaluation.questions import Context as Context
    from rag_core.evaluation.questions import Gold as Gold
    from rag_core.evaluation.questions import Question as Question
    from rag_core.evaluation.readers import read_questions as read_questions
    from rag_core.evaluation.readers import scan_questions as scan_questions
    from rag_core.evaluation.report import Evaluation as Evaluation
    from rag_core.evaluation.report import read_report as read_report
    from rag_core.evaluation.run import evaluate as evaluate
    from rag_core.evaluation.settings import Settings as Settings
    from rag_core.evaluation.settings import Variant as Variant
    from rag_core.evaluation.survey import scan_passages as scan_passages

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "comparison": ["Comparison", "compare"],
        "confidence": ["calibrate_model", "fit_confidence"],
        "matching": ["AnswerFinder", "match_tokens", "stands_in"],
        "questions": ["Context", "Gold", "Question"],
        "readers": ["read_questions", "scan_questions"],
        "report": ["Evaluation", "read_report"],
        "run": ["evaluate"],
        "settings": ["Settings", "Variant"],
        "survey": ["scan_passages"],
    },
)
