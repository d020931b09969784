"""The model card of a tuned model: what it was made from, on what, and what was measured."""

from __future__ import annotations

from pathlib import Path

from rag_core.demo import is_demo_model
from rag_core.hub import model_card
from rag_core.knowledge import KnowledgeBase
from rag_core.training.config import TrainingConfig
from rag_core.training.report import TrainingReport

CARD = "README.md"
_DEMO_LICENSE = "cc-by-sa-4.0"
_BODY = """In TensorFlow write `rag_tf` for `rag_torch`. On the command line:

    dualrag ask --model {name} "..."

`knowledge_base.json` remembers where the knowledge base lies, relative to this folder; `--kb` names another.

## Training

{learned} Exact match is measured {measured}.

```text
{table}
```
{notes}
## Limits

It has learned the answers of {questions:,} questions, and was not tried on other passages than these. An exact match
on questions that it was trained on says nothing about new ones.

## Licences

{licence}

Text of the passages: {credit} The text itself is not in this folder, but a model can repeat what it learned from it.
"""


def tuned_card(
    name: str,
    head: str,
    model: str | Path,
    base: KnowledgeBase,
    place: str,
    config: TrainingConfig,
    report: TrainingReport,
    questions: int,
    measured: str,
) -> str:
    """The text of a tuned model's README.md.

    Args:
        name: the folder's.
        head: class that loads it.
        model: what the run started from.
        base: what it retrieves from.
        place: the folder of that.
        config: the run's settings.
        report: what it did.
        questions: how many it was trained on.
        measured: which questions its exact match was measured on.
    """
    origin = Path(model).name
    if not Path(model).is_dir():
        origin = str(model)
    license_id = None
    licence = f"Model: that of {origin}."
    if is_demo_model(model):
        origin, license_id = "the dualrag demo model", _DEMO_LICENSE
        licence = "Model: the demo's was trained on text under CC BY-SA 4.0."
    encoder = base.manifest.encoder.get("name") or "an unnamed encoder"
    seen = config.questions_a_step(report.run.get("processes", 1))
    learned = (
        f"{report.steps:,} steps of {seen} questions in "
        f"{report.seconds / 60:.1f} minutes, learning rate {config.learning_rate:g}, generator: "
        f"{config.generator}, question encoder: {config.question_encoder}, context encoder: "
        f"{config.context_encoder}, seed {config.seed}."
    )
    figures: dict[str, float | str] = {}
    for title, figure in (
        ("exact match before training", report.exact_match_before),
        ("exact match", report.exact_match),
    ):
        if figure is not None:
            figures[title] = f"{figure:.3f}"
    return model_card(
        name,
        summary=(
            f"A RAG model that began as {origin} and was tuned on {questions:,} questions, through "
            f"{len(base):,} passages of the knowledge base `{place}` (vectors by {encoder})."
        ),
        language=None,
        license=license_id,
        figures=figures,
        use=[
            f"from rag_torch import KnowledgeBase, RagRetriever, {head}",
            "",
            f'kb = KnowledgeBase.open("{place}")  # its folder',
            f'retriever = RagRetriever.from_pretrained("{name}", index=kb.index())',
            f'model = {head}.from_pretrained("{name}", retriever=retriever)',
            'print(model.answer("...")[0].text)',
        ],
        body=_BODY.format(
            name=name,
            learned=learned,
            table=report.table(),
            measured=measured,
            notes="".join(f"\n{note}\n" for note in report.notes()),
            questions=questions,
            licence=licence,
            credit=base.manifest.credit or "rights and licence are those of whoever owns the text.",
        ),
    )
