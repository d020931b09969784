"""BM25: passages found by the words that they share with a question.

Letters: B questions, N documents a question, R passages, D vector size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.arguments import checked_n_docs
from rag_core.hub import DamagedFileError, atomic_folder, reading
from rag_core.retrieval.filtered import best_places
from rag_core.retrieval.index import BM25_FOLDER, INDEX_PATTERNS, PASSAGES_FOLDER
from rag_core.retrieval.own_scores import carrying, check_whole, checked_texts
from rag_core.retrieval.passage_files import write_passages
from rag_core.retrieval.passage_table import map_passages
from rag_core.retrieval.passage_texts import PassageTexts

if TYPE_CHECKING:
    from rag_core.retrieval.where import Where

EXTRA = "BM25 needs the library bm25s:  pip install 'dualrag[bm25]'"
# Texts of passages that are in memory at a time, beside their words.
_ROWS = 1024


def build_bm25(texts: Iterable[str]) -> Any:
    """The `bm25s.BM25` of R texts, in their order.

    Raises:
        ImportError: bm25s is not installed.
        ValueError: no text has a word.
    """
    library = bm25_library()
    # What a question shares with every passage says nothing; bm25s' English list, as in its own
    # examples.
    tokens = library.tokenize(texts, stopwords="en", show_progress=False)
    if not tokens.vocab:
        raise ValueError("the passages must hold a word of two letters or more for BM25.")
    bm25 = library.BM25()
    bm25.index(tokens, show_progress=False)
    return bm25


def write_bm25(bm25: Any, folder: Path) -> None:
    """Write arrays and words into a folder, as bm25s lays it out; nothing is pickled."""
    bm25.save(folder, show_progress=False)


def read_bm25(folder: Path) -> Any:
    """The `bm25s.BM25` of a folder, its arrays memory-mapped.

    Raises:
        ImportError: bm25s is not installed.
        FileNotFoundError, DamagedFileError: files are missing or damaged.
    """
    library = bm25_library()
    with reading(folder, "is no index of BM25", "Build it again."):
        bm25 = library.BM25.load(
            folder, mmap=True, backend="numpy", csc_backend="numpy", show_progress=False
        )
        parts = [bm25.scores[name] for name in ("data", "indices", "indptr")]
        if not all(part.ndim == 1 for part in parts) or len(parts[0]) != len(parts[1]):
            raise ValueError(f"its arrays are of the shapes {[part.shape for part in parts]}")
        places = bm25.vocab_dict.values()
        if not all(type(place) is int and 0 <= place <= len(parts[2]) for place in places):
            raise ValueError("its words lead out of its arrays")
    return bm25


def bm25_library() -> Any:
    """The module bm25s.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import bm25s
    except ImportError:
        raise ImportError(EXTRA) from None
    return bm25s


class Bm25Index:
    """Passages by the words of questions (BM25 as Lucene has it, by the library bm25s); an `Index`.

    Words are runs of two or more letters and digits, in lower case, without the commonest English
    ones. A passage is its title and its text. The score of a passage without a word of the question
    is 0; such come last, and equal scores go by row number.

    The scores are the logits of p(z|x), as in section 4.5 of the paper: the vectors carry them (see
    `rag_core.retrieval.own_scores`). Vectors of questions may have any size.

    Args:
        passages: has the passages: an `Index` with a length, or a `PassageTexts`.
        bm25: the `bm25s.BM25` of their titles and texts, in the order of the rows; None makes it,
            in memory.

    Raises:
        ImportError: bm25s is not installed.
        ValueError: the two do not fit each other, or `passages` have no length.
    """

    needs_text = True
    needs_vectors = False
    own_scores = True

    def __init__(self, passages: Any, bm25: Any = None) -> None:
        check_whole("passages", passages)
        if bm25 is None:
            bm25 = build_bm25(_texts(passages))
        if bm25.scores["num_docs"] != len(passages):
            raise ValueError(
                f"BM25 holds {bm25.scores['num_docs']} texts, the passages are {len(passages)} "
                "rows; they must come from the same build."
            )
        self.passages = passages
        self._bm25 = bm25
        self._rows: np.ndarray | None = None  # where some alone are searched

    @classmethod
    def from_files(cls, passages_path: str | Path, bm25_path: str | Path) -> Bm25Index:
        """Open what `save`, or `dualrag index --index bm25`, wrote; memory-mapped.

        Args:
            passages_path: folder written by ``dataset.save_to_disk``.
            bm25_path: the folder of BM25.

        Raises:
            OSError: files are missing or damaged.
            ImportError: bm25s is not installed.
        """
        passages = PassageTexts(map_passages(passages_path), "embeddings")
        return cls(passages, read_bm25(Path(bm25_path)))

    def __len__(self) -> int:
        return len(self.passages)

    def __repr__(self) -> str:
        words = len(self._bm25.vocab_dict)
        return f"{type(self).__name__}({len(self):,} passages, {words:,} words)"

    @property
    def dataset(self) -> Any:
        """The passages (`datasets.Dataset`)."""
        return self.passages.dataset

    @property
    def rows(self) -> np.ndarray | None:
        """The rows (M,) that are searched, in order; None where all are."""
        return self._rows

    def is_initialized(self) -> bool:
        """True: the files are open."""
        return True

    def init_index(self) -> None:
        """Nothing is left to open."""

    def where(self, where: Where) -> Bm25Index:
        """The passages that conditions hold for, as an index of its own; see `FaissIndex.where`.

        Of a part those that its own conditions hold for, too.

        Raises:
            TypeError, ValueError: as there, or `passages` is an index that knows no conditions.
        """
        if not hasattr(self.passages, "matching"):
            raise ValueError(
                "where must go with passages of a knowledge base or a data set, got BM25 over "
                f"{type(self.passages).__name__}, which has no method matching. Leave it out."
            )
        rows = self.passages.matching(where)
        if self._rows is not None:
            rows = np.intersect1d(rows, self._rows)
            if not len(rows):
                raise ValueError(
                    f"where must hold for a passage of this part, got {where!r:.80}, which holds "
                    "for others alone. Start from the whole index."
                )
        part = copy.copy(self)
        part._rows = rows
        return part

    def get_top_docs(
        self,
        question_hidden_states: np.ndarray,
        n_docs: int = 5,
        question_text: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search by words; see `Index.get_top_docs`.

        Args:
            question_hidden_states: (B, D), as long as they are not zero.
            n_docs: N.
            question_text: B questions.

        Raises:
            ValueError: no texts.
            OSError: the index is damaged.
        """
        n_docs = checked_n_docs(n_docs, 5)
        texts = checked_texts(question_text, len(question_hidden_states))
        rows = np.full((len(texts), n_docs), -1, np.int64)
        scores = np.zeros((len(texts), n_docs), np.float32)
        for number, text in enumerate(texts):
            every = self._scores(text)  # (R,)
            if self._rows is not None:
                every = every[self._rows]
            best = best_places(every, n_docs)
            scores[number, : len(best)] = every[best]
            if self._rows is not None:
                best = self._rows[best]
            rows[number, : len(best)] = best
        return rows, carrying(scores, question_hidden_states)  # (B, N), (B, N, D)

    def _scores(self, question: str) -> np.ndarray:
        """BM25 of all passages, (R,) float32."""
        # Words that every text has are not in the index, so none have to be left out here.
        (words,) = bm25_library().tokenize(
            [question], stopwords=None, return_ids=False, show_progress=False
        )
        ids = self._bm25.get_tokens_ids(words)
        try:
            return self._bm25.get_scores_from_ids(ids)
        except (IndexError, ValueError) as error:
            raise DamagedFileError(
                f"the index of BM25 is damaged ({error!s:.120}). Build it again."
            ) from error

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Return B dictionaries of lists; see `FaissIndex.get_doc_dicts`."""
        return self.passages.get_doc_dicts(doc_ids)

    def save(self, folder: str | Path) -> dict[str, str]:
        """Write passages and BM25, all or nothing.

        Args:
            folder: made if missing.

        Returns:
            The config entries that open them again, relative to `folder`: index_name, index_path
            and passages_path.

        Raises:
            ValueError: it is a part that `where` gave: the folder would come back as the whole; or
                `passages` is an index that has no data set.
        """
        if not hasattr(self.passages, "dataset"):
            raise ValueError(
                "index must have passages of a knowledge base or a data set to be saved, got BM25 "
                f"over {type(self.passages).__name__}. Save without it (retriever.index = that "
                "index), and build BM25 again for the index= of from_pretrained."
            )
        if self._rows is not None:
            raise ValueError(
                "index must be whole to be saved, got the part that conditions hold for. Save the "
                "whole one, and call where(...) again once it is opened."
            )
        with atomic_folder(folder, stale=INDEX_PATTERNS) as draft:
            write_passages(self.dataset, draft / PASSAGES_FOLDER)
            write_bm25(self._bm25, draft / BM25_FOLDER)
        return {
            "index_name": "bm25",
            "index_path": BM25_FOLDER,
            "passages_path": PASSAGES_FOLDER,
        }


def passage_text(title: str | None, text: str | None) -> str:
    """A passage as one text."""
    return f"{title or ''} {text or ''}"


def _texts(passages: Any) -> Iterable[str]:
    for start in range(0, len(passages), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(passages)))
        (columns,) = passages.get_doc_dicts(rows[None])
        for title, text in zip(columns["title"], columns["text"], strict=True):
            yield passage_text(title, text)
