"""What is measured, on what, by whom, and what is to be reached.

Letters: B questions, N documents a question.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.workload import BASE, PLAIN, PLAIN_QUICK, QUICK, TINY, Size


@dataclass(frozen=True)
class Contestant:
    """A program that computes the jobs.

    Attributes:
        name: for people and for --contestants, with "@" and the dtype where it is not float32.
        library: dualrag, transformers or ctranslate2.
        framework: torch, tf or ct2.
        environment: of `benchmarks.peers`; None is this project's own.
        dtype: None for float32; int8, bf16, fp16 or autocast.
        checkout: the root of another commit of this project, whose code runs; None is this one's.
    """

    name: str
    library: str
    framework: str
    environment: str | None = None
    dtype: str | None = None
    checkout: Path | None = None

    @property
    def exact(self) -> bool:
        """Whether its tokens must be those of the others."""
        return self.dtype is None


CONTESTANTS = (
    Contestant("dualrag-torch", "dualrag", "torch"),
    Contestant("dualrag-tf", "dualrag", "tf"),
    Contestant("transformers4-torch", "transformers", "torch", "transformers4"),
    Contestant("transformers4-tf", "transformers", "tf", "transformers4"),
    Contestant("transformers5-torch", "transformers", "torch", "transformers5"),
    Contestant("ctranslate2", "ctranslate2", "ct2", "ctranslate2"),
    Contestant("ctranslate2@int8", "ctranslate2", "ct2", "ctranslate2", "int8"),
)
ON_GPU = ("dualrag-torch", "transformers4-torch", "transformers5-torch")
REFERENCES = (
    "transformers4-torch",
    "transformers4-tf",
    "transformers5-torch",
    "dualrag-torch",
    "dualrag-tf",
)


def contestants_of(checkout: Path) -> tuple[Contestant, ...]:
    """This project as it was in another checkout, to time a change beside what it changes.

    Raises:
        ValueError: the folder is no checkout of this project.
    """
    if not (checkout / "benchmarks" / "worker.py").is_file():
        raise ValueError(f"--before must be the root of a checkout of this project, got {checkout}")
    return tuple(
        replace(contestant(f"dualrag-{framework}"), name=f"before-{framework}", checkout=checkout)
        for framework in ("torch", "tf")
    )


def contestant(name: str, others: tuple[Contestant, ...] = ()) -> Contestant:
    """A contestant by its name, of any dtype: "dualrag-torch@bf16"; one of the table or of `others`.

    Raises:
        ValueError: there is none of that name.
    """
    plain, _, dtype = name.partition("@")
    known = {one.name: one for one in (*CONTESTANTS, *others)}
    if plain not in known:
        raise ValueError(
            f"no contestant {name!r}; there are {', '.join(known)}, each also with @int8, @bf16, "
            "..."
        )
    return replace(known[plain], name=name, dtype=dtype or None)


@dataclass(frozen=True)
class Job:
    """A row of the table.

    Attributes:
        name: for --jobs and the results file.
        title: for people.
        kind: loss, generate, train, plain, retrieve or retriever_call: what the contestants'
            modules do.
        size: the workload; "demo" for that of `benchmarks.demo_workload`.
        quick: the workload of a quick run.
        head: token or sequence.
        options: of generate.
        repeats: turns of a full run.
        times: runs in a turn, for what takes milliseconds.
        distinct: whether all tokens of a check must be distinct rows: no candidate comes twice.
        inference: whether its peak memory counts as that of inference.
        without: libraries with no such thing, or nothing to compare.
        differs: contestants whose tokens are known to be others, and why; they are timed and
            marked.
    """

    name: str
    title: str
    kind: str
    size: Size | str
    quick: Size | str
    head: str = "token"
    options: dict[str, Any] = field(default_factory=dict)
    repeats: int = 3
    times: int = 1
    distinct: bool = False
    inference: bool = False
    without: tuple[str, ...] = ("ctranslate2",)
    differs: dict[str, str] = field(default_factory=dict)

    def workload(self, quick: bool) -> Size | str:
        """The workload of a full or a quick run."""
        return self.quick if quick else self.size

    def generate_options(self, size: Size | str) -> dict[str, Any]:
        """Options of generate; where the workload says how many tokens, neither fewer nor more."""
        if isinstance(size, str):
            return dict(self.options)
        # the start token counts; max_new_tokens would not do: for RAG, 4.37.2 gives one token less
        # than it says
        return {**self.options, "min_length": size.tokens + 1, "max_length": size.tokens + 1}


_PADDING = {
    "transformers5-torch": "5.23.0 hands RAG-Sequence's generator no attention mask, and it reads the padding",
}
_NEAR = {
    "transformers4-tf": "log-probabilities of the two best tokens are 0.001 apart there; it alone takes the other"
}
_GREEDY = {"num_beams": 1}
_BEAMS = {"num_beams": 4, "num_return_sequences": 1}
JOBS = (
    Job("token_loss", "RAG-Token forward + loss", "loss", BASE, QUICK, repeats=5, inference=True),
    Job(
        "token_greedy",
        "RAG-Token generate, greedy",
        "generate",
        BASE,
        QUICK,
        options=_GREEDY,
        differs=_NEAR,
        inference=True,
    ),
    Job(
        "token_beam4",
        "RAG-Token generate, 4 beams",
        "generate",
        BASE,
        QUICK,
        options=_BEAMS,
        inference=True,
    ),
    Job(
        "sequence_thorough",
        "RAG-Sequence generate, 4 beams, thorough, 20 forced tokens, all candidates distinct",
        "generate",
        BASE,
        QUICK,
        head="sequence",
        # every candidate is returned, so that it can be seen that all are distinct
        options={"num_beams": 4, "num_return_sequences": 20},
        repeats=2,
        distinct=True,
        differs=_PADDING,
        inference=True,
    ),
    Job(
        "demo_thorough",
        "RAG-Sequence generate, 4 beams, thorough: the demo checkpoint's real, short answers",
        "generate",
        "demo",
        "demo",
        head="sequence",
        options={**_BEAMS, "min_length": 1, "max_length": 32},
        repeats=5,
        differs=_PADDING,
    ),
    Job(
        "training",
        "training step (AdamW), all parameters",
        "train",
        BASE,
        QUICK,
        repeats=2,
        without=("ctranslate2", "transformers4-tf"),
    ),
    Job(
        "retrieve",
        "retrieve, 10,033 passages flat",
        "retrieve",
        "demo",
        "demo",
        repeats=5,
        times=20,
    ),
    Job(
        "retriever_call",
        "retriever call, 10,033 passages flat",
        "retriever_call",
        "demo",
        "demo",
        repeats=5,
        times=20,
    ),
    Job(
        "tiny_greedy",
        "tiny model (width 64, 2 layers), greedy 20 tokens",
        "generate",
        TINY,
        TINY,
        options=_GREEDY,
        repeats=5,
        times=5,
    ),
    Job(
        "plain_beam4",
        "4-beam search over those 20 contexts, generator alone (V 20,000)",
        "plain",
        PLAIN,
        PLAIN_QUICK,
        options=_BEAMS,
        without=("transformers4-tf",),
    ),
)


def selected(names: str | None) -> tuple[Job, ...]:
    """Jobs by a comma-separated list of names; all without one.

    Raises:
        ValueError: an unknown name.
    """
    if not names:
        return JOBS
    known = {job.name: job for job in JOBS}
    unknown = sorted(set(names.split(",")) - set(known))
    if unknown:
        raise ValueError(f"no job {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(known[name] for name in names.split(","))


def must_agree(one: Contestant, job: Job) -> bool:
    """Whether other tokens are a failure."""
    return one.exact and one.name not in job.differs


def takes_part(one: Contestant, job: Job) -> bool:
    """Whether a contestant has what a job asks for."""
    if one.dtype == "int8" and (
        one.library == "transformers" or one.framework == "tf" or job.kind == "train"
    ):
        return False
    if job.kind.startswith("retrie") and one.dtype:
        return False
    if one.library == "ctranslate2":
        return job.kind == "plain"
    return one.library not in job.without and one.name.partition("@")[0] not in job.without


@dataclass(frozen=True)
class Goal:
    """What is to be reached: `measure` of `contestant` on `job`, at least or at most `bound`.

    Measures: "faster" times than `other`, at least; "within" times `other`'s time, at most;
    "floor", multiples of the operation count's seconds, at most; "beyond" times faster than
    `other`, what both spend in faiss left out, at least; "memory", peak GB over the inference jobs,
    at most.
    """

    job: str
    contestant: str
    measure: str
    bound: float
    other: str | None = None

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.measure in ("faster", "beyond")


def _both(job: str, torch: float, tf: float, measure: str = "faster") -> tuple[Goal, Goal]:
    return (
        Goal(job, "dualrag-torch", measure, torch, "transformers4-torch"),
        Goal(job, "dualrag-tf", measure, tf, "transformers4-tf"),
    )


GOALS = (
    *_both("token_loss", 2.5, 2.5),
    *_both("token_greedy", 2.5, 3.5),
    *_both("token_beam4", 5, 5),
    Goal("token_beam4", "dualrag-torch", "floor", 1.5),
    *_both("sequence_thorough", 8, 8),
    Goal("sequence_thorough", "dualrag-torch", "floor", 1.5),
    *_both("demo_thorough", 20, 20),
    Goal("training", "dualrag-torch", "faster", 2, "transformers4-torch"),
    Goal("training", "dualrag-tf", "within", 1.3, "dualrag-torch"),
    *_both("retrieve", 3, 3, "beyond"),
    *_both("retriever_call", 3, 3, "beyond"),
    Goal("inference", "dualrag-torch", "memory", 2.0),
    Goal("inference", "dualrag-tf", "memory", 3.0),
    *_both("tiny_greedy", 4, 20),
    Goal("plain_beam4", "dualrag-torch", "within", 1.0, "ctranslate2"),
    Goal("plain_beam4", "dualrag-tf", "within", 1.3, "dualrag-torch"),
)
