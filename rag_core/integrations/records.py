"""Answers and passages as plain values, the same for every library."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rag_core.outputs import Answer, Hit, Passage


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


def passage_metadata(passage: Passage | Hit) -> dict[str, Any]:
    """All that is known of a passage but its text and id, side by side, as documents of other
    libraries keep it.

    Returns:
        "title", "source", "origin", "score", of a `Hit` "rank", of a `Passage` "prior" and
        "posterior", and where it stands in its source; of further columns of a table those that
        are called otherwise.
    """
    values = asdict(passage)
    place = values.pop("metadata")
    del values["text"], values["id"]
    return {**place, **values, "origin": passage.origin}
