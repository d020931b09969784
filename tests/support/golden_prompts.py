"""The recorded prompts' passages, questions and tokenizers, and an index of one's own.

Shared by tests of retrieval.
"""

import json
from pathlib import Path

import numpy as np

from rag_core.config.rag import BartConfig, DPRConfig, RagConfig, T5Config

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "prompts.json").read_text("utf-8"))
QUERIES = np.array(GOLDEN["queries"], np.float32)
VECTORS = np.array(GOLDEN["vectors"], np.float32)


def write_tokenizers(folder: Path) -> None:
    """Write the tokenizers "question", "bart" and "t5" into a folder of each one's name."""
    for name, text in GOLDEN["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def config(generator="bart", prefix=None, **values):
    parts = {
        "question_encoder": DPRConfig(),
        "generator": {"bart": BartConfig, "t5": T5Config}[generator](prefix=prefix),
    }
    return RagConfig(**parts, **({"index_name": "custom", "retrieval_vector_size": 8} | values))


class OwnIndex:
    """An index of plain numpy; it finds `hits[b]` documents for question b and none after."""

    def __init__(self, vectors, hits=None, ragged=False):
        self.vectors, self.hits, self.ragged, self.asked, self.ready = (
            vectors,
            hits,
            ragged,
            [],
            False,
        )

    def __len__(self):
        return len(self.vectors)

    def is_initialized(self):
        return self.ready

    def init_index(self):
        self.ready = True

    def get_top_docs(self, question_hidden_states, n_docs=5):
        self.asked.append(len(question_hidden_states))
        scores = question_hidden_states @ self.vectors.T
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :n_docs]
        if not self.ragged:
            ids = np.pad(ids, ((0, 0), (0, n_docs - ids.shape[1])), constant_values=-1)
        for row, query in enumerate(question_hidden_states):
            if self.hits is not None:
                ids[row, int(self.hits[int(query[0])]) :] = -1
        return ids.tolist(), np.where(ids[..., None] < 0, 7.0, self.vectors[ids])

    def get_doc_dicts(self, doc_ids):
        if np.min(doc_ids) < 0:
            raise IndexError("asked for a missing hit")
        return [
            {"title": [f"t{i}" for i in row], "text": [f"x{i}" for i in row]} for row in doc_ids
        ]
