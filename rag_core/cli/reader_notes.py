"""What to expect of a model that reads passages it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rag_core.cli.common import pasteable

if TYPE_CHECKING:
    from rag_core.knowledge import KnowledgeBase


def unfamiliar(model: str | Path, base: KnowledgeBase) -> str | None:
    """What a model does with passages of which it is known that it did not learn on them, for
    people; None of all others.

    Args:
        model: its folder or hub name.
        base: the passages that it is to read.
    """
    from rag_core.demo import has_demo_text, is_demo_model
    from rag_core.knowledge import remembered_base

    if is_demo_model(model):
        if has_demo_text(base):
            return None
        return (
            "the demo's model learned to name articles of Wikipedia. Of other passages it finds the "
            "right ones, but answers with a title or a few words at random."
        )
    learned = remembered_base(model)
    if learned is None or learned.is_of(base):
        return None
    return (
        f"{model} was trained on the passages of {learned.path or 'another knowledge base'}. Of "
        "these it may find the right ones, but it answers as it learned there."
    )


def way_to_a_reader(base: KnowledgeBase) -> str:
    """The command that trains a reader for these passages."""
    return (
        "A reader for these, from some 40 questions with their answers:\n  "
        f"{pasteable('train', 'questions.jsonl', '--kb', base.path, '--out', 'tuned')}"
    )
