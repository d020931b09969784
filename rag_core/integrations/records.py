"""Answers and passages as plain values, the same for every library."""

from __future__ import annotations

import math
from typing import Any

from rag_core.outputs import Answer


def answer_record(answer: Answer) -> dict[str, Any]:
    """What programs read of an answer, ready for JSON.

    Returns:
        "question"; "answer", its text; "probability" p(y|x) of exactly this text; "confidence",
        the probability that it is right, or None; "passages" and "citations" as of
        `Answer.to_dict`.
    """
    values = answer.to_dict()
    return {
        "question": answer.question,
        "answer": answer.text,
        "probability": math.exp(answer.log_probability),
        "confidence": answer.confidence,
        "passages": values["passages"],
        "citations": values["citations"],
    }
