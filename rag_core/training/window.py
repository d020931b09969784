"""What is watched while a run learns: the metrics between two log lines, and signs of retrieval
collapse.

Letters: B questions, N documents a question, C passages of a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rag_core.metrics import distinct_document_ratio, mean_posterior_entropy
from rag_core.training.faults import NotFinite
from rag_core.training.report import TrainingReport

# Of fewer questions it can't be told whether all of them find the same documents.
_GROUP = 8
# One group may ask alike by chance.
_IN_A_ROW = 3
# Collapsed: few documents for all questions, and much fewer than at the start.
_SHARE_LEFT = 0.5
_FEW = 0.25
# Sums that came later than checkpoints that may still be gone on from.
_LATER = {"retriever_nats", "questions", "found", "compared", "since", "distinct", "ids"}
# Sums of a forward pass beside its loss.
_COUNTED = ("retriever_nats", "questions", "found", "compared")


class MetricsWindow:
    """Sums between two log lines.

    Attributes:
        nll: sum of the loss, in nats.
        tokens: how many tokens it is a sum over.
        retriever_nats: sum of the retriever's loss.
        questions: how many it is a sum over.
        found: of those that were compared with passages, how many scored their own highest.
        compared: how many these are.
        prior: of each forward pass, the mean entropy of p(z|x).
        posteriors: of those passes that were asked, the mean entropy of p(z|x, y).
        distinct: of each forward pass that searched, the share of different documents.
        ids: of the passes of the last step, the documents found (B, N); who runs the steps empties
            it before each.
        since: wall time of the run at the last log line.
    """

    def __init__(self, since: float = 0.0) -> None:
        self.since = since
        self.nll = 0.0
        self.tokens = 0
        self.retriever_nats = 0.0
        self.questions = 0
        self.found = 0
        self.compared = 0
        self.prior: list[float] = []
        self.posteriors: list[float] = []
        self.distinct: list[float] = []
        self.ids: list[np.ndarray] = []

    def add(self, nll: float, doc_scores: np.ndarray | None, doc_ids: np.ndarray | None) -> None:
        """Count a forward pass.

        Args:
            nll: its loss, summed over its tokens.
            doc_scores: (B, N); None where no document was read.
            doc_ids: (B, N); None where nothing was retrieved.

        Raises:
            NotFinite: the loss is no number.
        """
        if not math.isfinite(nll):
            raise NotFinite(f"the loss became {nll}")
        self.nll += nll
        if doc_scores is not None:
            self.prior.append(mean_posterior_entropy(doc_scores))
        if doc_ids is not None:
            self._see(doc_ids)

    def add_retriever(self, losses: np.ndarray) -> None:
        """Count the retriever's losses (B,) of a forward pass, in nats."""
        self.retriever_nats += float(losses.sum())
        self.questions += len(losses)

    def add_comparison(self, scores: np.ndarray, positive: np.ndarray, masked: np.ndarray) -> None:
        """Count which questions scored their own passage highest.

        Args:
            scores: (B, C).
            positive: (B,), their own.
            masked: (B, C) bool, True = not compared.
        """
        best = np.where(masked, -np.inf, scores).argmax(1)
        self.found += int((best == positive).sum())
        self.compared += len(positive)

    def join(self, parts: Sequence[MetricsWindow]) -> None:
        """Count a forward pass.

        Args:
            parts: what each process counted of it, of equally many questions.

        Raises:
            NotFinite: the loss is no number; its `part` are the places among `parts` where it
                happened.
        """
        nll = sum(part.nll for part in parts)
        if not math.isfinite(nll):
            bad = [place for place, part in enumerate(parts) if not math.isfinite(part.nll)]
            fault = NotFinite(f"the loss became {nll}")
            if bad:
                fault.part = slice(bad[0], bad[-1] + 1)
            raise fault
        self.nll += nll
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + sum(getattr(part, name) for part in parts))
        for name in ("prior", "posteriors"):
            means = [mean for part in parts for mean in getattr(part, name)]
            if means:
                getattr(self, name).append(_mean(means))
        ids = [rows for part in parts for rows in part.ids]
        if ids:
            self._see(np.concatenate(ids))

    def _see(self, ids: np.ndarray) -> None:
        self.ids.append(ids)
        self.distinct.append(distinct_document_ratio(ids))

    def line(self) -> dict[str, float]:
        """The means; nothing where nothing was added."""
        if not self.tokens:
            return {}
        line = {"loss": self.nll / max(1, self.tokens)}
        if self.prior:
            line["prior_entropy"] = _mean(self.prior)
        if self.questions:
            line["retriever_loss"] = self.retriever_nats / self.questions
        if self.compared:
            line["in_batch_accuracy"] = self.found / self.compared
        if self.posteriors:
            line["posterior_entropy"] = _mean(self.posteriors)
        if self.distinct:
            line["distinct_documents"] = _mean(self.distinct)
        return line

    def copy(self) -> MetricsWindow:
        """As it is now, whatever is added to this one."""
        window = MetricsWindow()
        for name, value in vars(self).items():
            setattr(window, name, copy.copy(value))
        return window

    def sums(self) -> dict[str, Any]:
        """The sums as JSON holds them, without the ids: a window may be as long as a run."""
        return {name: value for name, value in vars(self).items() if name != "ids"}

    def shared(self) -> dict[str, Any]:
        """What another process joins: the sums, and the ids."""
        return {**self.sums(), "ids": [ids.tolist() for ids in self.ids]}

    @classmethod
    def from_sums(cls, sums: dict[str, Any]) -> MetricsWindow:
        """The inverse of `sums` and of `shared`; what checkpoints did not hold once is 0.

        Raises:
            TypeError, ValueError: other names, or no numbers.
        """
        window = cls()
        if set(sums) | _LATER != set(vars(window)):
            raise TypeError("no such entries")
        for name, value in sums.items():
            if name == "ids":
                value = [np.asarray(ids, np.int64) for ids in value]
            elif not isinstance(value, int | float | list):
                raise TypeError("sums that are no numbers")
            setattr(window, name, value)
        if "distinct" not in sums:  # checkpoints held the ids once
            window.distinct = [distinct_document_ratio(ids) for ids in window.ids]
            window.ids = []
        return window


class CollapseWatch:
    """Watches how many different documents the questions of a run find (paper, appendix on
    retrieval collapse).

    Questions are taken in groups of eight or more. Where three groups in a row find at most a
    quarter of different documents, and at most half as many as the first group of the run did,
    retrieval has collapsed: a small knowledge base alone does not look like that.

    Args:
        report: keeps what the first group found, so that a resumed run sees what an uninterrupted
            one does.

    Attributes:
        ratio: share of different documents in the last group.
        low: groups in a row, the last one among them, in which it was low.
        waiting: documents (B, N) of questions that are not a group yet.
    """

    def __init__(self, report: TrainingReport) -> None:
        self.report = report
        self.waiting: list[np.ndarray] = []
        self.ratio = 1.0
        self.low = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the report, as JSON."""
        waiting = [ids.tolist() for ids in self.waiting]
        return {"ratio": self.ratio, "low": self.low, "waiting": waiting}

    def load_state(self, state: dict[str, Any] | None) -> None:
        """The inverse of `state`; checkpoints without it begin with a group of their own.

        Raises:
            TypeError, ValueError, KeyError: no numbers where they belong.
        """
        if state is None:
            return
        self.ratio, self.low = float(state["ratio"]), int(state["low"])
        self.waiting = [np.asarray(ids, np.int64) for ids in state["waiting"]]

    def see(self, doc_ids: Sequence[np.ndarray]) -> bool:
        """Takes the documents (B, N) of some forward passes; whether retrieval has collapsed."""
        self.waiting += doc_ids
        if sum(len(ids) for ids in self.waiting) < _GROUP:
            return False
        ratio = distinct_document_ratio(np.concatenate(self.waiting))
        self.waiting = []
        self.ratio = ratio
        if self.report.distinct_at_start is None:
            self.report.distinct_at_start = ratio
        if ratio <= _FEW and ratio <= _SHARE_LEFT * self.report.distinct_at_start:
            self.low += 1
        else:
            self.low = 0
        return self.low >= _IN_A_ROW


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
