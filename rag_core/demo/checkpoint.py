"""The demo's checkpoint: shipped are the parts that training changed, in float16, and what it
changed in the stock encoder, matrices as products of thin ones. The stock encoder is added here.
"""

from __future__ import annotations

import hashlib
import shutil
from functools import cache
from pathlib import Path

import numpy as np

from rag_core.checkpoint import read_weights, write_checkpoint
from rag_core.config import RagConfig
from rag_core.hub import atomic_folder
from rag_core.tokenization import GENERATOR_FOLDER, QUESTION_FOLDER, Tokenizer

SHIPPED = Path(__file__).parent / "model"
CONFIG, WEIGHTS, MARK = "config.json", "model.safetensors", "made_from.txt"
# The head that answers better (see the card); both read the folder.
HEAD = "RagSequenceForGeneration"
_TRAINED = ("rag.generator.", "rag.question_encoder.encode_proj.")
_ENCODER = "rag.question_encoder."
# Changes of the encoder: added to a weight, or the two factors of what is added.
_ADDED, _LEFT, _RIGHT = "added.", "left.", "right."
_RANK = 16


def package_model(tuned: str | Path, encoder: str | Path, folder: str | Path = SHIPPED) -> None:
    """Write what ships: config, generator tokenizer, generator and projection, and the changes of
    the question encoder but for its embeddings, which are left as they were.

    Args:
        tuned: RAG-Token folder whose question encoder was the stock encoder with a projection.
        encoder: folder of the stock encoder.
        folder: where to; other files in it stay.
    """
    from safetensors.numpy import save_file

    weights = read_weights(tuned)
    parts = {
        name: np.asarray(weights[name]).astype(np.float16)
        for name in weights
        if name.startswith(_TRAINED)
    }
    stock = read_weights(encoder)
    for name in stock:
        if name.startswith("encoder."):
            change = np.asarray(weights[_ENCODER + name]) - np.asarray(stock[name])
            parts |= _change_parts(name, change)
    with atomic_folder(folder) as draft:
        save_file(parts, draft / WEIGHTS, metadata={"format": "pt"})
        shutil.copy(Path(tuned) / CONFIG, draft / CONFIG)
        Tokenizer.from_pretrained(Path(tuned) / GENERATOR_FOLDER).save_pretrained(
            draft / GENERATOR_FOLDER
        )


def _change_parts(name: str, change: np.ndarray) -> dict[str, np.ndarray]:
    """A change as it ships: of a matrix the largest singular values; nothing where there is none."""
    if not change.any():
        return {}
    if change.ndim < 2:
        return {_ADDED + name: change.astype(np.float16)}
    left, sizes, right = np.linalg.svd(change, full_matrices=False)
    roots = np.sqrt(sizes[:_RANK])
    return {
        _LEFT + name: (left[:, :_RANK] * roots).astype(np.float16),
        _RIGHT + name: (roots[:, None] * right[:_RANK]).astype(np.float16),
    }


def assemble_model(encoder: str | Path, folder: str | Path, shipped: str | Path = SHIPPED) -> Path:
    """A RAG folder that any `from_pretrained` reads, out of the shipped parts and the stock
    encoder.

    Args:
        encoder: folder of the stock encoder.
        folder: where to; kept as it is if it was made from the same parts.
        shipped: folder of the shipped parts.

    Raises:
        FileNotFoundError: this installation lacks the shipped parts.
    """
    folder = Path(folder)
    shipped = Path(shipped)
    encoder = Path(encoder)
    check_shipped(shipped)
    made_from = parts_digest(shipped, encoder)
    mark = folder / MARK
    if mark.is_file() and mark.read_text() == made_from:
        return folder
    config = RagConfig.from_pretrained(shipped)
    trained = read_weights(shipped)
    stock = read_weights(encoder)
    parts = {name: np.asarray(trained[name]).astype(np.float32) for name in trained}
    weights = {name: part for name, part in parts.items() if name.startswith(_TRAINED)}
    for name in stock:
        if name.startswith(("embeddings.", "encoder.")) and not name.endswith("position_ids"):
            weight = np.asarray(stock[name]).astype(np.float32)
            if _LEFT + name in parts:
                weight = weight + parts[_LEFT + name] @ parts[_RIGHT + name]
            elif _ADDED + name in parts:
                weight = weight + parts[_ADDED + name]
            weights[_ENCODER + name] = weight
    with atomic_folder(folder) as draft:
        write_checkpoint(draft, weights, config, architecture=HEAD)
        Tokenizer.from_pretrained(encoder).save_pretrained(draft / QUESTION_FOLDER)
        Tokenizer.from_pretrained(shipped / GENERATOR_FOLDER).save_pretrained(
            draft / GENERATOR_FOLDER
        )
        (draft / MARK).write_text(made_from)
    return folder


def parts_digest(shipped: Path, encoder: Path) -> str:
    """What tells the parts of a model from others."""
    files = (shipped / CONFIG, shipped / WEIGHTS, encoder / CONFIG)
    return _digest(files, tuple(file.stat().st_mtime_ns for file in files))


@cache
def _digest(files: tuple[Path, ...], times: tuple[int, ...]) -> str:
    """Of the files as they are at these times: a loading asks for each of its files."""
    digest = hashlib.sha256(HEAD.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def check_shipped(shipped: Path = SHIPPED) -> None:
    """Refuse an installation without the shipped parts.

    Raises:
        FileNotFoundError: they are missing.
    """
    if not (shipped / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{shipped} holds no model. Train it with  make demo-model  or name one with --model."
        )
