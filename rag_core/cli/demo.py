"""`dualrag demo`: a few questions to the demo's text and model."""

from __future__ import annotations

from rag_core.cli.ask import DEMO_ANSWERS, Answerer, Page
from rag_core.cli.common import Backend, clean, pasteable, say

DEMO_QUESTIONS = (
    "Which epic novel did Leo Tolstoy set during Napoleon's invasion of Russia?",
    "Which expensive spice comes from the stigmas of a crocus flower?",
    "What is the process by which plants turn sunlight into chemical energy?",
    "Which Dutch painter from Delft is known for quiet scenes inside middle-class homes?",
)


@clean
def demo(backend: Backend = None) -> None:
    """Fetch the demo's encoder and text, build its knowledge base, and answer a few questions.

    All is kept in $DUALRAG_HOME, or else in ~/.cache/dualrag.
    """
    with Page(as_json=False) as page:
        answerer = Answerer.open(page, {}, backend=backend)
        page.notes.append(DEMO_ANSWERS)
        answerer.answer(list(DEMO_QUESTIONS), last=True)
    say(f'Your own:  {pasteable("ask")} "..."')
