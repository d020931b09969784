"""Training runs as cases: what is learned from, and the settings; numpy only.

Both backends train from the same weights, in the same order and without dropout, and the loss of
every step must be the same, and so must the weights at the end. `parity_cases` makes cases of them.
Letters: D vector size, P passages.
"""

from typing import Any

import numpy as np

from rag_core.config.rag import RagConfig
from rag_core.parity.inputs import integers, seeded_noise
from rag_core.training.data import Example

PASSAGES = 24
WORDS = [f"w{number}" for number in range(70)]
_QUESTIONS = 32

# Every setting off what would hide it: decay that can be seen, gradients that are clipped in some
# steps and not in all.
SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "learning_rate": 5e-4,
    "question_encoder_learning_rate": 3e-4,
    "warmup_steps": 5,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "label_smoothing": 0.05,
    "seed": 3,
}
# name -> structure, head, settings
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "token": ("bart", "token", {}),
    "sequence": ("t5_gated", "sequence", {"batch_size": 3, "accumulation": 2}),
    "token_t5": ("t5", "token", {"beta2": 0.999, "max_grad_norm": 0.5}),
    "sequence_projection": ("bart_scaled", "sequence", {"question_encoder": "projection"}),
    "emdr2": ("bart", "token", {"retriever_loss": "emdr2", "retriever_loss_weight": 0.5}),
    "pdist": ("bart", "sequence", {"retriever_loss": "pdist", "distillation_temperature": 2.0}),
    "pdist_alone": ("t5", "token", {"retriever_loss": "pdist", "answer_loss_weight": 0.0}),
    "generator_frozen": ("bart", "token", {"generator": "frozen"}),
    "contrastive": ("bart", "token", {"retriever_loss": "contrastive", "hard_negatives": 1}),
    "contrastive_alone": (
        "bart",
        "token",
        {"retriever_loss": "contrastive", "answer_loss_weight": 0.0, "context_encoder": "all"},
    ),
    "context_encoder": ("bart", "sequence", {"context_encoder": "all"}),
}
# Of these a few steps are in `make test`: one of each head.
QUICK = ("token", "sequence")


def texts(key: str, rows: int, length: int) -> list[str]:
    """Texts of so many words, drawn by a key."""
    drawn = integers(f"words:{key}", 0, len(WORDS), (rows, length))
    return [" ".join(WORDS[place] for place in row) for row in drawn]


def examples(key: str) -> list[Example]:
    """Questions of four words with answers of one to three, and a passage each that is theirs."""
    questions, answers = (
        texts(f"{key}:question", _QUESTIONS, 4),
        texts(f"{key}:answer", _QUESTIONS, 3),
    )
    return [
        Example(
            question,
            (" ".join(answer.split()[: 1 + number % 3]),),
            positive=7 * number % PASSAGES,
        )
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]


class DrawnIndex:
    """An index of passages and vectors that are drawn by a key; exact search.

    Args:
        config: of the model that asks it.
        key: what is drawn by.
    """

    def __init__(self, config: RagConfig, key: str) -> None:
        encoder = config.question_encoder
        size = getattr(encoder, "projection_dim", 0) or encoder.hidden_size
        self.vectors = (0.35 * seeded_noise(f"vectors:{key}", (PASSAGES, size))).astype(np.float32)
        self.titles, self.texts = (
            texts(f"{key}:title", PASSAGES, 1),
            texts(f"{key}:text", PASSAGES, 6),
        )

    def __len__(self) -> int:
        """P."""
        return PASSAGES

    def vectors_of(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of rows."""
        return self.vectors[rows]

    def is_initialized(self) -> bool:
        """It is, always."""
        return True

    def init_index(self) -> None:
        """Nothing to load."""

    def get_top_docs(
        self, question_hidden_states: np.ndarray, n_docs: int = 5
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best by inner product, (B, N), and their vectors (B, N, D)."""
        scores = question_hidden_states.astype(np.float64) @ self.vectors.T.astype(np.float64)
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :n_docs]
        return ids, self.vectors[ids]

    def get_doc_dicts(self, doc_ids: np.ndarray) -> list[dict[str, Any]]:
        """Titles and texts."""
        return [
            {
                "title": [self.titles[place] for place in row],
                "text": [self.texts[place] for place in row],
            }
            for row in doc_ids
        ]
