"""What users of Keras do with rag_tf's models.

Fit, callbacks, policies, their own loop, weights in files, summary.
"""

import copy
import inspect
import pickle
import re
import warnings
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf

from conformance.seeded import seeded_weights
from rag_core.checkpoint import read_weights
from rag_core.config.rag import BartConfig, DPRConfig, RagConfig
from rag_tf import weight_files
from rag_tf.keras_model import REFUSED
from rag_tf.rag import RagModel, RagSequenceForGeneration, RagTokenForGeneration

V, N, B, D = 23, 2, 2, 8
BART = {
    "vocab_size": V, "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 12, "max_position_embeddings": 24,
    "dropout": 0.0,
}  # fmt: skip
BERT = {
    "vocab_size": 19, "hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
QUESTIONS = np.array([[5, 6, 7, 8], [9, 4, 0, 0]])
MASK = (QUESTIONS != 0).astype(np.int32)
LABELS = np.array([[4, 9, 12, 7, 2], [5, 8, 2, -100, -100]])
EXAMPLES = {"input_ids": QUESTIONS, "attention_mask": MASK, "labels": LABELS}


def retrieve(ids, vectors, prefix=None, n_docs=None, return_tensors=None):
    """Documents that depend on the question vector, as from a real index."""
    rows = np.arange(len(ids) * n_docs).reshape(len(ids), n_docs) % 7
    rows = (rows + (vectors.sum(1, keepdims=True) > 0)) % 7
    embeds = seeded_weights({"documents": (7, D)}, 1)["documents"].astype(np.float32)[rows]
    tokens = 3 + (rows.reshape(-1, 1) * 5 + np.arange(6)) % (V - 3)
    return {"context_input_ids": tokens, "context_attention_mask": np.ones_like(tokens),
            "retrieved_doc_embeds": embeds, "doc_ids": rows}  # fmt: skip


def build(kind=RagTokenForGeneration):
    config = RagConfig.from_question_encoder_generator_configs(
        DPRConfig(**BERT), BartConfig(**BART), n_docs=N, retrieval_vector_size=D
    )
    model = kind(config, retriever=retrieve)
    shapes = {
        name: tuple(each.shape) for name, each in model.named_parameters() if "lm_head" not in name
    }
    model.load_state_dict(seeded_weights(shapes, 5), strict=False)
    return model


@cache
def untouched():
    """A model for tests that leave its weights as they are."""
    return build()


def data(batch=2, repeat=2):
    return tf.data.Dataset.from_tensor_slices(EXAMPLES).repeat(repeat).batch(batch)


def test_fit_learns_through_the_search_with_callbacks(tmp_path):
    model = build()
    model.compile(keras.optimizers.AdamW(1e-2))
    before = {name: each.numpy() for name, each in model.named_parameters()}
    first = model(**EXAMPLES).loss.numpy().sum() / 6  # scored tokens: four and two
    asked = []
    model.set_retriever(
        lambda ids, vectors, **options: asked.append(vectors) or retrieve(ids, vectors, **options)
    )
    callbacks = [
        keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate if epoch < 2 else 0.0),
    ]
    history = model.fit(
        data(), epochs=3, validation_data=data(), callbacks=callbacks, verbose=0
    ).history
    assert history["learning_rate"][-1] == 0.0
    losses = history["val_loss"]
    assert losses[1] < losses[0] < first
    assert history["loss"][0] == pytest.approx((first + losses_after_one_step()) / 2, rel=1e-3)
    assert losses[2] == pytest.approx(losses[1])
    assert len(asked) == 3 * 4  # a search in every step
    moved = [
        name
        for name, each in model.named_parameters()
        if np.abs(each.numpy() - before[name]).max() > 1e-4
    ]
    assert sum(name.startswith("rag.question_encoder") for name in moved) > 10
    assert model.evaluate(data(), verbose=0) == pytest.approx(losses[2])
    other = build()
    other.load_weights(tmp_path / "3.weights.h5")
    assert np.array_equal(other(**EXAMPLES).loss, model(**EXAMPLES).loss)
    outputs = model.predict(data(), verbose=0)
    assert {name: each.shape for name, each in outputs.items()} == {
        "loss": (4,),
        "logits": (8, 5, V),
        "doc_scores": (4, N),
    }
    pairs = model.fit(
        {"input_ids": QUESTIONS, "attention_mask": MASK}, LABELS, batch_size=1, verbose=0
    ).history
    assert pairs["loss"][0] == pytest.approx(losses[2], rel=1e-3)


def losses_after_one_step():
    """The loss per scored token after one step of a loop that users write themselves."""
    model = build()
    optimizer = keras.optimizers.AdamW(1e-2)
    with tf.GradientTape() as tape:
        nll = model(**EXAMPLES, training=True).loss
        loss = tf.reduce_sum(nll) / 6
    gradients = tape.gradient(loss, model.trainable_variables)
    question = dict(
        zip((name for name, v in model._named() if v.trainable), gradients, strict=True)
    )
    assert (
        np.abs(
            tf.convert_to_tensor(question[next(n for n in question if "query.weight" in n)])
        ).max()
        > 0
    )
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return float(model(**EXAMPLES).loss.numpy().sum() / 6)


@cache
def wide_losses():
    """In float32."""
    return build(RagSequenceForGeneration)(**EXAMPLES).loss


@pytest.mark.parametrize(
    "policy, optimizer", [("mixed_bfloat16", "Adam"), ("mixed_float16", "LossScaleOptimizer")]
)
def test_mixed_precision_policies(policy, optimizer):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = build(RagSequenceForGeneration)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    out = model(**EXAMPLES)
    assert out.logits.dtype == policy.removeprefix("mixed_")
    assert out.loss.dtype == out.doc_scores.dtype == model.dtype == tf.float32
    np.testing.assert_allclose(out.loss, wide_losses(), rtol=0.05)
    model.compile(keras.optimizers.Adam(1e-2))
    assert type(model.optimizer).__name__ == optimizer
    losses = model.fit(data(), epochs=2, verbose=0).history["loss"]
    assert losses[1] < losses[0]
    assert all(each.dtype == tf.float32 for each in model.weights)


@pytest.mark.parametrize("name", ["w.safetensors", "w.weights.h5"])
def test_weights_in_one_file_hold_the_whole_net(tmp_path, name):
    model = untouched()
    model.save_weights(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 4 * model.count_params()
    (tmp_path / "plain").touch()
    # not its owner's alone
    assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode
    other = RagSequenceForGeneration(model.config, retriever=retrieve)
    other.load_weights(tmp_path / name)
    for (_, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert np.array_equal(one, two)
    assert other.generator.lm_head.weight is other.generator.model.shared.weight
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save_weights(tmp_path / name, overwrite=False)
    generator = BartConfig(**{**BART, "vocab_size": V + 1})
    larger = RagConfig.from_dict({**model.config.to_dict(), "generator": generator.to_dict()})
    with pytest.raises(ValueError, match=r"model\.shared\.weight"):
        RagTokenForGeneration(larger).load_weights(tmp_path / name)
    partly = RagTokenForGeneration(larger)
    total = len(partly.variables)
    said = rf"{total - 2} of the model's {total} weights were read, .* 2 weights of the file"
    with pytest.warns(UserWarning, match=said):  # the table and the bias of logits are larger
        partly.load_weights(tmp_path / name, skip_mismatch=True)
    assert all(
        map(
            np.array_equal,
            partly.question_encoder.parameters(),
            model.question_encoder.parameters(),
        )
    )
    weight_files.write(tmp_path / f"foreign.{name}", {"dense/kernel": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"none of its 1 has name and shape .* dense/kernel"):
        partly.load_weights(tmp_path / f"foreign.{name}", skip_mismatch=True)
    for wrong in ("w", "w.keras"):
        with pytest.raises(ValueError, match="must end with"):
            model.save_weights(tmp_path / wrong)
    with pytest.raises(FileNotFoundError, match="absent"):
        model.load_weights(tmp_path / f"absent{name}")


def test_a_backup_goes_on_with_the_optimizer_as_it_was(tmp_path):
    def run(epochs, **options):
        model = build()
        model.question_encoder.trainable = model.generator.model.encoder.trainable = False
        model.compile(keras.optimizers.AdamW(1e-2))
        model.fit(data(), epochs=epochs, verbose=0, **options)
        return model

    def stop(epoch, logs):
        raise KeyboardInterrupt

    whole = run(2)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        run(2, callbacks=[backup, keras.callbacks.LambdaCallback(on_epoch_end=stop)])
    resumed = run(2, callbacks=[backup])
    assert resumed.optimizer.iterations == whole.optimizer.iterations == 4
    assert all(map(np.array_equal, whole.get_weights(), resumed.get_weights()))


def test_an_optimizers_state_is_read_where_it_fits(tmp_path):
    path = tmp_path / "w.weights.h5"
    model = build()
    # the optimizer around Adam has variables of the same names
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)))
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables:
        variable.assign(np.full(variable.shape, 3))
    model.save_weights(path)
    names = [name for name, _ in model._named()]
    assert sorted(read_weights(path)) == sorted(names)
    other = RagSequenceForGeneration(model.config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.load_weights(path)
    assert all(map(np.array_equal, model.get_weights(), other.get_weights()))

    other.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)))
    with pytest.warns(UserWarning, match=r"call model\.optimizer\.build"):
        other.load_weights(path)
    other.optimizer.build(other.trainable_variables)
    other.load_weights(path)
    pairs = zip(model.optimizer.variables, other.optimizer.variables, strict=True)
    assert all(np.array_equal(one, two) for one, two in pairs)

    other.compile(keras.optimizers.SGD(1e-2))
    other.optimizer.build(other.trainable_variables)
    with pytest.warns(UserWarning, match="state of another optimizer"):
        other.load_weights(path)
    assert other.optimizer.iterations == 0
    untouched().save_weights(tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="holds no optimizer's state"):
        other.load_weights(tmp_path / "w.safetensors")


def test_weights_as_lists_and_checkpoints(tmp_path):
    model, other = untouched(), RagTokenForGeneration(untouched().config)
    assert len(model.weights) == len(model.get_weights()) == len(model.variables)
    assert len(model.trainable_weights) + len(model.non_trainable_weights) == len(model.weights)
    assert (
        model.count_params()
        == model.num_parameters()
        == sum(each.size for each in model.get_weights())
    )
    other.set_weights(model.get_weights())
    assert all(map(np.array_equal, model.get_weights(), other.get_weights()))
    with pytest.raises(ValueError, match=r"in the order of model\.weights, got 1"):
        other.set_weights(model.get_weights()[:1])
    with pytest.raises(ValueError, match="must have shape"):
        other.set_weights(model.get_weights()[::-1])
    path = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    third = RagTokenForGeneration(model.config)
    tf.train.Checkpoint(model=third).read(path).expect_partial()
    assert all(map(np.array_equal, model.get_weights(), third.get_weights()))


def test_summary_names_networks_and_counts():
    lines = []
    untouched().summary(print_fn=lines.append)
    text = "\n".join(lines)
    for part in ("RagTokenForGeneration", "question_encoder (DPRQuestionEncoder)", "generator (BartForConditional",
                 f"Parameters: {untouched().count_params():,}", f"not trainable: {V}"):  # fmt: skip
        assert part in text
    more = []
    untouched().summary(print_fn=more.append, expand_nested=True, show_trainable=True)
    assert len(more) == len(lines) + len(untouched().weights)
    assert any("fc1.weight [learns]" in line and "(12, 8)" in line for line in more)


def test_what_keras_cannot_have_is_refused_with_the_way_out():
    model = untouched()
    for name in ("loss", "metrics"):
        with pytest.raises(ValueError, match=f"{name} must be left out"):
            model.compile("adam", **{name: "mse"})
    with pytest.raises(ValueError, match="save_pretrained"):
        model.save("model.keras")
    with pytest.raises(ValueError, match="max_shard_size"):
        model.save_weights("w.safetensors", max_shard_size="1GB")
    bare = build(RagModel)
    bare.compile("adam")
    with pytest.raises(TypeError, match="has no loss"):
        bare.fit(data(), verbose=0)
    model.compile("adam")
    with pytest.raises(ValueError, match="labels must be given"):
        model.fit(tf.data.Dataset.from_tensor_slices({"input_ids": QUESTIONS}).batch(2), verbose=0)
    assert model.config is not None and isinstance(model.config.to_dict()["generator"], dict)


# What becomes of each public member of keras.Model.
MEMBERS = {
    # answered by the networks
    "networks": """
        call compile dtype evaluate fit load_weights losses make_test_function make_train_function metrics
        non_trainable_variables non_trainable_weights predict_step save_weights set_weights summary
        test_step train_on_batch train_step trainable trainable_variables trainable_weights variables weights
    """.split(),
    # Keras' own, which asks the former, or itself says that a subclass has no such thing
    "keras": """
        add_loss add_metric build build_from_config compile_from_config compiled_loss
        compiled_metrics compute_dtype compute_mask compute_metrics
        compute_output_shape compute_output_spec count_params distribute_reduction_method
        distribute_strategy dtype_policy from_config get_build_config
        get_compile_config get_config get_metrics_result get_quantization_layer_structure
        get_state_tree get_weights input input_dtype input_spec jit_compile layers loss
        make_predict_function metrics_names metrics_variables name output path predict
        predict_on_batch quantization_mode quantized_build quantized_call rematerialized_call
        reset_metrics run_eagerly set_state_tree supports_masking symbolic_call test_on_batch
        variable_dtype
    """.split(),
    "refused": list(REFUSED),
}


def test_every_public_member_of_keras_model_is_supported_delegated_or_refused():
    kind_of = {name: kind for kind, names in MEMBERS.items() for name in names}
    assert len(kind_of) == sum(map(len, MEMBERS.values()))
    public = {name for name in dir(keras.Model) if not name.startswith("_")}
    assert public - set(kind_of) == set(), "keras.Model has new members: what becomes of them?"
    classes = type(untouched()).__mro__
    ours = {name for each in classes[: classes.index(keras.Model)] for name in vars(each)}
    assert {name for name in public if (name in ours) == (kind_of[name] == "keras")} == set()


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_layers_of_keras_is_refused_with_another_way(name):
    message = f"RagTokenForGeneration has no {name}: {REFUSED[name]}"
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(untouched(), name)("int8")


WEIGHTS = np.array([1.0, 9.0])
INPUTS = {"input_ids": QUESTIONS, "attention_mask": MASK}


@pytest.mark.parametrize("settings", [{}, {"retriever_loss": "emdr2"}])
def test_weights_of_questions_count_wherever_they_stand(settings):
    model = build()
    model.compile(keras.optimizers.SGD(0.0), **settings)

    def losses(*data, **options):
        return model.evaluate(*data, verbose=0, return_dict=True, **options)

    alike = losses(EXAMPLES)
    wanted = losses(INPUTS, LABELS, sample_weight=WEIGHTS)
    assert all(wanted[name] != pytest.approx(alike[name], rel=1e-3) for name in alike)
    column = WEIGHTS[:, None]
    for found in (
        losses(INPUTS, LABELS, sample_weight=column),
        losses(EXAMPLES, sample_weight=WEIGHTS),
        losses(tf.data.Dataset.from_tensors((EXAMPLES, None, column))),
        model.train_on_batch(EXAMPLES, sample_weight=WEIGHTS, return_dict=True),
    ):
        assert found == pytest.approx(wanted, rel=1e-6)
    validation = (EXAMPLES, None, WEIGHTS)
    options = {"validation_data": validation, "shuffle": False, "verbose": 0}
    history = model.fit(EXAMPLES, sample_weight=column, **options).history
    for name, value in wanted.items():
        assert history[name] == pytest.approx([value], rel=1e-6)
        assert history[f"val_{name}"] == pytest.approx([value], rel=1e-6)


def test_weights_that_are_not_of_questions_are_refused():
    model = untouched()
    model.compile(keras.optimizers.SGD(0.0))
    for weights in (np.ones(LABELS.shape), np.ones(3), np.ones(1)):
        with pytest.raises(ValueError, match=r"sample_weight must hold a weight for each question"):
            model.train_on_batch(EXAMPLES, sample_weight=weights)
    for call in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match="class_weight must be left out"):
            call(INPUTS, LABELS, class_weight={0: 1.0})
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="sample_weight must come with labels"):
            call(INPUTS, sample_weight=WEIGHTS)
        theirs = inspect.signature(getattr(keras.Model, call.__name__)).parameters
        ours = inspect.signature(getattr(type(model), call.__name__)).parameters
        assert [(each.name, each.default) for each in ours.values()] == [
            (each.name, each.default) for each in theirs.values()
        ]


def test_what_is_told_not_to_learn_does_not():
    model = build()
    everything, names = len(model.trainable_variables), [name for name, _ in model._named()]
    model.trainable = False
    assert (
        model.trainable_variables == model.trainable_weights == [] and not model.generator.trainable
    )
    assert (
        len(model.non_trainable_variables) == len(names)
        and model.num_parameters(only_trainable=True) == 0
    )
    before = model.get_weights()
    model.compile(keras.optimizers.AdamW(1e-2))
    with pytest.warns(UserWarning, match="no trainable weights"):
        model.fit(data(), verbose=0)
    assert all(map(np.array_equal, before, model.get_weights()))
    model.trainable = True
    assert len(model.trainable_variables) == everything
    model.question_encoder.trainable = model.generator.model.encoder.trainable = False
    model.compile(keras.optimizers.AdamW(1e-2))
    model.fit(data(), verbose=0)
    moved = {
        name
        for name, old, new in zip(names, before, model.get_weights(), strict=True)
        if (old != new).any()
    }
    assert any("decoder" in name for name in moved) and "rag.generator.model.shared.weight" in moved
    assert not any("question_encoder" in name or ".encoder." in name for name in moved)


def test_variables_are_told_apart_by_the_names_of_checkpoints():
    model = build()
    named = dict(model.named_parameters())
    assert all(
        named[each.path] is each and each.name == f"{each.path}:0" for each in model.variables
    )
    assert {
        "rag.generator.model.shared.weight",
        "rag.generator.model.encoder.layers.0.fc1.bias",
    } <= {each.path for each in model.trainable_variables}
    optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "norm"])
    model.compile(optimizer)
    model.train_on_batch(EXAMPLES)
    decays = {each.path for each in model.trainable_variables if optimizer._use_weight_decay(each)}
    assert decays == {name for name in decays if not name.endswith("bias") and "norm" not in name}
    assert "rag.generator.model.shared.weight" in decays
    model.resize_token_embeddings(V + 3)
    tied = ("embed_tokens.weight", "lm_head.weight")
    assert {each.path for each in model.variables} == {
        name for name in named if not name.endswith(tied)
    }


COPIES = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]


@pytest.mark.parametrize("again", COPIES)
def test_copies_keep_the_precision_policy_and_the_name(again):
    model = build()
    model.dtype_policy = "mixed_bfloat16"
    model.name = "answers"
    other = again(model)
    assert other.dtype_policy.name == "mixed_bfloat16" and other.name == "answers"
    assert other(**EXAMPLES).logits.dtype == tf.bfloat16


@pytest.mark.parametrize("again", COPIES)
def test_copies_have_weights_and_graphs_of_their_own(again):
    model = untouched()
    # there are graphs to leave behind
    model.generate(input_ids=QUESTIONS, attention_mask=MASK, max_length=4)
    other = again(model)
    assert type(other) is type(model) and other.retriever is retrieve
    np.testing.assert_array_equal(other(**EXAMPLES).loss, model(**EXAMPLES).loss)
    assert other.generator.lm_head.weight is other.generator.model.shared.weight
    assert [each.path for each in other.variables] == [each.path for each in model.variables]
    other.generator.model.shared.weight.assign(3 * other.generator.model.shared.weight)
    assert not np.allclose(other(**EXAMPLES).loss, model(**EXAMPLES).loss)
    encoder = again(model.question_encoder)
    np.testing.assert_array_equal(
        encoder(QUESTIONS, MASK)[0], model.question_encoder(QUESTIONS, MASK)[0]
    )


def test_a_loop_of_ones_own_may_add_the_models_losses():
    model = untouched()
    assert model.losses == []
    assert float(model(**EXAMPLES, reduce_loss=True).loss + sum(model.losses)) > 0


def test_a_dataset_of_columns_is_fit_directly():
    from datasets import Dataset

    columns = {name: values.tolist() for name, values in EXAMPLES.items()}
    rows = Dataset.from_dict(columns).to_tf_dataset(columns=list(columns), batch_size=2)
    model = build()
    model.compile("sgd")
    expected = model.evaluate(data(repeat=1), verbose=0)
    assert model.fit(rows, verbose=0).history["loss"] == pytest.approx([expected], rel=1e-4)
