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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.backends import available_backends, load_backend
from rag_core.config import RagConfig, config_from_dict
from rag_core.hub import atomic_write, check_text, check_writable, parse_object, read_lines
from rag_core.parity.compare import compare_files, load_tolerances
from rag_core.parity.inputs import DrawnRetriever, contexts, questions, targets
from rag_core.parity.report import AGREE, DIFFER, as_text, write_reports
from rag_core.parity.trace import fingerprint, trace
from rag_core.parity.trace_files import TraceFile, TraceWriter

_CLASSES = {"token": "RagTokenForGeneration", "sequence": "RagSequenceForGeneration"}
_BATCH = 4
_MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampled": {"do_sample": True, "top_k": 50, "seed": 1},
}
_FAST = {"fast": {"num_beams": 3, "decoding": "fast"}}
_LENGTHS = {"max_length": 16, "min_length": 0}


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
    names = [backend] if backend else available_backends()
    if not names or backend:
        load_backend(backend)
    RagConfig.from_pretrained(request.model)  # a wrong name should not wait for a framework to load
    if request.questions is not None:
        read_questions(request.questions)
    for place in (keep, out):
        if place is not None:
            check_writable(place)
    if against is None and len(names) < 2 and keep is None:
        raise ValueError(
            f"only {names[0]} runs here: record with  --record trace.npz  and compare on the "
            "other machine with  --against trace.npz"
        )
    if against is not None:
        TraceFile(against).close()
    with tempfile.TemporaryDirectory() as folder:
        found: list[Path] = []
        for name in names:
            say(f"recording with {name} ...")
            found.append(Path(folder) / f"{name}.npz")
            _in_process(request, name, found[-1])
        if keep is not None:
            with atomic_write(keep) as draft:
                shutil.copyfile(found[0], draft)
            say(f"recorded with {names[0]}: {keep}")
        pairs = (
            [(found[0], other) for other in found[1:]]
            if against is None
            else [(against, path) for path in found]
        )
        return compare_traces(pairs, out, tolerance, say)


def compare_traces(
    pairs: Sequence[tuple[str | Path, str | Path]],
    out: str | Path | None,
    tolerance: float | None,
    say: Callable[[str], None],
) -> int:
    """Compares pairs of trace files and reports; arguments and status as in `check_parity`."""
    result = AGREE
    for expected, actual in pairs:
        one, other = TraceFile(expected), TraceFile(actual)
        bounds = (
            load_tolerances(one.header["dtype"])
            if tolerance is None
            else {"": tolerance, "choices": tolerance}
        )
        compared = compare_files(one, other, bounds)
        headers = one.header, other.header
        say(as_text(compared, headers))
        if out is not None:
            base = Path(out).with_suffix("") if Path(out).suffix in (".json", ".md") else Path(out)
            base = (
                base
                if len(pairs) == 1
                else base.with_name(f"{base.name}-{other.header['run']['backend']}")
            )
            say("written: " + ", ".join(map(str, write_reports(compared, headers, base))))
        result = result if compared.agrees else DIFFER
    return result


def _in_process(request: Request, backend: str, out: Path) -> None:
    """Records in a fresh process: no framework sees the other."""
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
    modes = {
        name: {**options, **_LENGTHS}
        for name, options in ({**_MODES, **(_FAST if head == "sequence" else {})}).items()
    }
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
        for name, given in _cases(request, config, n_docs).items():
            model.set_retriever(retriever if "input_ids" in given else None)
            batch = len(given["input_ids"]) if "input_ids" in given else len(given["doc_scores"])
            labels = targets(config, f"{name}:{request.seed}", "padded", batch, length=8)
            stages = trace(tracer, given, labels, n_docs, modes, margins=request.dtype == "float32")
            writer.add(
                name,
                {"weights": weights, "inputs": fingerprint({**given, "labels": labels})},
                stages,
            )


def _cases(request: Request, config: RagConfig, n_docs: int) -> dict[str, dict[str, np.ndarray]]:
    key = f"parity:{request.seed}"
    if request.questions is None:
        given = contexts(config, key, 2, n_docs)
        if n_docs > 1:
            given["doc_scores"][1, -1] = -np.inf  # a document that was not found
        return {"drawn questions": questions(config, key, 2, length=9), "drawn contexts": given}
    from rag_core.tokenization import RagTokenizer

    texts = read_questions(request.questions)
    encode = RagTokenizer.from_pretrained(request.model).question_encoder
    cases = {}
    for start in range(0, len(texts), _BATCH):
        rows = encode(
            texts[start : start + _BATCH], padding=True, truncation=True, return_tensors="np"
        )
        name = f"questions {start + 1} to {start + len(rows['input_ids'])}"
        cases[name] = {
            part: np.asarray(rows[part], np.int64) for part in ("input_ids", "attention_mask")
        }
    return cases


def read_questions(path: str | Path) -> list[str]:
    """The questions of a file: one a line, or jsonl with "question".

    Raises:
        ValueError: none in it, a line that is no text, or one of JSON without a question; names
            file and line.
        OSError: it cannot be read.
    """
    found: list[str] = []
    for number, line in read_lines(path):
        text, place = line.strip(), f"{path}:{number}"
        if text.startswith(("{", "[{")) or text == "[":  # an array is refused with advice
            question = parse_object(text, place, first=not found).get("question")
            if not isinstance(question, str):
                raise ValueError(
                    f'{place}: expected JSON like {{"question": "..."}}, got {question!r:.60}'
                )
            text = check_text(question, place, '"question"').strip()
        found += [text] if text else []
    if not found:
        raise ValueError(f"{path}: no question in it; expected one a line")
    return found


def _retriever(request: Request, config: RagConfig) -> tuple[Any, dict[str, Any]]:
    about: dict[str, Any] = {"questions": "drawn", "knowledge base": "drawn"}
    if request.questions is not None:
        about["questions"] = _digest(read_questions(request.questions))
    if request.kb is None:
        return DrawnRetriever(config, f"parity:{request.seed}"), about
    from rag_core.knowledge import KnowledgeBase
    from rag_core.retrieval import RagRetriever
    from rag_core.tokenization import RagTokenizer

    base, tokenizer = KnowledgeBase.open(request.kb), RagTokenizer.from_pretrained(request.model)
    base.check_model(config)
    about["knowledge base"] = _digest([base.manifest.rows, base.manifest.files])
    return RagRetriever(
        config, tokenizer.question_encoder, tokenizer.generator, index=base.index()
    ), about


def _weights(name_or_path: str, config: RagConfig, head: str) -> str:
    """Fingerprint of a checkpoint's weights under their names, tied ones once, however they are
    stored.
    """
    from rag_core.checkpoint import fit_weights, read_weights, tied_names

    context = config.extra.get("ctx_encoder")
    context_config = None if context is None else config_from_dict(context)
    found = fit_weights(config, read_weights(name_or_path), head, context_encoder=context_config)
    copies = {name for group in tied_names(config, head) for name in group[1:]}
    return fingerprint(_Without(found, copies))


class _Without(Mapping[str, np.ndarray]):
    """A mapping without some names; arrays are read one at a time."""

    def __init__(self, arrays: Mapping[str, np.ndarray], names: set[str]) -> None:
        self.arrays, self.names = arrays, names

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __iter__(self) -> Any:
        return (name for name in self.arrays if name not in self.names)

    def __len__(self) -> int:
        return len(list(iter(self)))


def _function(config: RagConfig) -> dict[str, Any]:
    """The part of a config that says what is computed, not where things lie."""
    values = config.to_dict()
    names = (
        "question_encoder",
        "generator",
        "label_smoothing",
        "exclude_bos_score",
        "bos_token_id",
        "do_deduplication",
    )
    return {name: values.get(name) for name in names}


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
