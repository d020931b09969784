"""The same training on one device and under a strategy of tf.distribute, in a program of its own:
logical devices and clusters are made before TensorFlow computes anything.

`python -m tests.support.strategies mirrored FOLDER` compares two logical CPU devices with one, `...
workers FOLDER`, started twice with TF_CONFIG, two processes. Both write FOLDER/RANK.json: the
largest differences by name, and words of refusals.
"""

import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import rag_tf
from rag_core.training import Example, TrainingConfig
from rag_tf.bert import BertEncoder
from tests.support.training_models import (
    EXAMPLES,
    small_config,
    small_retriever,
    small_tokenizers,
    timeless,
)

CONTRASTIVE = {"retriever_loss": "contrastive", "retriever_loss_weight": 0.7}
ROWS = 5
STEPS = 4


class Bench:
    """Models with the same weights, in float64 and without dropout.

    Args:
        strategy: what is compared with one device.
        folder: for what is written, of this process.
        rank: of this process.
    """

    def __init__(self, strategy, folder, rank):
        self.strategy, self.folder, self.rank = strategy, folder, rank
        self.tokenizers = small_tokenizers(folder)
        self.config = small_config(self.tokenizers, 0.0)
        self.alone = self.model()
        with strategy.scope():
            self.shared = self.model()
        random = np.random.default_rng(3)
        self.start = [0.1 * random.normal(size=value.shape) for value in self.alone.variables]
        self.found = {}

    def model(self):
        retriever = small_retriever(self.config, self.tokenizers)
        retriever.set_ctx_encoder_tokenizer(self.tokenizers[0])
        model = rag_tf.RagTokenForGeneration(self.config, retriever=retriever)
        model.set_context_encoder_for_training(BertEncoder(self.config.question_encoder))
        return model.to("float64")

    def reset(self):
        for model in (self.alone, self.shared):
            model.set_weights(self.start)

    def apart(self):
        """The largest difference between the two models' weights, on any replica."""
        worst = 0.0
        for alone, shared in zip(self.alone.variables, self.shared.variables, strict=True):
            for own in self.strategy.experimental_local_results(shared):
                worst = max(worst, abs(own.numpy() - alone.numpy()).max())
        return worst

    def moved(self):
        pairs = zip(self.alone.variables, self.start, strict=True)
        return max(abs(value.numpy() - old).max() for value, old in pairs)

    # -- Keras -------------------------------------------------------------------------------------

    def data(self, settings):
        """Questions, of which one comes twice, answers of several lengths, and passages."""
        questions = np.array([[2, 5 + row % 4, 15, 3] for row in range(ROWS)])
        labels = np.random.default_rng(0).integers(5, 40, (ROWS, 5))
        labels[:, 0] = 0
        labels[1, 2:] = labels[4, 3:] = 1
        inputs = {"input_ids": questions, "attention_mask": np.ones_like(questions)}
        if settings.get("retriever_loss") == "contrastive":
            passages = [[[2, 5 + row, 6 + row, 3], [2, 7, 7, 3]] for row in range(ROWS)]
            passages[3] = passages[0]
            inputs["passage_input_ids"] = np.array(passages)
        return inputs, labels

    def fit(self, settings):
        """Two steps and a measurement; the second step has one question, so one replica has none."""
        self.reset()
        histories = []
        for model in (self.alone, self.shared):
            with model.distribute_strategy.scope():
                model.compile(keras.optimizers.SGD(0.1), **settings)
            data = self.data(settings)
            options = {"batch_size": 4, "verbose": 0}
            done = model.fit(*data, shuffle=False, **options).history
            measured = model.evaluate(*data, return_dict=True, **options)
            histories.append({**done, **{f"then_{key}": [measured[key]] for key in measured}})
        first, second = histories
        assert list(first) == list(second)
        losses = [abs(a - b) for key in first for a, b in zip(first[key], second[key], strict=True)]
        self.found["fit"] = {
            "losses": max(losses),
            "weights": self.apart(),
            "moved": self.moved(),
        }

    # -- train -------------------------------------------------------------------------------------

    def train(self, out, **settings):
        """Steps of `train` with the same questions in all, and again with a kill between."""
        count = self.strategy.num_replicas_in_sync
        examples = [
            Example(example.question, example.answers, positive=(example.answers[0], "tree"))
            for example in EXAMPLES
        ]
        common = {
            "steps": STEPS,
            "accumulation": 2,
            "learning_rate": 1e-2,
            "save_every": 2,
            "log_every": 1,
            "context_encoder": "all",
            "on_collapse": "warn",
            "evaluate_first": False,
            "sample_size": 3,
            **settings,
        }
        self.reset()
        sizes = {self.alone: 2 * count, self.shared: 2}
        reports = []
        for model, size in sizes.items():
            config = TrainingConfig(batch_size=size, **common)
            alone = model is self.alone
            folder = self.folder / "alone" if alone else out / "trained"
            reports.append(
                rag_tf.train(model, model.retriever, examples, config, out=folder, progress=False)
            )
        lines = zip(*(timeless(report) for report in reports), strict=True)
        self.found["train"] = {
            "losses": max(abs(one[key] - other[key]) for one, other in lines for key in one),
            "weights": self.apart(),
            "moved": self.moved(),
        }
        self.alone.set_weights(self.start)
        self.found["apart"] = self.apart()
        wanted = [variable.numpy() for variable in self.shared.variables]
        self.reset()
        config = TrainingConfig(batch_size=2, **common)
        again = model, model.retriever, examples, config

        def kill(progress):
            if progress.event == "step" and progress.step == 3:
                raise RuntimeError("killed")

        try:
            rag_tf.train(*again, out=out / "killed", progress=False, callbacks=[kill])
            raise AssertionError("it was not killed")
        except (RuntimeError, OSError) as error:
            self.found["killed"] = str(error)

        def watch(progress):
            self.found.setdefault("resumed at", progress.step)

        rag_tf.train(*again, out=out / "killed", progress=False, callbacks=[watch])
        pairs = zip(wanted, self.shared.variables, strict=True)
        self.found["train resumed"] = max(abs(old - new.numpy()).max() for old, new in pairs)

    def refusals(self):
        """What is said where it cannot be."""
        data = self.data({})
        with self.strategy.scope():
            inside = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)

        def elsewhere():
            with self.strategy.scope():
                self.alone.compile("sgd")
                self.alone.fit(*data, verbose=0)

        attempts = {
            "optimizer": lambda: self.shared.compile(keras.optimizers.SGD(0.1)),
            "accumulation": lambda: self.shared.compile(inside),
            "model": elsewhere,
        }
        for name, attempt in attempts.items():
            try:
                attempt()
            except ValueError as error:
                self.found[f"refused {name}"] = str(error)

    def write(self, folder):
        (folder / f"{self.rank}.json").write_text(json.dumps(self.found, default=float))


def main(kind, folder):
    folder = Path(folder)
    rank = 0
    if kind == "mirrored":
        [cpu] = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        rank = strategy.cluster_resolver.task_id
        del os.environ["TF_CONFIG"]  # else one device alone would be refused
    own = folder / f"of-{rank}"
    own.mkdir()
    bench = Bench(strategy, own, rank)
    bench.fit(CONTRASTIVE)
    bench.train(folder, **CONTRASTIVE)
    bench.refusals()
    bench.write(folder)


if __name__ == "__main__":
    main(*sys.argv[1:3])
