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
        groups = np.take_along_axis(self.groups, self.first, axis=1)  # (B, C)
        same = self.groups[:, None, :] == groups[:, :, None]  # (B, C, W)
        weights = np.where(same, log_weights[:, None, :], -np.inf)
        return np.logaddexp.reduce(weights, axis=2)

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
        best_scores = np.full((questions, count), -np.inf, dtype=scores.dtype)
        for b in range(questions):
            real = np.flatnonzero(self.exists[b])
            best = real[np.argsort(-scores[b, real], kind="stable")][:count]
            tokens[b, : len(best)] = self.tokens[b, best]
            best_scores[b, : len(best)] = scores[b, best]
        return tokens.reshape(-1, length), best_scores.reshape(-1)


def collect_candidates(
    result: SearchResult, per_question: int, *, pad_token_id: int, do_deduplication: bool
) -> Candidates:
    """The candidates of each question, document by document and beam by beam.

    Two are the same when their ids are, padding included; the first one's place counts
    (compatibility Q22).

    Args:
        result: what the searches handed back, questions one after another.
        per_question: W.
        pad_token_id: the generator's, which fills what is beyond a question's own longest sequence.
        do_deduplication: whether equal sequences become one candidate.
    """
    sequences = result.sequences.reshape(-1, per_question, result.sequences.shape[1])
    lengths = result.lengths.reshape(-1, per_question)
    groups = np.zeros(lengths.shape, dtype=np.int64)
    candidates: list[np.ndarray] = []
    for b, rows in enumerate(sequences):
        group_of: dict[bytes, int] = {}
        groups[b] = [group_of.setdefault(row.tobytes(), len(group_of)) for row in rows]
        _, firsts = np.unique(groups[b], return_index=True)
        candidates.append(firsts if do_deduplication else np.arange(per_question))
    questions, most = len(sequences), max(map(len, candidates))
    tokens = np.full((questions, most, int(lengths.max())), pad_token_id, dtype=np.int64)
    exists = np.zeros((questions, most), dtype=bool)
    first = np.zeros((questions, most), dtype=np.int64)
    for b, chosen in enumerate(candidates):
        # Beyond a question's own longest sequence the searches' filler gives way to the generator's.
        width, count = int(lengths[b].max()), len(chosen)
        tokens[b, :count, :width] = sequences[b, chosen, :width]
        exists[b, :count] = True
        first[b, :count] = chosen
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
    count = 0
    # Place by place, so that a beginning is known by the one it continues and its last token.
    for place in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        pairs = np.stack([parents[longer], tokens[longer, place]], axis=1)
        distinct, numbers = np.unique(pairs, axis=0, return_inverse=True)
        parents[longer] = count + numbers.reshape(-1)
        nodes[longer, place] = parents[longer]
        ends.append(distinct[:, 1])
        count += len(distinct)
    continues = np.zeros((count, count), dtype=bool)
    for row, length in zip(nodes, lengths, strict=True):
        path = row[:length]
        continues[path[:, None], path] |= np.tri(length, dtype=bool)
    positions = np.repeat(np.arange(len(ends)), [len(each) for each in ends])
    return PrefixTree(np.concatenate(ends), positions, continues, nodes)
