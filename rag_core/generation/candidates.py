"""RAG-Sequence's candidates: what the searches of a question's documents found, made distinct and
ranked.

Letters: B questions, W = N * K sequences found for a question, C most candidates of a question, L
their longest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rag_core.generation.beam import SearchResult


@dataclass(frozen=True)
class Candidates:
    """The candidates of B questions.

    Attributes:
        tokens: (B, C, L) int64, right-padded; rows beyond a question's last candidate are pads.
        exists: (B, C) bool, False in those rows.
        groups: (B, W) number of the candidate that each found sequence equals.
        first: (B, C) which found sequence each candidate is taken from.
        pad_token_id: the filler.
    """

    tokens: np.ndarray
    exists: np.ndarray
    groups: np.ndarray
    first: np.ndarray
    pad_token_id: int

    def pooled(self, log_weights: np.ndarray) -> np.ndarray:
        """Log of the summed weights of the sequences equal to each candidate: (B, W) -> (B, C)."""
        # (B, C, W)
        same = (
            self.groups[:, None, :]
            == np.take_along_axis(self.groups, self.first, axis=1)[:, :, None]
        )
        return np.logaddexp.reduce(np.where(same, log_weights[:, None, :], -np.inf), axis=2)

    def best(self, scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The `count` best candidates of each question, of equals the earlier one first.

        Args:
            scores: (B, C).
            count: how many; where a question has fewer, rows of pads with score -inf follow
                (compatibility D11).

        Returns:
            (B * count, L) tokens and (B * count,) scores.
        """
        questions, _, length = self.tokens.shape
        tokens = np.full((questions, count, length), self.pad_token_id, dtype=np.int64)
        kept = np.full((questions, count), -np.inf, dtype=scores.dtype)
        for b in range(questions):
            real = np.flatnonzero(self.exists[b])
            order = real[np.argsort(-scores[b, real], kind="stable")][:count]
            tokens[b, : len(order)], kept[b, : len(order)] = self.tokens[b, order], scores[b, order]
        return tokens.reshape(-1, length), kept.reshape(-1)


def collect_candidates(
    finished: SearchResult, per_question: int, *, pad_token_id: int, do_deduplication: bool
) -> Candidates:
    """The candidates of each question, document by document and beam by beam.

    Two are the same when their ids are, padding included; the first one's place counts
    (compatibility Q22).

    Args:
        finished: what the searches handed back, questions one after another.
        per_question: W.
        pad_token_id: the generator's, which fills what is beyond a question's own longest sequence.
        do_deduplication: whether equal sequences become one candidate.
    """
    found = finished.sequences.reshape(-1, per_question, finished.sequences.shape[1])
    lengths = finished.lengths.reshape(-1, per_question)
    groups = np.zeros(lengths.shape, dtype=np.int64)
    kept: list[list[int]] = []
    for b, rows in enumerate(found):
        places: dict[bytes, int] = {}
        groups[b] = [places.setdefault(row.tobytes(), len(places)) for row in rows]
        firsts = np.unique(groups[b], return_index=True)[1]
        kept.append(firsts.tolist() if do_deduplication else list(range(per_question)))
    most = max(len(rows) for rows in kept)
    tokens = np.full((len(found), most, int(lengths.max())), pad_token_id, dtype=np.int64)
    exists = np.zeros((len(found), most), dtype=bool)
    first = np.zeros((len(found), most), dtype=np.int64)
    for b, chosen in enumerate(kept):
        width, count = int(lengths[b].max()), len(chosen)
        tokens[b, :count, :width] = found[b, chosen, :width]
        exists[b, :count], first[b, :count] = True, chosen
    return Candidates(tokens, exists, groups, first, pad_token_id)


@dataclass(frozen=True)
class PrefixTree:
    """The beginnings of some sequences, each once, shorter ones first. P beginnings of C sequences.

    Attributes:
        tokens: (P,) the token that each ends with.
        positions: (P,) that token's place in the sequence.
        continues: (P, P) bool, whether the first is the second or continues it.
        nodes: (C, L) number of the beginning that ends at each place of each sequence; 0 beyond its
            length.
    """

    tokens: np.ndarray
    positions: np.ndarray
    continues: np.ndarray
    nodes: np.ndarray


def prefix_tree(tokens: np.ndarray, lengths: np.ndarray) -> PrefixTree:
    """The distinct beginnings of sequences (C, L) of `lengths` (C,), 1 or more each."""
    nodes = np.zeros(tokens.shape, dtype=np.int64)
    parents = np.full(len(tokens), -1)
    ends: list[np.ndarray] = []
    for place in range(int(lengths.max())):
        live = np.flatnonzero(lengths > place)
        pairs = np.stack([parents[live], tokens[live, place]], axis=1)
        distinct, numbers = np.unique(pairs, axis=0, return_inverse=True)
        parents[live] = nodes[live, place] = sum(map(len, ends)) + numbers.reshape(-1)
        ends.append(distinct[:, 1])
    count = sum(map(len, ends))
    continues = np.zeros((count, count), dtype=bool)
    for row, length in zip(nodes, lengths, strict=True):
        path = row[:length]
        continues[path[:, None], path] |= np.tri(length, dtype=bool)
    positions = np.repeat(np.arange(len(ends)), [len(each) for each in ends])
    return PrefixTree(np.concatenate(ends), positions, continues, nodes)
