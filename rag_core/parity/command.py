"""`dualrag parity`: is a checkpoint the same function in both frameworks? Each runs in a process of
its own.

Letters: B questions, N documents a question, T target length.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.backends import available_backends, load_backend
from rag_core.config import RagConfig, config_from_dict
from rag_core.hub import atomic_write, check_text, check_writable, parse_object, read_lines
from rag_core.parity.compare import compare_files
from rag_core.parity.inputs import DrawnRetriever, contexts, questions, targets
from rag_core.parity.report import AGREE, DIFFER, as_text, report_base, write_reports
from rag_core.parity.trace import batch_size, fingerprint, trace
from rag_core.parity.trace_files import TraceFile, TraceWriter

_CLASSES = {"token": "RagTokenForGeneration", "sequence": "RagSequenceForGeneration"}
# Questions of a case: more than one, so that rows are padded.
_BATCH = 4
_MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampled": {"do_sample": True, "top_k": 50, "seed": 1},
}
_LENGTHS = {"max_length": 16, "min_length": 0}
# Fields of a RagConfig that change what is computed.
_COMPUTED = tuple(
    "question_encoder generator label_smoothing exclude_bos_score bos_token_id "
    "do_deduplication".split()
)


@dataclass(frozen=True)
class Request:
    """What is to be recorded.

    Attributes:
        model: folder or hub name of a RAG model.
        kb: folder of a knowledge base; None = passages drawn by the seed, as ids.
        questions: text file, one question a line (or jsonl with "question"); None = ids drawn by
            the seed.
        dtype: "float64" or "float32".
        head: "token" or "sequence"; None = the model's own.
        seed: of everything drawn.
        n_docs: N; None = the model's, at most 5.
    """

    model: str
    kb: str | None = None
    questions: str | None = None
    dtype: str = "float64"
    head: str | None = None
    seed: int = 0
    n_docs: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"--dtype must be float64 or float32, got {self.dtype!r}")
        if self.head not in (None, *_CLASSES):
            raise ValueError(f"--head must be token or sequence, got {self.head!r}")
        if self.n_docs is not None and self.n_docs < 1:
            raise ValueError(f"--n-docs must be at least 1, got {self.n_docs}")


def check_parity(
    request: Request,
    *,
    against: str | Path | None = None,
    keep: str | Path | None = None,
    out: str | Path | None = None,
    backend: str | None = None,
    tolerance: float | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Records what a model gives, on each framework at hand, and compares: with each other, or with
    a recorded file.

    Args:
        request: the model and what it is asked.
        against: a trace recorded elsewhere.
        keep: where the trace recorded here is kept.
        out: the report is written to `out`.json and `out`.md.
        backend: "torch" or "tf" alone; None = all at hand.
        tolerance: largest relative difference allowed at every stage; None = the measured table's.
        say: is given the report and notes, line by line.

    Returns:
        0 where they agree (or where there was only to record), 1 where they differ.

    Raises:
        ValueError: the traces are not of the same thing, or nothing to compare with.
        OSError, ImportError: a file or a framework is missing.
    """
    names = available_backends()
    if backend:
        names = [backend]
    if not names or backend:
        load_backend(backend)
    RagConfig.from_pretrained(request.model)  # a wrong name should not wait for a framework to load
    if request.questions is not None:
        read_questions(request.questions)
    if against is not None and keep is not None and Path(keep).resolve() == Path(against).resolve():
        raise ValueError(
            f"--record must name another file than --against, got {str(keep)!r} for both: the trace "
            "there would be overwritten by the one that it is compared with."
        )
    for place in (keep, out):
        if place is not None:
            check_writable(place)
    if against is None and len(names) < 2 and keep is None:
        raise ValueError(
            f"--record or --against must be given where only {names[0]} runs, got neither. Record "
            "with  --record trace.npz  and compare on the other machine with  --against trace.npz"
        )
    if against is not None:
        TraceFile(against).close()
    with tempfile.TemporaryDirectory() as folder:
        traces: list[str | Path] = []
        for name in names:
            say(f"recording with {name} ...")
            path = Path(folder) / f"{name}.npz"
            _in_process(request, name, path)
            traces.append(path)
        if keep is not None:
            with atomic_write(keep) as draft:
                shutil.copyfile(traces[0], draft)
            say(f"recorded with {names[0]}: {keep}")
        if against is None:
            against, *traces = traces
        return compare_traces([(against, path) for path in traces], out, tolerance, say)


def compare_traces(
    pairs: Sequence[tuple[str | Path, str | Path]],
    out: str | Path | None,
    tolerance: float | None,
    say: Callable[[str], None],
) -> int:
    """Compares pairs of trace files and reports; arguments and status as in `check_parity`."""
    bounds = None
    if tolerance is not None:
        bounds = {"": tolerance, "choices": tolerance}
    status = AGREE
    for expected, actual in pairs:
        files = TraceFile(expected), TraceFile(actual)
        headers = files[0].header, files[1].header
        result = compare_files(*files, bounds)
        say(as_text(result, headers))
        if out is not None:
            base = report_base(out)
            if len(pairs) > 1:
                base = base.with_name(f"{base.name}-{headers[1]['run']['backend']}")
            say("written: " + ", ".join(map(str, write_reports(result, headers, base))))
        if not result.agrees:
            status = DIFFER
    return status


def _in_process(request: Request, backend: str, out: Path) -> None:
    """Records in a fresh process: no framework sees the other."""
    # the last line of stderr is the error: TensorFlow's notes must not be
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    command = [
        sys.executable,
        "-m",
        "rag_core.parity.command",
        json.dumps(asdict(request)),
        backend,
        str(out),
    ]
    done = subprocess.run(command, env=quiet, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(f"{backend} could not record: {lines[-1]}")


def record(request: Request, backend: str, out: Path) -> None:
    """Records one backend's trace, in this process.

    Raises:
        OSError, ValueError: the model, the knowledge base or the questions cannot be read.
    """
    config = RagConfig.from_pretrained(request.model)
    head = request.head or config.saved_head
    engine = load_backend(backend)
    tracing = import_module(f"{engine.__name__}.tracing")
    retriever, about = _retriever(request, config)
    model = getattr(engine, _CLASSES[head]).from_pretrained(request.model, dtype=request.dtype)
    tracer = tracing.Tracer(model)
    n_docs = request.n_docs or min(int(config.n_docs), 5)
    modes = {name: {**options, **_LENGTHS} for name, options in _MODES.items()}
    if head == "sequence":
        modes["fast"] = {"num_beams": 3, "decoding": "fast", **_LENGTHS}
    weights = _weights(request.model, config, head)
    about = {"head": head, "n_docs": n_docs, "config": _digest(_function(config)), **about}
    writer = TraceWriter(
        out,
        backend=backend,
        framework=tracing.Tracer.version,
        dtype=request.dtype,
        seed=request.seed,
        about=about,
    )
    with writer:
        for name, inputs in _cases(request, config, n_docs).items():
            if "input_ids" in inputs:
                model.set_retriever(retriever)
            else:
                model.set_retriever(None)
            key = f"{name}:{request.seed}"
            labels = targets(config, key, "padded", batch_size(inputs), length=8)
            info = {"weights": weights, "inputs": fingerprint({**inputs, "labels": labels})}
            near = request.dtype == "float32"  # float64 decides, and needs no excuse
            writer.add(name, info, trace(tracer, inputs, labels, n_docs, modes, margins=near))


def _cases(request: Request, config: RagConfig, n_docs: int) -> dict[str, dict[str, np.ndarray]]:
    key = f"parity:{request.seed}"
    if request.questions is None:
        drawn = contexts(config, key, 2, n_docs)
        if n_docs > 1:
            drawn["doc_scores"][1, -1] = -np.inf  # a document that was not found
        return {"drawn questions": questions(config, key, 2, length=9), "drawn contexts": drawn}
    from rag_core.tokenization import RagTokenizer

    texts = read_questions(request.questions)
    encode = RagTokenizer.from_pretrained(request.model).question_encoder
    cases = {}
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        rows = encode(batch, padding=True, truncation=True, return_tensors="np")
        cases[f"questions {start + 1} to {start + len(batch)}"] = {
            name: np.asarray(rows[name], np.int64) for name in ("input_ids", "attention_mask")
        }
    return cases


def read_questions(path: str | Path) -> list[str]:
    """The questions of a file: one a line, or jsonl with "question".

    Raises:
        ValueError: none in it, a line that is no text, or one of JSON without a question; names
            file and line.
        OSError: it cannot be read.
    """
    texts: list[str] = []
    for number, line in read_lines(path):
        text = line.strip()
        place = f"{path}:{number}"
        if text.startswith(("{", "[{")) or text == "[":  # an array is refused with advice
            question = parse_object(text, place, first=not texts).get("question")
            if not isinstance(question, str):
                raise ValueError(
                    f'{place}: "question" must be text, got {question!r:.60}. Write lines like '
                    '{"question": "..."}'
                )
            text = check_text(question, place, '"question"').strip()
        if text:
            texts.append(text)
    if not texts:
        raise ValueError(f"{path}: no question in it; expected one a line")
    return texts


def _retriever(request: Request, config: RagConfig) -> tuple[Any, dict[str, Any]]:
    about: dict[str, Any] = {"questions": "drawn", "knowledge base": "drawn"}
    if request.questions is not None:
        about["questions"] = _digest(read_questions(request.questions))
    if request.kb is None:
        return DrawnRetriever(config, f"parity:{request.seed}"), about
    from rag_core.knowledge import KnowledgeBase
    from rag_core.retrieval import RagRetriever
    from rag_core.tokenization import RagTokenizer

    base = KnowledgeBase.open(request.kb)
    tokenizer = RagTokenizer.from_pretrained(request.model)
    base.check_model(config)
    about["knowledge base"] = _digest([base.manifest.rows, base.manifest.files])
    retriever = RagRetriever(
        config, tokenizer.question_encoder, tokenizer.generator, index=base.index()
    )
    return retriever, about


def _weights(name_or_path: str, config: RagConfig, head: str) -> str:
    """Fingerprint of a checkpoint's weights under their names, tied ones once, however they are
    stored.
    """
    from rag_core.checkpoint import fit_weights, read_weights, tied_names

    context_encoder = config.extra.get("ctx_encoder")
    if context_encoder is not None:
        context_encoder = config_from_dict(context_encoder)
    weights = fit_weights(config, read_weights(name_or_path), head, context_encoder=context_encoder)
    copies = {name for group in tied_names(config, head) for name in group[1:]}
    return fingerprint(weights, weights.keys() - copies)


def _function(config: RagConfig) -> dict[str, Any]:
    """The part of a config that says what is computed, not where things lie."""
    values = config.to_dict()
    return {name: values.get(name) for name in _COMPUTED}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def main(arguments: list[str]) -> None:
    """Records in this process; called by `check_parity` in another."""
    request, backend, out = arguments
    try:
        record(Request(**json.loads(request)), backend, Path(out))
    except (ValueError, TypeError, OSError, ImportError) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main(sys.argv[1:])
