"""`dualrag demo`: a few questions to the demo's text and model."""

from __future__ import annotations

from rag_core.cli.ask import answerer
from rag_core.cli.common import Backend, clean, say

DEMO_QUESTIONS = (
    "Which epic novel did Leo Tolstoy set during Napoleon's invasion of Russia?",
    "Which expensive spice comes from the stigmas of a crocus flower?",
    "What is the process by which plants turn sunlight into chemical energy?",
    "Which Dutch painter from Delft is known for quiet scenes inside middle-class homes?",
)


@clean
def demo(backend: Backend = None) -> None:
    """Fetch the demo's encoder and text, build its knowledge base, and answer a few questions."""
    answerer(None, None, None, None, False, backend)(list(DEMO_QUESTIONS), last=True)
    say('Your own:  dualrag ask "..."')
