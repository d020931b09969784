"""A training run, but for what only a framework can do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.backends import load_backend, to_numpy
from rag_core.checkpoint import read_weights
from rag_core.config import RagConfig
from rag_core.knowledge import KnowledgeBase, PassageEncoderBase, held_index
from rag_core.metrics import mean_posterior_entropy
from rag_core.retrieval import RagRetriever
from rag_core.tokenization import RagTokenizer
from rag_core.training.batch import Batch, check_answers
from rag_core.training.best import BestWeights, check_measured
from rag_core.training.callbacks import AnyCallback, call_back, checked_callbacks
from rag_core.training.choices import chosen_config
from rag_core.training.config import TrainingConfig
from rag_core.training.context_encoder import LiveEncoder, encoder_source, open_passage_encoder
from rag_core.training.contrast import Contrast
from rag_core.training.data import Example, batches, measured_questions, read_examples
from rag_core.training.faults import NotFinite
from rag_core.training.files import Origin, read_checkpoint, write_checkpoint, write_model
from rag_core.training.loop import run_steps
from rag_core.training.losses import ForwardPass
from rag_core.training.parameters import (
    GENERATOR,
    as_it_learns,
    check_index,
    check_own_passages,
    learning_parameters,
    part_of,
)
from rag_core.training.passes import ForwardPasses
from rag_core.training.processes import ALONE, Processes
from rag_core.training.report import TrainingReport
from rag_core.training.state import (
    check_out,
    fingerprint,
    finished_before,
    finished_run,
    names_sha256,
    run_of,
    source_fingerprint,
    start_fingerprint,
)
from rag_core.training.tensorboard import FOLDER as TENSORBOARD
from rag_core.training.tensorboard import TensorBoard
from rag_core.training.window import CollapseWatch, MetricsWindow
from rag_core.training.words import BAR, beginning, measured_on, time_left

Say = Callable[[str], None]


def _nobody(text: str) -> None:
    """Says nothing."""


class TrainingRun(ForwardPasses):
    """One training run; a backend's is a subclass that adds what is abstract in `TrainingBackend`.
    Everything else, from the order of examples to the files, is decided in this wing.

    Args:
        model: a head.
        retriever: a `RagRetriever`.
        examples: what is trained on.
        config: settings.
        validation: what exact match is measured on.
        out: folder, or None.
        origin: what the run started from, where it started from files.
        say: told what a person should know while it runs.
        passage_encoder: what embedded the passages, where it learns along.
        base: the knowledge base that is embedded anew then.
        callbacks: called while it runs.
        processes: those that make the run together. Each has the same arguments; the first one
            speaks and calls back.

    Attributes:
        live: what is done for an encoder of passages that learns along; None where none does.
        best: the weights of the best step so far.
        measured: the questions that exact match is measured on.
        window: sums since the last log line.
        watch: of what the questions find.
        start: what tells the model in memory that the run started from; empty where it started from
            files, or keeps none.

    Raises:
        OSError: `out` is no place for a model, see `check_out`.
        ValueError: no examples, some with a passage and some without, settings that do not go with
            passages, or float16 on a CPU.
    """

    def __init__(
        self,
        model: Any,
        retriever: Any,
        examples: list[Example],
        config: TrainingConfig,
        validation: list[Example],
        out: str | Path | None,
        origin: Origin | None = None,
        say: Say = _nobody,
        passage_encoder: PassageEncoderBase | None = None,
        base: KnowledgeBase | None = None,
        callbacks: Sequence[AnyCallback] = (),
        processes: Processes = ALONE,
    ) -> None:
        self.model = model
        self.processes = processes
        self.retriever = retriever
        self.config = config
        if not examples:
            raise ValueError("examples must hold at least one question with its answer")
        check_own_passages(examples, validation, config)
        if config.mixed_precision == "fp16" and not self.on_gpu:
            raise ValueError(
                f"mixed_precision 'fp16' needs a GPU, the model is on {model.device}: use 'bf16' "
                "or None"
            )
        self.tokenizer = RagTokenizer(
            retriever.question_encoder_tokenizer,
            retriever.generator_tokenizer,
            model.config,
            tables=(self.table_size(model.question_encoder), self.table_size(model.generator)),
        )
        if config.reads_documents:
            check_answers(examples, self.tokenizer)
        self.examples = examples
        self.validation = validation[: config.validation_size]
        self.measured = measured_questions(
            examples, validation, config.validation_size, config.sample_size
        )
        check_measured(config, self.measured, bool(self.validation))
        self.out = None
        self.start: dict[str, str] = {}
        if out is not None:
            self.out = place = Path(out)
            processes.lead(lambda: check_out(place))
            starting = [model]
            if passage_encoder is not None:
                starting.append(passage_encoder.model)
            if origin is None:
                self.start = start_fingerprint(*starting)
        self.origin = origin
        self.say = say
        if not processes.is_first:
            self.say = _nobody
        self.fingerprint = fingerprint(examples, config, self.measured, processes.count)
        if origin is not None:
            self.fingerprint.update(origin.fingerprints)
        self.total = config.total_steps(len(examples), processes.count)
        self.pad = model.config.generator.pad_token_id
        # It was learned from the answers of the weights of today.
        model.config.answer_calibration = None
        self.report = TrainingReport()
        self.window = MetricsWindow()
        self.watch = CollapseWatch(self.report)
        self.live: LiveEncoder | None = None
        if config.context_encoder != "frozen" and passage_encoder is not None:
            self.live = LiveEncoder(self, passage_encoder, base)
        self.contrast = None
        self.best = BestWeights(self.out)
        self.callbacks = checked_callbacks(callbacks)
        if config.tensorboard:
            self.callbacks.append(self._tensorboard())
        self._texts = []
        self._hits = []

    @classmethod
    def train(
        cls,
        model: Any,
        retriever: Any,
        examples: Sequence[Example],
        config: TrainingConfig | None = None,
        *,
        validation: Sequence[Example] = (),
        out: str | Path | None = None,
        progress: bool = True,
        passage_encoder: PassageEncoderBase | None = None,
        kb: KnowledgeBase | None = None,
        say: Say = _nobody,
        callbacks: Sequence[AnyCallback] = (),
    ) -> TrainingReport:
        """Fine-tune a RAG model in place on questions and answers, through the documents it
        retrieves.

        Question encoder and generator learn together, by default with frozen document vectors
        (paper, section 2.4). Labels are fed as they are and predicted one to the left, as transformers does
        (compatibility Q10), so what the generator's tokenizer puts in front of an answer is what
        decoding should start with.

        Args:
            model: `RagTokenForGeneration` or `RagSequenceForGeneration` with float32 weights.
            retriever: a `RagRetriever`; its tokenizers encode questions and answers.
            examples: questions with answers; either all or none bring their own passage.
            config: settings; None = the defaults.
            validation: questions to measure exact match on.
            out: folder for checkpoints while training and for the finished model; a run that was
                killed goes on from the last checkpoint there, and ends bit for bit where it would
                have ended (in TensorFlow but for dropout in another library's modules, whose random
                numbers are not kept). One that is finished, of the same weights to start from, is
                found so, and `model` gets the tuned ones. None keeps nothing on disk.
            progress: draw a progress bar on stderr, at a terminal.
            say: told what a person should know while it runs; where no bar is drawn, the log lines,
                too.
            callbacks: functions or objects called while it runs, see
                `rag_core.training.Callback`.
            passage_encoder: with a `context_encoder` that learns, what embedded the index's
                passages: an encoder that `load_encoder` gave. It becomes the model's `ctx_encoder`.
            kb: the knowledge base that `retriever` searches, whose passages are embedded anew; the
                one that belongs to the tuned model lies in `out` then, and is searched from there.

        Returns:
            What happened. The model is left in eval mode.

        Raises:
            OSError: `out` is a file or a knowledge base, holds another model already, or can't be
                written to.
            ValueError: no examples, half-precision weights, no projection to train, or a checkpoint
                of another run.
            FloatingPointError: a loss or gradient became infinite or NaN; see
                `TrainingConfig.on_nan`.
            ProcessLost: another process of the run has ended.
        """
        config = config or TrainingConfig()
        with cls.joined() as processes:
            run = cls(
                model,
                retriever,
                list(examples),
                config,
                list(validation),
                out,
                say=say,
                passage_encoder=passage_encoder,
                base=kb,
                callbacks=callbacks,
                processes=processes,
            )
            return run.go(progress)

    @classmethod
    def train_files(
        cls,
        questions: str | Path,
        model: str | Path,
        kb: str | Path,
        out: str | Path,
        config: TrainingConfig | Mapping[str, Any] | None = None,
        *,
        validation: str | Path | None = None,
        context_encoder_model: str | Path | None = None,
        device: str | None = None,
        progress: bool = True,
        say: Say = _nobody,
        callbacks: Sequence[AnyCallback] = (),
        index: str | None = None,
    ) -> TrainingReport:
        """`dualrag train`: fine-tune a saved RAG model, with the head it was saved with, on
        questions and a knowledge base.

        Args:
            questions: a qa.jsonl, see `rag_core.training.read_examples`.
            model: RAG folder or repository.
            kb: the knowledge base's folder.
            out: folder for the tuned model; a run that was killed is continued from what it left
                there, and one that is finished is found so.
            config: settings; a mapping holds some by name, and the others are chosen for the
                number of questions and the model.
            validation: a qa.jsonl to measure exact match on.
            context_encoder_model: folder or name of the encoder that embedded the knowledge base,
                where it is to learn; None takes it from where the knowledge base says it is.
            device: None = a GPU if there is one.
            progress: draw a progress bar on stderr, at a terminal.
            say: told what a person should know while it runs; where no bar is drawn, the log lines,
                too.
            callbacks: functions or objects called while it runs, see
                `rag_core.training.Callback`.
            index: "ray://ADDRESS/NAME" of the knowledge base's shards on a cluster, searched in the
                place of its own index; not with `reindex_every`.

        Raises:
            OSError: something is missing, or `out` holds another model already.
            ValueError: bad lines, or a knowledge base that does not fit the model.
        """
        with cls.joined() as processes:
            examples = read_examples(questions)
            held_out = [] if validation is None else read_examples(validation)
            base = KnowledgeBase.open(kb)
            stored = RagConfig.from_pretrained(model)
            base.check_model(stored)
            if config is None:
                config = TrainingConfig()
            elif not isinstance(config, TrainingConfig):
                config = chosen_config(len(examples), stored, config, processes.count)
            if index is not None and config.reindex_every:
                raise ValueError(
                    f"reindex_every must be 0 with shards on a cluster (index={index!r}), got "
                    f"{config.reindex_every}: passages that are embedded anew are searched here. "
                    "Leave one of them out."
                )
            encoder = None
            if config.context_encoder != "frozen":
                encoder = encoder_source(base, context_encoder_model)
            origin = Origin(model, base, source_fingerprint(model, base.path, encoder))
            asked = out, examples, config, held_out, origin.fingerprints, processes.count
            done = processes.lead(lambda: finished_before(*asked))
            if done is not None:
                return TrainingReport.from_dict(done)
            network, retriever = cls._open(model, base, device, index)
            learning = None
            if encoder is not None:
                place = device or cls.default_device()
                learning = open_passage_encoder(
                    load_backend(cls.backend), base, encoder, config.context_encoder, place
                )
            files = out, origin, say
            parts = network, retriever, examples, config, held_out
            run = cls(*parts, *files, learning, base, callbacks, processes)
            return run.go(progress)

    @classmethod
    def measure_files(
        cls,
        questions: str | Path,
        model: str | Path,
        kb: str | Path,
        *,
        n_docs: int | None = None,
        device: str | None = None,
        say: Say = _nobody,
        index: str | None = None,
    ) -> float:
        """Exact match of a saved RAG model's greedy answers, as `train_files` measures it.

        Args:
            questions: a qa.jsonl, see `rag_core.training.read_examples`.
            model: RAG folder or repository.
            kb: the knowledge base's folder.
            n_docs: documents a question; None = the model's.
            device: None = a GPU if there is one.
            say: told a few of the answers that are not right.
            index: as of `train_files`.

        Raises:
            OSError: something is missing.
            ValueError: bad lines, or a knowledge base that does not fit the model.
        """
        examples = read_examples(questions)
        base = KnowledgeBase.open(kb)
        base.check_model(RagConfig.from_pretrained(model))
        # as a sample of themselves: of questions to validate on the loss is computed, too
        config = TrainingConfig(n_docs=n_docs, sample_size=len(examples))
        with cls.joined() as processes:
            network, retriever = cls._open(model, base, device, index)
            parts = network, retriever, examples, config
            run = cls(*parts, [], None, say=say, processes=processes)
            measured = run.validate()["exact_match"]
        network.eval()
        run.say_wrong_answers()
        return measured

    @classmethod
    def _open(
        cls, model: str | Path, base: KnowledgeBase, device: str | None, index: str | None = None
    ) -> tuple[Any, Any]:
        """A saved model with the head it was saved with, and its retriever over a knowledge base."""
        stored = RagConfig.from_pretrained(model)
        head = "RagTokenForGeneration"
        if stored.saved_head == "sequence":
            head = "RagSequenceForGeneration"
        network = getattr(load_backend(cls.backend), head).from_pretrained(
            model, device=device or cls.default_device()
        )
        searched = base.index() if index is None else held_index(index, base, when_exchanged="fail")
        retriever = RagRetriever.from_pretrained(model, config=network.config, index=searched)
        network.set_retriever(retriever)
        return network, retriever

    # -- a run -------------------------------------------------------------------------------------

    def go(self, progress: bool) -> TrainingReport:
        """Run to the end, from the start or from a checkpoint."""
        from tqdm import tqdm

        if self.examples[0].passage is None or self.config.retriever_loss is not None:
            check_index(getattr(self.retriever, "index", None), self.config)
        if self.live is not None:
            self.live.attach()
        self._choose_parameters()
        told = {name: value for name, value in self.fingerprint.items() if name != "processes"}
        self.processes.check_alike(
            {**told, "callbacks": len(self.callbacks), "out": self.out is None}
        )
        if self._is_finished():
            return self.report
        if self.config.retriever_loss == "contrastive":
            self._compare()
        self.say(self._beginning())
        with self.prepared(), self._checkpointing():
            read_checkpoint(self)
            if self.live is not None:
                self.live.resume(self.report.steps)
            start = time.monotonic() - self.report.seconds
            if self.report.steps:
                self.say(f"Goes on from step {self.report.steps:,} of {self.total:,}.")
            elif self.measured and self.config.evaluate_first:
                self.report.exact_match_before = self.validate()["exact_match"]
                where = measured_on(len(self.measured), bool(self.validation))
                self.say(f"Exact match before: {self.report.exact_match_before:.3f} {where}.")
            bar = tqdm(
                total=self.total,
                initial=self.report.steps,
                bar_format=BAR,
                # None: at a terminal alone
                disable=not (progress and self.processes.is_first) or None,
            )
            try:
                with bar:
                    run_steps(self, bar, lambda: time.monotonic() - start)
            finally:
                self.model.eval()
                if self.live is not None:
                    self.live.close()
            self._go_back_to_the_best()
            if self.live is not None:
                self.live.finish(self.report.best_step or self.report.steps)
            self.report.seconds = time.monotonic() - start
        write_model(self)
        if self.out is not None:
            place = self.report.steps, self.total, self.model
            self.processes.lead(lambda: call_back(self.callbacks, "save", *place, path=self.out))
        self.say_wrong_answers()
        return self.report

    def _choose_parameters(self) -> None:
        """Find out what learns: what the settings say, but for what the model's owner has frozen."""
        still = self.still()
        named = self.named_parameters()
        # Without a search and a loss of the retriever nothing reaches an encoder.
        if self.examples[0].passage is not None and self.config.retriever_loss is None:
            named = [(name, value) for name, value in named if part_of(name) == GENERATOR]
        self.parameters = learning_parameters(named, self.config, still)
        self.config = as_it_learns(self.config, self.parameters)
        # Of a model from files nobody has frozen anything.
        if still and self.origin is None:
            self.fingerprint["still_sha256"] = names_sha256(still)

    def _is_finished(self) -> bool:
        """Whether `out` holds the model of the very run already, which is then taken from there; a
        run from files has looked before it opened them.

        Raises:
            FileExistsError: it holds another model.
        """
        if self.out is None or self.origin is not None:
            return False
        out, run = self.out, run_of(self.fingerprint, self.validation, self.start)
        done = self.processes.lead(lambda: finished_run(out, run))
        if done is None:
            return False
        self.report = TrainingReport.from_dict(done)
        with self.prepared():
            self._take_weights(read_weights(out))
        self.model.eval()
        if self.live is not None:
            self.live.close()
            self.live.search_finished()
        self.say(f"{out} holds the model of this run already.")
        return True

    def _compare(self) -> None:
        """Find the passages that questions are to be told apart by."""
        self.contrast = Contrast(self)
        self.processes.check_alike(self.contrast.lessons.facts())
        self.say(self.contrast.summary())
        self.examples = self.contrast.lessons.examples
        self.total = self.config.total_steps(len(self.examples), self.processes.count)
        if self.live is not None:
            self.live.end_at(self.total)
        self.report.left_out = self.contrast.lessons.left_out

    def _tensorboard(self) -> TensorBoard:
        if self.out is None:
            raise ValueError(
                "out must be a folder with tensorboard=True, got None. Name one, or give "
                "callbacks=[TensorBoard(folder)] in its place"
            )
        return TensorBoard(self.out / TENSORBOARD)

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Within it layers keep their inputs alone, if that is asked for."""
        model = self.model
        if not self.config.gradient_checkpointing or model.is_gradient_checkpointing:
            yield
            return
        model.gradient_checkpointing_enable()
        try:
            yield
        finally:
            model.gradient_checkpointing_disable()

    def _beginning(self) -> str:
        passages = None
        if self.origin is not None:
            passages = len(self.origin.base)
        place = f"{self.backend} and the CPU"
        if self.on_gpu:
            place = f"{self.backend} and a GPU"
        return beginning(
            self.config,
            self.total,
            len(self.examples),
            passages,
            self.parameters,
            place,
            self.processes.count,
        )

    def tell(self, text: str) -> None:
        """Say something beside the progress bar."""
        from tqdm import tqdm

        with tqdm.external_write_mode():
            self.say(text)

    def tell_time(self, seconds: float) -> None:
        """Say how long the steps that are left will take."""
        self.tell(time_left(seconds))

    def step(self, examples: list[Example], logs: bool) -> None:
        """One optimizer step over `accumulation` forward passes.

        The loss is a mean over all their tokens, in all processes.

        Raises:
            NotFinite: a loss or gradient is no number. All is as it was before the step.
        """
        window = self.window.copy()
        random_states = {name: to_numpy(state) for name, state in self.random_states().items()}
        try:
            self._step(examples, logs)
        except NotFinite:
            self.window = window
            self.set_random_states(random_states)
            raise

    def _step(self, examples: list[Example], logs: bool) -> None:
        processes = self.processes
        at_once = self.config.batch_size * processes.count
        parts = [self._part(questions) for questions in batches(examples, at_once)]
        tokens = sum(processes.exchange(sum(part.tokens for part in parts)))
        self.window.tokens += tokens
        self.start_step()
        passes = []
        for number, part in enumerate(parts):
            seed: tuple[int, ...] = (self.config.seed, self.report.steps, number)
            if not processes.is_first:
                seed += (processes.rank,)
            part.tokens_a_question = tokens / len(examples)
            part.ends_step = part is parts[-1]
            forward = self.learn(part, max(1, tokens), seed)
            passes.append(self._measure(forward, logs))
        self._count(passes)
        # A loss scale that is below 1 by now did not help.
        if not self.end_step() and self.scaler.state_dict().get("scale", 0.0) < 1.0:
            raise NotFinite("a gradient became infinite or NaN")

    def is_sound(self) -> bool:
        """Whether all numbers that learn are finite."""
        states = map(self.parameter_state, self.parameters)
        return all(np.isfinite(to_numpy(state["model"])).all() for state in states)

    def _part(self, questions: Sequence[Example]) -> Batch:
        """This process' part of the questions of a forward pass."""
        own = self.processes.own(questions)
        batch = self.batch(own)
        batch.of_all = questions
        batch.first = self.processes.rank * len(own)
        return batch

    def _count(self, passes: Sequence[MetricsWindow]) -> None:
        """Count the step's forward passes, by what every process measured of them.

        Raises:
            NotFinite: a loss is no number. No process knew before: all have come as far.
        """
        size = self.config.batch_size
        shares = self.processes.exchange([part.shared() for part in passes])
        for number, everyone in enumerate(zip(*shares, strict=True)):
            try:
                self.window.join([MetricsWindow.from_sums(sums) for sums in everyone])
            except NotFinite as fault:
                start = number * len(everyone)
                first, after, _ = fault.part.indices(len(everyone))
                fault.part = slice((start + first) * size, (start + after) * size)
                raise

    def _measure(self, forward: ForwardPass, logs: bool) -> MetricsWindow:
        """What this process counts of a forward pass; its loss alone where that is no number."""
        counted = MetricsWindow()
        loss = float(to_numpy(forward.loss))
        scores = ids = None
        if forward.contexts is not None:
            scores = to_numpy(forward.contexts.doc_scores)
            if forward.contexts.retrieved is not None:
                ids = to_numpy(forward.contexts.retrieved["doc_ids"])
        try:
            counted.add(loss, scores, ids)
        except NotFinite:
            counted.nll = loss
            return counted
        if forward.retriever_losses is not None:
            counted.add_retriever(to_numpy(forward.retriever_losses))
        if forward.passage_scores is not None:
            compared = (forward.passage_scores, forward.positive, forward.masked)
            counted.add_comparison(*map(to_numpy, compared))
        if logs and forward.logits is not None:
            # The logits are gone through once more for this, so not in every step.
            entropy = mean_posterior_entropy(self.joint_log_probs(forward))
            counted.posteriors.append(entropy)
        return counted

    def keep_best(self) -> None:
        """Keep the weights as they are now as the best so far."""
        states = {name: self.parameter_state(name) for name in self.parameters}
        weights = {name: to_numpy(state["model"]) for name, state in states.items()}
        if self.out is None:
            self.best.keep(self.report.steps, weights)
        else:
            self.processes.lead(lambda: self.best.keep(self.report.steps, weights))

    def _go_back_to_the_best(self) -> None:
        """Make the model, and what the report says of it, those of the best step."""
        step = self.report.best_step
        if step is None or step == self.report.steps:
            return
        self._take_weights(self.best.read(step))
        self.report.take(next(line for line in self.report.history if line["step"] == step))
        self._texts, self._hits = [], []  # those of another step

    def _take_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Give what learns these values."""
        for name in self.parameters:
            state = self.parameter_state(name).items()
            arrays = {kind: to_numpy(tensor) for kind, tensor in state}
            self.set_parameter_state(name, {**arrays, "model": weights[name]})

    def save(self) -> None:
        """Write a checkpoint."""
        write_checkpoint(self)
        if self.live is not None and self.processes.is_first:
            self.live.keep(self.report.steps)

    def refresh(self) -> None:
        """Take a new index into use, where one is due after this step."""
        if self.live is not None:
            self.live.after(self.report.steps)

    def index_facts(self) -> dict[str, float]:
        """What a log line says of the index."""
        if self.live is None:
            return {}
        return self.live.log(self.report.steps)
