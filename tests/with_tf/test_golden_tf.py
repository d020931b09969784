"""rag_tf gives what transformers 4.37.2 gave.

Forward passes, losses, the tokens of every recorded generation.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from conformance import record_decoder_prompts as prompted
from conformance.cases import contexts, questions, targets
from conformance.forward_cases import FORWARD_SEED, LOSS_MODELS, forward_cases, loss_cases
from conformance.generation_cases import BATCH, allowed_tokens, generation_cases
from conformance.mismatches import compare
from rag_tf.graph import Graph
from rag_tf.graph import loop as graph_loop
from tests.support.golden_models_tf import build, context_encoder, tensors, toy_retriever

GOLDEN = Path(__file__).parents[2] / "conformance" / "golden"
TOLERANCES = {"float64": 1e-10, "float32": 1e-5}


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, np.ndarray]]:
    return {name: dict(np.load(GOLDEN / f"forward_{name}.npz")) for name in TOLERANCES}


def check(
    expected: dict[str, np.ndarray], actual: dict[str, Any], prefix: str, tolerance: float
) -> None:
    wanted = {key: array for key, array in expected.items() if key.startswith(prefix)}
    found = {key: np.asarray(array) for key, array in actual.items() if key in wanted}
    assert wanted
    assert [str(mismatch) for mismatch in compare(wanted, found, tolerance)] == []


@pytest.fixture(autouse=True)
def float64_without_graphs(request: Any, monkeypatch: Any) -> None:
    """Function by function in float64, as graphs in float32.

    Neither may change a number, and tracing takes seconds.
    """
    if (
        getattr(request.node, "callspec", None)
        and request.node.callspec.params.get("precision") == "float64"
    ):
        monkeypatch.setattr(Graph, "__call__", lambda graph, *args: graph.function(*args))


@cache
def logits(
    model_name: str, precision: str, n_docs: int, target: str
) -> tuple[tf.Tensor, tf.Tensor]:
    """Logits and document scores of the loss cases, which both heads and all switches share."""
    model = build(model_name, "token", FORWARD_SEED, precision, n_docs)
    arguments = tensors(contexts(model_name, "loss", BATCH, n_docs), precision)
    outputs = model(**arguments, labels=tf.constant(targets(model_name, target, BATCH)))
    return outputs.logits, outputs.doc_scores


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("head", ["token", "sequence"])
@pytest.mark.parametrize("model_name", LOSS_MODELS)
def test_losses(model_name: str, head: str, precision: str, recorded: Any) -> None:
    model, rows = build(model_name, head, FORWARD_SEED, precision, n_docs=3), []
    for case in loss_cases(head):
        labels = tf.constant(targets(model_name, case["target"], BATCH))
        given = (*logits(model_name, precision, case["n_docs"], case["target"]), labels)
        switches = {"epsilon": case["label_smoothing"], "n_docs": case["n_docs"]}
        if head == "sequence":
            switches["exclude_bos_score"] = case["exclude_bos_score"]
        each, total = (
            model.get_nll(*given, reduce_loss, **switches) for reduce_loss in (False, True)
        )
        rows.append([*each.numpy().tolist(), float(total)])
    name = f"loss/{model_name}/{head}"
    check(recorded[precision], {name: np.array(rows, dtype=precision)}, name, TOLERANCES[precision])


def forward(case: dict[str, Any], dtype: str) -> dict[str, Any]:
    model = build(case["model"], case["head"], FORWARD_SEED, dtype, case["n_docs"])
    ids = targets(case["model"], case["target"], BATCH)
    arguments: dict[str, Any] = dict(case["arguments"])
    if case["source"] == "retriever":
        model.set_retriever(toy_retriever(case["model"], dtype))
        question = questions(case["model"], "forward", BATCH)
        arguments.update(
            input_ids=tf.constant(question[0]), attention_mask=tf.constant(question[1])
        )
        if case["context_encoder"]:
            model.set_context_encoder_for_training(context_encoder(case["model"], dtype))
    else:
        arguments.update(tensors(contexts(case["model"], "forward", BATCH, case["n_docs"]), dtype))
    if case["decoder_mask"]:
        arguments["decoder_attention_mask"] = tf.constant(
            ids != model.config.generator.pad_token_id, tf.int64
        )
    ids = tf.constant(ids)
    if case["steps"] or case["reuse"]:
        return reused(model, case, arguments, ids)
    outputs = model(**arguments, **{"labels" if case["labels"] else "decoder_input_ids": ids})
    found = {}
    for field, value in outputs.items():
        if field != "past_key_values":
            values = (
                {f".{place}": item for place, item in enumerate(value)}
                if isinstance(value, tuple)
                else {"": value}
            )
            found.update({f"{case['name']}:{field}{place}": item for place, item in values.items()})
    return found


def reused(
    model: Any, case: dict[str, Any], arguments: dict[str, Any], ids: tf.Tensor
) -> dict[str, Any]:
    """Encoder states, and for steps the cache, of a first call handed to later ones."""
    first = model(**arguments, decoder_input_ids=ids[:, :2], use_cache=True)
    arguments.pop("context_input_ids")
    arguments["encoder_outputs"] = (first.generator_enc_last_hidden_state,)
    found, past = {f"{case['name']}:logits0": first.logits}, first.past_key_values
    for step, piece in enumerate(
        [ids[:, 2:3], ids[:, 3:4]] if case["steps"] else [ids[:, :4]], start=1
    ):
        cache = {"past_key_values": past} if case["steps"] else {}
        out = model(**arguments, **cache, decoder_input_ids=piece, use_cache=True)
        found[f"{case['name']}:logits{step}"], past = out.logits, out.past_key_values
    return found


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("case", forward_cases(), ids=lambda case: case["name"])
def test_forward(case: dict[str, Any], precision: str, recorded: Any) -> None:
    check(recorded[precision], forward(case, precision), f"{case['name']}:", TOLERANCES[precision])


def raise_every_third(ids: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
    """As conformance.generation_cases.raise_every_third, which is for PyTorch."""
    third = tf.range(scores.shape[1]) % 3 == ids.shape[-1] % 3
    return scores + tf.where(third, 1.5, 0.0)


def generate(case: dict[str, Any]) -> list[list[int]]:
    model_name, options = case["model"], dict(case["options"])
    model = build(
        model_name, case["head"], case["seed"], "float32", case["n_docs"], **case["config"]
    )
    model.set_retriever(
        toy_retriever(model_name, "float32") if case["source"] == "retriever" else None
    )
    if "prefix_allowed_tokens_fn" in options:
        rule = allowed_tokens(
            options["prefix_allowed_tokens_fn"], model.config.generator.vocab_size
        )
        # NumPy's integers: the rule looks at them for every token of the vocabulary
        options["prefix_allowed_tokens_fn"] = lambda batch_id, ids: rule(batch_id, ids.numpy())
    if "logits_processor" in options:
        options["logits_processor"] = [raise_every_third]
    if case["source"] == "retriever":
        question = questions(model_name, case["name"], BATCH)
        options.update(input_ids=tf.constant(question[0]), attention_mask=tf.constant(question[1]))
    else:
        options.update(
            tensors(contexts(model_name, case["name"], BATCH, case["n_docs"]), "float32")
        )
    return model.generate(**options).numpy().tolist()


GENERATIONS = json.loads((GOLDEN / "generations.json").read_text())
PROMPTED = json.loads((GOLDEN / "decoder_prompts.json").read_text())
GROUPS = sorted({(case["model"], case["head"]) for case in generation_cases()})


@pytest.mark.parametrize(("model_name", "head"), GROUPS)
def test_tokens_are_identical_in_every_recorded_generation(
    model_name: str, head: str, monkeypatch: Any
) -> None:
    differing, count = {}, 0
    # Making a loop's graph takes seconds, for each set of options: one in twenty of one model will
    # do.
    in_graph = model_name == "bart_scaled"
    monkeypatch.setattr(graph_loop._Search, "worth", lambda *args: in_graph and count % 20 == 0)
    # weights are written once a seed
    for case in sorted(generation_cases(), key=lambda case: case["seed"]):
        if (case["model"], case["head"]) == (model_name, head):
            found, count = generate(case), count + 1
            if found != GENERATIONS[case["name"]]:
                differing[case["name"]] = (case["options"], GENERATIONS[case["name"]], found)
    assert differing == {} and count > 4


@pytest.mark.parametrize("model_name", prompted.MODELS)
def test_tokens_are_identical_after_every_recorded_prompt(model_name: str) -> None:
    model = build(model_name, "token", prompted.SEED, "float32", 1)
    given = tensors(contexts(model_name, "given", prompted.BATCH, 1), "float32")
    for kind, prompt in prompted.prompts(model.generator.config.decoder_start_token_id).items():
        for i, options in enumerate(prompted.CASES):
            for use_cache in (True, False):
                made = model.generate(
                    **given, decoder_input_ids=prompt, use_cache=use_cache, **options
                )
                assert made.numpy().tolist() == PROMPTED[f"{model_name}/{kind}/{i}"], (
                    kind,
                    options,
                    use_cache,
                )


def test_a_prompt_is_given_to_the_search_of_every_document() -> None:
    model = build(prompted.MODELS[0], "sequence", prompted.SEED, "float32", 2)
    given = tensors(contexts(prompted.MODELS[0], "given", 1, 2), "float32")
    made = model.generate(
        **given, decoder_input_ids=prompted.prompts(2)["none"][:1], **prompted.SEQUENCE_CASE
    )
    assert made.numpy().tolist() == PROMPTED["sequence"]
