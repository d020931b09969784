"""What `make results` runs: systems x seeds x sets of questions, and what is asked of some of them.

A system is a line of `SYSTEMS`; its settings are those of `dualrag train`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.results.jobs import DUALRAG, EMBED_SECONDS, GRAPH_SECONDS, TRACE_SECONDS, Job

MATERIAL = "experiments.results.material"
OTHERS = "experiments.results.systems"
N_DOCS = 5


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        seeds: of training.
        steps, batch_size: of training.
        train: questions to train on; dev: to choose a threshold on.
        nq, trivia, clues: answerable test questions.
        sweep: questions of each set for sweeps and indexes.
        every: questions of each set drawn from all, answerable or not.
        unanswerable: questions whose answer no passage holds.
        pairs: of questions that exchange their answers.
        n_docs: of the sweep.
        indexes: of those below, the first.
    """

    seeds: int = 3
    steps: int = 40
    batch_size: int = 16
    train: int = 3200
    dev: int = 200
    nq: int = 300
    trivia: int = 300
    clues: int = 100
    sweep: int = 100
    every: int = 200
    unanswerable: int = 200
    pairs: int = 60
    n_docs: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    indexes: int = 6


FULL = Sizes()
QUICK = Sizes(
    seeds=1, steps=3, batch_size=8, train=60, dev=20, nq=16, trivia=16, clues=8, sweep=8, every=8,
    unanswerable=16, pairs=8, n_docs=(1, 5, 20), indexes=2,
)  # fmt: skip


@dataclass(frozen=True)
class System:
    """One way to make a model.

    Attributes:
        name: of its folders.
        title: for people.
        train: options of `dualrag train`; None = the model as it starts.
        head: "token" or "sequence".
        closed_book: without passages, in training and after.
    """

    name: str
    title: str
    train: Mapping[str, Any] | None = None
    head: str = "token"
    closed_book: bool = False


# Tried on 700 questions of the dev files that were not trained on; docs/results.md says what came.
_RATE = {"learning_rate": 5e-5, "warmup_steps": 10}
_JOINT = {**_RATE, "question_encoder": "all", "question_encoder_learning_rate": 7e-5}
_LOSS = {**_JOINT, "retriever_loss_weight": 1.0}
SYSTEMS = (
    System("start", "RAG-Token, as it starts"),
    System("frozen", "RAG-Token, retriever frozen", {**_RATE, "question_encoder": "frozen"}),
    System("joint", "RAG-Token, joint", _JOINT),
    System(
        "context",
        "RAG-Token, joint with context encoder",
        {
            **_JOINT,
            "context_encoder": "all",
            "context_encoder_learning_rate": 5e-5,
            # At the end only: embedding all passages takes longer than so few steps.
            "reindex_every": 0,
            "overretrieve": 2,
            # Of 16 questions TensorFlow would keep 11 GB.
            "gradient_checkpointing": True,
        },
    ),
    System("sequence", "RAG-Sequence, joint", _JOINT, head="sequence"),
    System("emdr2", "RAG-Token, joint, emdr2", {**_LOSS, "retriever_loss": "emdr2"}),
    System("pdist", "RAG-Token, joint, pdist", {**_LOSS, "retriever_loss": "pdist"}),
    System(
        "contrastive",
        "RAG-Token, joint, contrastive",
        {**_LOSS, "retriever_loss": "contrastive", "hard_negatives": 7},
    ),
    System(
        "retriever",
        "RAG-Token, retriever alone, contrastive",
        {
            **_JOINT,
            "question_encoder_learning_rate": 5e-5,
            "generator": "frozen",
            "answer_loss_weight": 0.0,
            "retriever_loss": "contrastive",
            "hard_negatives": 7,
            "batch_size": 64,
        },
    ),
    System("closed-book", "closed book", {**_RATE, "question_encoder": "frozen"}, closed_book=True),
)  # fmt: skip
# What more is asked of.
_JOINT_SYSTEM, _SEQUENCE_SYSTEM = (
    system for system in SYSTEMS if system.name in ("joint", "sequence")
)
INDEXES: dict[str, tuple[str, ...]] = {
    "flat": ("--index", "flat"),
    "ivfpq-not-reranked": ("--index", "ivfpq", "--rerank", "1"),
    "ivfpq": ("--index", "ivfpq"),
    "hnsw": ("--index", "hnsw"),
    "ivfpq-8-bytes": ("--index", "ivfpq", "--m", "8"),
    "ivfpq-8-bytes-not-reranked": ("--index", "ivfpq", "--m", "8", "--rerank", "1"),
}
# Real questions are those that an article answers; but for what is asked of all of a file.
SETS = {"nq": "nq-test.jsonl", "trivia": "trivia-test.jsonl", "clues": "clues.jsonl"}
REAL = ("nq", "trivia")
EVERY = {"nq": "topics/topics.nq.test.txt", "trivia": "topics/topics.dpr.trivia.test.txt"}
DEV = ("nq-dev.jsonl", "trivia-dev.jsonl")


@dataclass(frozen=True)
class Asked:
    """What a person asked `make results` for.

    Attributes:
        work: folder of everything that is made, relative to the repository.
        backend: "torch" or "tf".
        model: folder of the model that training starts from.
        kb: its knowledge base.
        wheel: pyserini's; None = pip fetches it.
        sizes: how much of everything.
        systems: names of some; all by default.
    """

    work: Path
    backend: str
    model: str
    kb: Path
    wheel: Path | None = None
    sizes: Sizes = FULL
    systems: tuple[str, ...] = field(default=tuple(system.name for system in SYSTEMS))


@dataclass(frozen=True)
class Plan:
    """The jobs of what was asked, each after those that it needs."""

    asked: Asked

    @property
    def questions(self) -> Path:
        """Folder of the questions, of both backends."""
        return self.asked.work / "questions"

    @property
    def runs(self) -> Path:
        """Folder of the backend's runs."""
        return self.asked.work / self.asked.backend

    def systems(self) -> list[System]:
        """Those that were asked for."""
        return [system for system in SYSTEMS if system.name in self.asked.systems]

    def seeds(self, system: System) -> range:
        """A model that is not trained needs one."""
        return range(1 if system.train is None else self.asked.sizes.seeds)

    def size(self, name: str) -> int:
        """Questions of a set."""
        return int(getattr(self.asked.sizes, name))

    def jobs(self) -> list[Job]:
        """All of them."""
        names: dict[str, Job] = {}
        for job in self._all():
            missing = [name for name in job.needs if name not in names]
            if not missing:  # what a system is needed for that was not asked for is left out
                names[job.name] = job
        return list(names.values())

    def _all(self) -> Iterator[Job]:
        yield from self._materials()
        for system in self.systems():
            for seed in self.seeds(system):
                yield from self._system(system, seed)
        yield from self._baselines()
        yield from self._sweeps()
        yield from self._indexes()
        yield from self._swap()
        yield from self._unanswerable()

    # -- the jobs ------------------------------------------------------------------------------

    def _materials(self) -> Iterator[Job]:
        sizes, kb = self.asked.sizes, self.asked.kb
        words = ["--unanswerable", sizes.unanswerable]
        if self.asked.wheel:
            words += ["--wheel", self.asked.wheel]
        yield self._material("questions", self.questions, "--kb", kb, *words, seconds=60)
        yield self._material("heads", self.runs / "start", "--model", self.asked.model)
        yield self._material(
            "train", self.runs / "train", "--kb", kb,
            "--questions", *(self.questions / name for name in DEV),
            "--train", sizes.train, "--dev", sizes.dev, "--model", self._start("token"),
            needs=("questions", "heads"), seconds=40,
        )  # fmt: skip

    def _start(self, head: str) -> Path:
        return self.runs / "start" / head

    def model(self, system: System, seed: int = 0) -> Path:
        """The folder of a model that was made."""
        if system.train is None:
            return self._start(system.head)
        return self.runs / f"{system.name}-{seed}" / "model"

    def base(self, system: System) -> Path | None:
        """Which knowledge base it reads; None = the one it remembers, whose passages were embedded
        anew.
        """
        if system.train and system.train.get("context_encoder", "frozen") != "frozen":
            return None
        return self.asked.kb

    def _system(self, system: System, seed: int) -> Iterator[Job]:
        made = "heads"
        if system.train is not None:
            made = f"{system.name}-{seed}"
            yield self._training(made, system, seed)
        for name in SETS:
            yield self._answerable(f"{system.name}-{seed}-{name}", system, seed, name, (made,))

    def _training(self, made: str, system: System, seed: int) -> Job:
        sizes = self.asked.sizes
        file = "found.jsonl"
        passages = N_DOCS
        if system.name == "retriever":
            file = "train.jsonl"  # nothing need be found to learn from
        if system.closed_book:
            file = "closed.jsonl"
            passages = 1
        options = {
            "n_docs": passages,
            "steps": sizes.steps,
            "batch_size": sizes.batch_size,
            "evaluate_every": sizes.steps,
            "save_every": 0,
            "on_collapse": "warn",
            **(system.train or {}),
            "seed": seed,
        }
        seconds, learned = 0.0, options["steps"] * options["batch_size"] * passages
        if options.get("answer_loss_weight") == 0:
            learned //= passages  # no passage is read
        if self.asked.backend == "tf":
            seconds = TRACE_SECONDS
        if self.base(system) is None:
            seconds, learned = seconds + EMBED_SECONDS, 3 * learned
        words = [word for name, value in options.items() for word in _words(name, value)]
        return self._python(
            made, DUALRAG, "train", self.runs / "train" / file, "--model", self._start(system.head),
            "--kb", self.asked.kb, "--out", self.model(system, seed), *words,
            needs=("train", "heads"), read=80 * passages, learned=learned, seconds=seconds,
        )  # fmt: skip

    def _answerable(
        self, name: str, system: System, seed: int, questions: str, needs: tuple[str, ...]
    ) -> Job:
        """A system on the answerable questions of a set."""
        count = self.size(questions)
        way, n_docs = "eval", N_DOCS
        if system.closed_book:
            way, n_docs = "closed-book", 1
        return self._eval(
            name, self.model(system, seed), self.base(system), self.questions / SETS[questions],
            *_few(count), way=way, n_docs=n_docs, needs=("questions", *needs), read=count * n_docs,
        )  # fmt: skip

    def _baselines(self) -> Iterator[Job]:
        for name in SETS:
            run = self.runs / f"start-0-{name}"
            out = self.runs / f"extractive-0-{name}"
            yield Job(
                out.name, self.runs / "log", (OTHERS, "extractive", str(run), "--out", str(out)),
                (run.name,),
            )  # fmt: skip
            for seed in self.seeds(_JOINT_SYSTEM):
                yield self._eval(
                    f"bm25-{seed}-{name}", self.model(_JOINT_SYSTEM, seed), self.asked.kb,
                    self.questions / SETS[name], *_few(self.size(name)), way="bm25",
                    needs=("questions", f"joint-{seed}"), read=self.size(name) * N_DOCS,
                )  # fmt: skip
        every = self.asked.sizes.every
        for name in REAL:
            for system in (_JOINT_SYSTEM, _SEQUENCE_SYSTEM):
                yield self._eval(
                    f"{system.name}-every-{name}", self.model(system), self.asked.kb,
                    self.questions / EVERY[name], "--limit", every,
                    needs=("questions", f"{system.name}-0"), read=every * N_DOCS,
                )  # fmt: skip

    def _sweeps(self) -> Iterator[Job]:
        count, depths = self.asked.sizes.sweep, self.asked.sizes.n_docs
        for name in REAL:
            questions = self.questions / SETS[name]
            yield self._eval(
                f"n-docs-{name}", self.model(_JOINT_SYSTEM), self.asked.kb, questions, *_few(count),
                n_docs=",".join(map(str, depths)),
                needs=("questions", "joint-0"), read=count * sum(depths),
            )  # fmt: skip
            yield self._eval(
                f"decoding-{name}", self.model(_SEQUENCE_SYSTEM), self.asked.kb, questions,
                *_few(count), "--decoding", "thorough,fast", "--num-beams", "1,4",
                needs=("questions", "sequence-0"), read=8 * count * N_DOCS,
            )  # fmt: skip

    def _indexes(self) -> Iterator[Job]:
        count = self.asked.sizes.sweep
        for index, words in list(INDEXES.items())[: self.asked.sizes.indexes]:
            made = f"index-{index}"
            base = self.runs / made / "kb"
            yield self._material(
                made, base, "--kb", self.asked.kb, *words, command="index", seconds=30
            )
            for name in REAL:
                yield self._eval(
                    f"{made}-{name}", self.model(_JOINT_SYSTEM), base, self.questions / SETS[name],
                    *_few(count), needs=("questions", "joint-0", made), read=count * N_DOCS,
                )  # fmt: skip

    def _swap(self) -> Iterator[Job]:
        out, pairs = self.runs / "swap", self.asked.sizes.pairs
        found = tuple(f"joint-0-{name}" for name in REAL)
        yield self._material(
            "swap", out, "--kb", self.asked.kb, "--pairs", pairs,
            "--runs", *(self.runs / run for run in found), needs=found, seconds=60,
        )  # fmt: skip
        for index, base in (("old", self.asked.kb), ("new", out / "kb")):
            for facts in ("before", "after"):
                yield self._eval(
                    f"swap-{index}-{facts}", self.model(_JOINT_SYSTEM), base,
                    out / f"{facts}.jsonl", needs=("swap", "joint-0"), read=2 * pairs * N_DOCS,
                )  # fmt: skip

    def _unanswerable(self) -> Iterator[Job]:
        sizes = self.asked.sizes
        for name, path, count in (
            ("dev", self.runs / "train" / "dev.jsonl", sizes.dev),
            ("unanswerable", self.questions / "unanswerable.jsonl", sizes.unanswerable),
        ):
            yield self._eval(
                f"joint-{name}", self.model(_JOINT_SYSTEM), self.asked.kb, path,
                needs=("joint-0", "train"), read=count * N_DOCS,
            )  # fmt: skip

    # -- their commands ------------------------------------------------------------------------

    def _eval(
        self,
        name: str,
        model: Path,
        base: Path | None,
        questions: Path,
        *words: Any,
        way: str = "eval",
        n_docs: int | str = N_DOCS,
        **of_job: Any,
    ) -> Job:
        """`dualrag eval`, or what measures as it does; the report is in the job's folder."""
        module = OTHERS
        if way == "eval":
            module = DUALRAG
        where: tuple[Any, ...] = ()
        if base is not None:
            where = ("--kb", base)
        return self._python(
            name, module, way, questions, "--model", model, *where, *words, "--n-docs", n_docs,
            "--out", self.runs / name, **of_job,
        )  # fmt: skip

    def _material(
        self, name: str, out: Path, *words: Any, command: str | None = None, **of_job: Any
    ) -> Job:
        return self._python(name, MATERIAL, command or name, "--out", out, *words, **of_job)

    def _python(self, name: str, *words: Any, **of_job: Any) -> Job:
        texts = tuple(map(str, (*words, "--backend", self.asked.backend)))
        if self.asked.backend == "tf":
            of_job["seconds"] = of_job.get("seconds", 0) + GRAPH_SECONDS
        return Job(name, self.runs / "log", texts, **of_job)


def _few(count: int) -> tuple[Any, ...]:
    return ("--answerable-only", "--limit", count)


def _words(name: str, value: Any) -> tuple[Any, ...]:
    """An option of the command line, as settings have it."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return (flag,)
    return (flag, value)
