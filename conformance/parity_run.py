"""Runs the cases on one backend and writes what every stage gave."""

import importlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conformance.generation_cases import allowed_tokens
from conformance.parity_cases import config, digest, structure, weights
from conformance.training_cases import DrawnIndex
from conformance.training_run import train_case
from rag_core.backends import load_backend
from rag_core.checkpoint.folder import write_checkpoint
from rag_core.parity.inputs import DrawnRetriever, contexts, questions, targets
from rag_core.parity.trace import fingerprint, trace
from rag_core.parity.trace_files import TraceWriter

CLASSES = {"token": "RagTokenForGeneration", "sequence": "RagSequenceForGeneration"}


class Models:
    """The structures' models on one backend, refilled for each case; equal networks are one, so
    that graphs are, too.

    Args:
        backend: "torch" or "tf".
        dtype: "float64" or "float32".
    """

    def __init__(self, backend: str, dtype: str) -> None:
        self.engine = load_backend(backend)
        self.dtype = dtype
        self.tracing = importlib.import_module(f"{self.engine.__name__}.tracing")
        self._parts: dict[str, Any] = {}
        self._tracers: dict[tuple[str, str], Any] = {}

    def tracer(self, name: str, head: str) -> Any:
        """A tracer around the structure's head."""
        if (name, head) not in self._tracers:
            self._build(name)
        return self._tracers[name, head]

    def _build(self, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(folder, weights(name, 1), config(name), architecture=CLASSES["token"])
            loaded = getattr(self.engine, CLASSES["token"]).from_pretrained(
                folder, dtype=self.dtype
            )
        parts = {}
        for part, fields in structure(name).items():
            network = getattr(loaded.rag, part)
            parts[part] = self._parts.setdefault(f"{part}: {fields}", network)
        for head, kind in CLASSES.items():
            model = getattr(self.engine, kind)(config(name), **parts)
            self._tracers[name, head] = self.tracing.Tracer(model)


def inputs(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Questions or contexts of a case, with what is wrong in them; the vectors that a training
    run's questions find.
    """
    rag = config(case["structure"])
    key = f"{case['name']}:{case['seed']}"
    if "training" in case:
        return {"vectors": DrawnIndex(rag, f"{case['structure']}:{case['seed']}").vectors}
    if case["source"] == "retrieved":
        return questions(rag, key, case["batch"])
    drawn = contexts(rag, key, case["batch"], case["n_docs"])
    if case["fault"] == "masked_row":
        drawn["context_attention_mask"][-1] = 0
    elif case["fault"] == "missing_document":
        drawn["doc_scores"][:, -1] = -np.inf
    return drawn


def run_case(models: Models, case: dict[str, Any], **recorded: Any) -> dict[str, np.ndarray]:
    """Every stage of one case.

    Args:
        models: of the backend.
        case: one of `parity_cases`.
        **recorded: `gradients` and `margins`, see `rag_core.parity.trace.trace`.
    """
    name = case["structure"]
    rag = config(name)
    tracer = models.tracer(name, case["head"])
    tracer.fill(weights(name, case["seed"]))
    model = tracer.model
    model.config.label_smoothing = case["label_smoothing"]
    model.config.exclude_bos_score = case["exclude_bos_score"]
    if "training" in case:
        return train_case(tracer.backend, model, case)
    retriever = None
    if case["source"] == "retrieved":
        missing = int(case["fault"] == "missing_document")
        retriever = DrawnRetriever(rag, f"{name}:{case['seed']}", missing=missing)
    model.set_retriever(retriever)
    modes = {
        mode: _with_functions(options, rag.generator.vocab_size, models.engine.as_tensor)
        for mode, options in case["modes"].items()
    }
    labels = targets(rag, case["name"], case["target"], case["batch"])
    return trace(
        tracer, inputs(case), labels, case["n_docs"], modes, forward=case["forward"], **recorded
    )


def _with_functions(
    options: dict[str, Any], vocabulary: int, as_tensor: Callable[[np.ndarray], Any]
) -> dict[str, Any]:
    """Options of a `generate` call, functions in place of their names."""
    options = dict(options)
    if "prefix_allowed_tokens_fn" in options:
        rule = options["prefix_allowed_tokens_fn"]
        options["prefix_allowed_tokens_fn"] = allowed_tokens(rule, vocabulary)
    if "logits_processor" in options:

        def raise_every_third(ids: Any, scores: Any) -> Any:
            raised = np.zeros(scores.shape[1])
            raised[int(ids.shape[-1]) % 3 :: 3] += 1.5
            kind = getattr(scores.dtype, "name", str(scores.dtype)).removeprefix("torch.")
            return scores + as_tensor(raised.astype(kind))

        options["logits_processor"] = [raise_every_third]
    return options


def record(
    backend: str,
    cases: list[dict[str, Any]],
    out: Path,
    dtype: str = "float64",
    note: Callable[[str], None] = lambda line: None,
) -> None:
    """Runs cases and writes a trace file.

    Args:
        backend: "torch" or "tf".
        cases: of `parity_cases`.
        out: the `.npz`.
        dtype: of the weights and of all arithmetic.
        note: is told what is done.
    """
    began = time.monotonic()
    models = Models(backend, dtype)
    version = models.tracing.Tracer.version
    with TraceWriter(
        out, backend=backend, framework=version, dtype=dtype, seed=0, about={}
    ) as writer:
        for number, case in enumerate(cases, start=1):
            stages = run_case(models, case, margins=dtype != "float64")
            info = {
                "weights": fingerprint(weights(case["structure"], case["seed"])),
                "inputs": fingerprint(inputs(case)),
                "case": digest(case),
            }
            writer.add(case["name"], info, stages)
            if number % 20 == 0 or number == len(cases):
                seconds = time.monotonic() - began
                note(f"{backend} {dtype}: {number} of {len(cases)} cases, {seconds:.0f} s")
