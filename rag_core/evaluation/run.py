"""An evaluation: questions in batches, each passage list retrieved once, every way of answering
tried on it; killed, it goes on.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.backends import BACKENDS
from rag_core.evaluation.calibration import calibration_of
from rag_core.evaluation.fingerprints import settings_sums, weights_sums
from rag_core.evaluation.matching import stands_in
from rag_core.evaluation.questions import Question, checked_questions
from rag_core.evaluation.report import (
    FORMAT,
    REPORT,
    UNFINISHED,
    WORK_SETTINGS,
    Evaluation,
    check_place,
    figures_of,
    forget_work,
    read_report,
)
from rag_core.evaluation.scores import (
    EXTRA,
    answer_scores,
    gold_keys,
    gold_scores,
    has_libraries,
    mistakes,
    text_scores,
)
from rag_core.evaluation.settings import Settings, Variant
from rag_core.evaluation.survey import Survey, document_ids, survey, unsurveyed
from rag_core.hub import atomic_write, check_writable, clear, numbered, parse_json, read_json
from rag_core.modeling import Found, Reading, find_passages

# Of the answers of a question, so many have their probability computed.
MOST_ANSWERS = 16
_REMOVE = "Remove the folder, or name another."
# What evaluations did not note once: those are compared without.
_LATER = {"config_sha256", "generation_sha256", "tokenizers_sha256", "answer_calibration"}


def evaluate(
    model: Any,
    questions: Sequence[Question],
    *,
    out: str | Path | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Evaluation:
    """Answer questions in one or several ways and measure answers and retrieval.

    Args:
        model: a RagTokenForGeneration or RagSequenceForGeneration with a retriever.
        questions: as `read_questions` returns them.
        out: folder for the report and the answers. A run that was killed is continued from what
            it left there, and one that is finished is found so.
        about: for the report: "model", "knowledge_base" and "questions" (dictionaries with "name"
            or "path", and "sha256"), and "command".
        progress: draw progress bars on stderr.
        **settings: fields of `Settings`: n_docs, head, decoding, num_beams (one value or several,
            of which all combinations are tried), limit, seed, batch_size, answerable,
            answerable_only, retrieval_only.

    Raises:
        TypeError: something else than questions, or an unknown setting.
        ValueError: no question, a bad setting, a model without a retriever, or `out` holds another
            evaluation.
        FileExistsError: `out` is a file, or holds files of the report's names that are not of an
            evaluation.
    """
    asked = Settings(**settings)
    folder = None
    if out is not None:
        folder = Path(out)
        if folder.is_file():
            raise FileExistsError(f"{folder} is a file: name a folder for the report")
        check_writable(folder)
        clear(folder)
        clear(folder / UNFINISHED)
        check_place(folder, [variant.name for variant in asked.variants(model)])
    run = _Run(model, checked_questions(questions), asked, about or {}, progress)
    if folder is None:
        return run.evaluation(run.parts(None))
    if (folder / REPORT).is_file():
        check_same(read_report(folder).get("run"), run.fingerprint(), folder)
    else:
        run.evaluation(run.parts(folder)).save(folder)
    forget_work(folder)
    return Evaluation.open(folder)


def check_same(stored: Any, current: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with another evaluation.

    Args:
        stored: what it was, as it stands in the folder.
        current: what this one is.
        folder: of both.

    Raises:
        ValueError: names what differs.
    """
    if not isinstance(stored, dict):
        stored = {}
    known = {*stored, *(current.keys() - _LATER)}
    names = sorted(name for name in known if stored.get(name) != current.get(name))
    if names:
        rows = "; ".join(
            f"{name}: {stored.get(name)!r:.60} there, {current.get(name)!r:.60} now"
            for name in names
        )
        raise ValueError(f"{folder} holds another evaluation ({rows}). {_REMOVE}")


class _Run:
    def __init__(
        self,
        model: Any,
        questions: list[Question],
        settings: Settings,
        about: Mapping[str, Any],
        progress: bool,
    ) -> None:
        if getattr(model, "retriever", None) is None:
            raise ValueError(
                "model must have a retriever, got none: pass retriever= to from_pretrained or call "
                "set_retriever(...)"
            )
        self.model = model
        self.settings = settings
        self.about = about
        self.progress = progress
        self.read = len(questions)
        self.variants = settings.variants(model)
        self.depth = settings.depths(model)[-1]
        self._notes: list[str] = []
        if not settings.answerable_only:
            questions = _drawn(questions, settings)
        self.survey = self._survey(questions)
        self.questions = questions
        if settings.answerable_only:
            self._keep_answerable()
        self.sha256 = hashlib.sha256(
            "".join(json.dumps(question.to_dict()) for question in self.questions).encode()
        ).hexdigest()
        self.model_sha256 = dict(about.get("model") or {}).get("sha256")
        self.layout_sha256 = None
        if self.model_sha256 is None:
            self.model_sha256, self.layout_sha256 = weights_sums(model)

    def _survey(self, questions: list[Question]) -> Survey:
        retriever = self.model.retriever
        if not self.settings.answerable:
            return unsurveyed(questions)
        retriever.init_retrieval()
        found = survey(retriever.index, questions, self.progress)
        if found.sha256 is None:
            self._notes.append(
                "The index has no length, so its passages could not be gone through: which "
                "questions are answerable is unknown."
            )
        if found.missing:
            self._notes.append(
                f"{len(found.missing):,} of {found.gold:,} gold documents are not in the knowledge "
                f"base, by {found.by} ({numbered(found.missing)}): they count as not found."
            )
        has_ids = any(question.gold_ids for question in questions)
        if has_ids and found.by != "id":
            self._notes.append(
                "The passages carry no ids (a column id, _id, docid, passage_id or wikipedia_id), "
                "so gold documents are told by their titles, where there are."
            )
        return found

    def _keep_answerable(self) -> None:
        answerable = self.survey.answerable
        if answerable is None:
            raise ValueError(
                "answerable_only must go with questions that have answers and an index that has a "
                "length. Leave it out."
            )
        self.answerable_share = sum(answerable) / self.read
        pairs = zip(self.questions, answerable, strict=True)
        kept = _drawn([question for question, has in pairs if has], self.settings)
        if not kept:
            raise ValueError(
                f"None of the {self.read:,} questions has an answer in the knowledge base. Leave "
                "out answerable_only, or take another knowledge base."
            )
        self.questions = kept
        self.survey.answerable = [True] * len(kept)

    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for another run to be this one."""
        base = dict(self.about.get("knowledge_base") or {})
        return {
            **self.settings.to_dict(),
            "variants": [variant.name for variant in self.variants],
            "depth": self.depth,
            "questions_sha256": self.sha256,
            "model_sha256": self.model_sha256,
            "knowledge_base_sha256": base.get("sha256") or self.survey.sha256,
            "backend": type(self.model).__module__.partition(".")[0],
            **settings_sums(self.model),
        }

    # -- the work ----------------------------------------------------------------------------------

    def parts(self, folder: Path | None) -> list[dict[str, Any]]:
        """What each batch gave, in order; those that an earlier run left are not made again."""
        from tqdm import tqdm

        size = self.settings.batch_size
        work = None
        if folder is not None:
            work = folder / UNFINISHED
            self._begin(work)
        parts = []
        hidden = not self.progress or None  # None: at a terminal alone
        bar = tqdm(total=len(self.questions), desc="questions", unit="", disable=hidden)
        with bar:
            for number, start in enumerate(range(0, len(self.questions), size)):
                batch = self.questions[start : start + size]
                path = None
                if work is not None:
                    path = work / f"{number:06d}.json"
                parts.append(self._part(batch, path, bar))
        return parts

    def _begin(self, work: Path) -> None:
        path = work / WORK_SETTINGS
        # As it will be read again: without tuples.
        current = parse_json(json.dumps(self.fingerprint()), path)
        if path.is_file():
            check_same(read_json(path, advice=_REMOVE), current, work)
        else:
            with atomic_write(path) as draft:
                draft.write_text(json.dumps(current, indent=1), encoding="utf-8")

    def _part(self, batch: Sequence[Question], path: Path | None, bar: Any) -> dict[str, Any]:
        if path is not None and path.is_file():
            part = read_json(path, advice="Remove it: it is made anew.")
            # Time left is told by what is done now.
            bar.total -= len(batch)
            bar.refresh()
            return part
        part = self.answered(batch)
        if path is not None:
            with atomic_write(path) as draft:
                draft.write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")
        bar.update(len(batch))
        return part

    def answered(self, batch: Sequence[Question]) -> dict[str, Any]:
        """Passages, answers and scores of a few questions, as JSON."""
        start = time.monotonic()
        model = self.model
        texts = [question.question for question in batch]
        found: Any
        if self.variants:
            reading = Reading(model._engine, model, texts, n_docs=self.depth)
            found = reading.passages
        else:
            found = find_passages(model._engine, model, texts, self.depth)
        retrieved = [self._retrieved(found, b, question) for b, question in enumerate(batch)]
        seconds = {"retrieval": time.monotonic() - start}
        answers = {}
        likelihoods: dict[tuple[int, str], list[float | None]] = {}
        nearest: dict[int, Reading] = {}
        for variant in self.variants:
            start = time.monotonic()
            if variant.n_docs not in nearest:
                nearest[variant.n_docs] = reading.nearest(variant.n_docs)
            near = nearest[variant.n_docs]
            rows = _answers(near, variant, batch)
            key = variant.n_docs, variant.head
            if key not in likelihoods:
                likelihoods[key] = _log_likelihoods(near, variant.head, batch)
            for row, value in zip(rows, likelihoods[key], strict=True):
                if value is not None:
                    row["scores"]["log_likelihood"] = value
            answers[variant.name] = rows
            seconds[variant.name] = time.monotonic() - start
        return {
            "retrieved": retrieved,
            "answers": answers,
            "passages": _passages(found),
            "seconds": seconds,
        }

    def _retrieved(self, found: Found, b: int, question: Question) -> dict[str, Any]:
        """A question's passages, and how good they are."""
        ids = found.ids[b].tolist()
        columns = found.docs[b]
        hits = [place for place, id in enumerate(ids) if id >= 0]
        scores: dict[str, float] = {}
        rows = [{"id": ids[place], "score": _short(found.scores[b, place])} for place in hits]
        if question.answers:
            holds = [
                stands_in(question.answers, columns["text"][place], patterns=question.patterns)
                for place in hits
            ]
            for row, holds_one in zip(rows, holds, strict=True):
                row["holds_answer"] = holds_one
            missing = [False] * (self.depth - len(holds))
            scores.update(answer_scores(holds + missing))
        by = self.survey.by
        if gold := gold_keys(question, by):
            names = columns["title"]
            if by == "id":
                names = document_ids(columns, len(ids))
            documents = [str(names[place]).strip() for place in hits]
            scores.update(gold_scores(documents, gold, self.depth))
        return {
            "id": question.id,
            "question": question.question,
            "answers": list(question.answers),
            "passages": rows,
            "scores": scores,
        }

    # -- the outcome -------------------------------------------------------------------------------

    def evaluation(self, parts: Sequence[Mapping[str, Any]]) -> Evaluation:
        """All parts together, with their figures."""
        retrieved = [row for part in parts for row in part["retrieved"]]
        answers = {
            variant.name: [row for part in parts for row in part["answers"][variant.name]]
            for variant in self.variants
        }
        passages = {row["id"]: row for part in parts for row in part["passages"]}
        seconds: Counter[str] = Counter()
        for part in parts:
            seconds.update(part["seconds"])
        for variant in self.variants:
            triples = zip(self.questions, answers[variant.name], retrieved, strict=True)
            for question, row, found in triples:
                scores = text_scores(row["text"], question)
                holds = [passage.get("holds_answer") for passage in found["passages"]]
                scores |= mistakes(scores, holds[: variant.n_docs])
                row["scores"] = {**scores, **row["scores"]}
        answerable, seed = self.survey.answerable, self.settings.seed
        variants = {
            variant.name: {
                "settings": vars(variant),
                "figures": figures_of(answers[variant.name], answerable, seed),
                "calibration": calibration_of(answers[variant.name], answerable, seed),
                "confidence": calibration_of(
                    answers[variant.name], answerable, seed, of_confidence=True
                ),
                "seconds": round(seconds[variant.name], 3),
            }
            for variant in self.variants
        }
        retrieval = {
            "n_docs": self.depth,
            "figures": figures_of(retrieved, answerable, seed),
            "seconds": round(seconds["retrieval"], 3),
        }
        return Evaluation(
            self._report(retrieval, variants),
            retrieved,
            answers,
            [passages[id] for id in sorted(passages)],
        )

    def _report(self, retrieval: dict[str, Any], variants: dict[str, Any]) -> dict[str, Any]:
        about = self.about
        asked: dict[str, Any] = {
            "read": self.read,
            "asked": len(self.questions),
            "answerable": None,
        }
        if self.settings.answerable_only:
            asked["answerable_share"] = self.answerable_share
        if self.survey.answerable is not None:
            asked["answerable"] = sum(self.survey.answerable)
        base = {"sha256": self.survey.sha256, **dict(about.get("knowledge_base") or {})}
        notes = list(self._notes)
        if self.variants and not has_libraries():
            notes.append(f"{EXTRA}.")
        without = sum(not question.answers for question in self.questions)
        if without:
            notes.append(f"Questions without answers: {without:,}. They count for retrieval alone.")
        return {
            "format": FORMAT,
            "command": about.get("command"),
            "questions": {"sha256": self.sha256, **dict(about.get("questions") or {}), **asked},
            "model": {
                **dict(about.get("model") or {}),
                "sha256": self.model_sha256,
                "layout_sha256": self.layout_sha256,
                "class": f"{type(self.model).__module__}.{type(self.model).__qualname__}",
            },
            "knowledge_base": base,
            "settings": self.settings.to_dict(),
            "retrieval": retrieval,
            "variants": variants,
            "versions": _versions(),
            "notes": notes,
            "run": parse_json(json.dumps(self.fingerprint()), REPORT),
        }


def _answers(reading: Reading, variant: Variant, batch: Sequence[Question]) -> list[dict[str, Any]]:
    rows = []
    answers = reading.answers(variant.head, **variant.options())
    for question, doc_score, found in zip(batch, reading.best_scores, answers, strict=True):
        row: dict[str, Any] = {
            "id": question.id,
            "question": question.question,
            "answers": list(question.answers),
            "text": "",
            "doc_score": _short(doc_score),
            "log_probability": None,
            "confidence": None,
            "passages": [],
            "scores": {"in_passages": 0.0},
        }
        if found:
            best = found[0]
            row["text"] = best.text
            row["log_probability"] = _short(best.log_probability)
            if best.confidence is not None:
                row["confidence"] = _short(best.confidence)
            row["passages"] = [
                {
                    "id": passage.id,
                    "title": passage.title,
                    "prior": _short(passage.prior),
                    "posterior": _short(passage.posterior),
                }
                for passage in best.passages
            ]
            texts = [passage.text for passage in best.passages]
            row["scores"]["in_passages"] = float(any(stands_in([best.text], t) for t in texts))
        rows.append(row)
    return rows


def _log_likelihoods(reading: Reading, head: str, batch: Sequence[Question]) -> list[float | None]:
    """log of the probability that the model gives to a question's answers together."""
    texts = [
        [] if question.patterns else list(question.answers[:MOST_ANSWERS]) for question in batch
    ]
    if not any(texts):
        return [None] * len(batch)
    found = reading.log_likelihoods(texts, head)
    return [_short(np.logaddexp.reduce(values)) if values else None for values in found]


def _passages(found: Found) -> list[dict[str, Any]]:
    """The passages of a few questions, each once."""
    rows: dict[int, dict[str, Any]] = {}
    for ids, columns in zip(found.ids.tolist(), found.docs, strict=True):
        for place, id in enumerate(ids):
            if id < 0 or id in rows:
                continue
            rows[id] = {"id": id, "title": columns["title"][place], "text": columns["text"][place]}
            for name, kind in (("source", str), ("metadata", dict)):
                values = columns.get(name)
                if values is not None and values[place] and isinstance(values[place], kind):
                    rows[id][name] = values[place]
    return list(rows.values())


def _drawn(questions: list[Question], settings: Settings) -> list[Question]:
    """At most `limit` of the questions, in their order."""
    if settings.limit is None or settings.limit >= len(questions):
        return questions
    rng = np.random.default_rng(settings.seed)
    rows = np.sort(rng.choice(len(questions), settings.limit, replace=False))
    return [questions[row] for row in rows]


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    from rag_core import __version__

    versions = {"dualrag": __version__, "python": platform.python_version()}
    frameworks = [framework for _, framework, _ in BACKENDS.values() if framework in sys.modules]
    for name in ("numpy", "faiss-cpu", *frameworks, "rouge-score", "sacrebleu"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _short(value: float) -> float:
    """Enough digits for probabilities, and files of half the size."""
    return float(f"{float(value):.6g}")
