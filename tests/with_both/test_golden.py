"""Both backends give what transformers 4.37.2 gave.

Forward passes, losses, the tokens of every recorded generation.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance import record_decoder_prompts as prompted
from conformance.cases import contexts, questions, targets
from conformance.forward_cases import FORWARD_SEED, LOSS_MODELS, forward_cases, loss_cases
from conformance.generation_cases import BATCH, allowed_tokens, generation_cases
from conformance.mismatches import compare
from rag_core.backends import to_numpy

GOLDEN = Path(__file__).parents[2] / "conformance" / "golden"
TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
GENERATIONS = json.loads((GOLDEN / "generations.json").read_text())
PROMPTED = json.loads((GOLDEN / "decoder_prompts.json").read_text())
GROUPS = sorted({(case["model"], case["head"]) for case in generation_cases()})


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, np.ndarray]]:
    return {name: dict(np.load(GOLDEN / f"forward_{name}.npz")) for name in TOLERANCES}


@pytest.fixture(autouse=True)
def no_grad(request: Any) -> Iterator[None]:
    if "backend" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("golden").without_gradients():
        yield


@pytest.fixture(autouse=True)
def float64_without_graphs(request: Any, monkeypatch: Any) -> None:
    """Function by function in float64, as graphs in float32.

    Neither may change a number, and tracing takes seconds.
    """
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("backend") == "tf" and parameters.get("precision") == "float64":
        from rag_tf.graph import Graph

        monkeypatch.setattr(Graph, "__call__", lambda graph, *args: graph.function(*args))


def check(
    expected: dict[str, np.ndarray], actual: dict[str, Any], prefix: str, tolerance: float
) -> None:
    expected = {key: array for key, array in expected.items() if key.startswith(prefix)}
    actual = {key: np.asarray(array) for key, array in actual.items() if key in expected}
    assert expected
    assert [str(mismatch) for mismatch in compare(expected, actual, tolerance)] == []


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("head", ["token", "sequence"])
@pytest.mark.parametrize("model_name", LOSS_MODELS)
def test_losses(
    golden: Any, backend: str, model_name: str, head: str, precision: str, recorded: Any
) -> None:
    model = golden.build(model_name, head, FORWARD_SEED, precision, n_docs=3)
    losses = {"torch": losses_of_calls, "tf": losses_of_logits}[backend]
    rows = []
    for case in loss_cases(head):
        switches = {"n_docs": case["n_docs"]}
        if head == "sequence":
            switches["exclude_bos_score"] = case["exclude_bos_score"]
        each, total = losses(golden, model, precision, {**case, "model": model_name}, switches)
        rows.append([*to_numpy(each).tolist(), float(total)])
    name = f"loss/{model_name}/{head}"
    check(recorded[precision], {name: np.array(rows, dtype=precision)}, name, TOLERANCES[precision])


def losses_of_calls(
    golden: Any, model: Any, precision: str, case: dict[str, Any], switches: dict[str, Any]
) -> list[Any]:
    """The loss of each question, and the reduced one, of whole forward passes."""
    given = golden.tensors(contexts(case["model"], "loss", BATCH, case["n_docs"]), precision)
    given["labels"] = golden.integers(targets(case["model"], case["target"], BATCH))
    model.config.label_smoothing = case["label_smoothing"]
    return [model(**given, **switches, reduce_loss=reduced).loss for reduced in (False, True)]


def losses_of_logits(
    golden: Any, model: Any, precision: str, case: dict[str, Any], switches: dict[str, Any]
) -> list[Any]:
    """The same of logits that all switches share: a forward pass of TensorFlow takes long."""
    given = shared_logits(golden, case["model"], precision, case["n_docs"], case["target"])
    switches["epsilon"] = case["label_smoothing"]
    return [model.get_nll(*given, reduced, **switches) for reduced in (False, True)]


@cache
def shared_logits(
    golden: Any, model_name: str, precision: str, n_docs: int, target: str
) -> tuple[Any, Any, Any]:
    """Logits, document scores and labels of the loss cases of either head."""
    model = golden.build(model_name, "token", FORWARD_SEED, precision, n_docs)
    given = golden.tensors(contexts(model_name, "loss", BATCH, n_docs), precision)
    labels = golden.integers(targets(model_name, target, BATCH))
    outputs = model(**given, labels=labels)
    return outputs.logits, outputs.doc_scores, labels


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("case", forward_cases(), ids=lambda case: case["name"])
def test_forward(golden: Any, case: dict[str, Any], precision: str, recorded: Any) -> None:
    outputs = forward(golden, case, precision)
    check(recorded[precision], outputs, f"{case['name']}:", TOLERANCES[precision])


def forward(golden: Any, case: dict[str, Any], precision: str) -> dict[str, Any]:
    model = golden.build(case["model"], case["head"], FORWARD_SEED, precision, case["n_docs"])
    target = targets(case["model"], case["target"], BATCH)
    arguments = {**case["arguments"], **inputs(golden, model, case, "forward", precision)}
    if case["context_encoder"]:
        encoder = golden.context_encoder(case["model"], precision)
        model.set_context_encoder_for_training(encoder)
    if case["decoder_mask"]:
        mask = (target != model.config.generator.pad_token_id).astype(np.int64)
        arguments["decoder_attention_mask"] = golden.integers(mask)
    ids = golden.integers(target)
    if case["steps"] or case["reuse"]:
        return reused(model, case, arguments, ids)
    outputs = model(**arguments, **{"labels" if case["labels"] else "decoder_input_ids": ids})
    arrays = {}
    for field, value in outputs.items():
        if isinstance(value, tuple) and field != "past_key_values":
            for place, layer in enumerate(value):
                arrays[f"{case['name']}:{field}.{place}"] = layer
        elif field != "past_key_values":
            arrays[f"{case['name']}:{field}"] = value
    return arrays


def inputs(
    golden: Any, model: Any, case: dict[str, Any], key: str, precision: str
) -> dict[str, Any]:
    """Contexts, or a question with a retriever for it in the model."""
    if case["source"] != "retriever":
        model.set_retriever(None)
        return golden.tensors(contexts(case["model"], key, BATCH, case["n_docs"]), precision)
    model.set_retriever(golden.toy_retriever(case["model"], precision))
    ids, mask = questions(case["model"], key, BATCH)
    return {"input_ids": golden.integers(ids), "attention_mask": golden.integers(mask)}


def reused(model: Any, case: dict[str, Any], arguments: dict[str, Any], ids: Any) -> dict[str, Any]:
    """Encoder states, and for steps the cache, of a first call handed to later ones."""
    first = model(**arguments, decoder_input_ids=ids[:, :2], use_cache=True)
    arguments.pop("context_input_ids")
    arguments["encoder_outputs"] = (first.generator_enc_last_hidden_state,)
    logits, past = {f"{case['name']}:logits0": first.logits}, first.past_key_values
    pieces = [ids[:, 2:3], ids[:, 3:4]] if case["steps"] else [ids[:, :4]]
    for step, piece in enumerate(pieces, start=1):
        kept = {"past_key_values": past} if case["steps"] else {}
        outputs = model(**arguments, **kept, decoder_input_ids=piece, use_cache=True)
        logits[f"{case['name']}:logits{step}"] = outputs.logits
        past = outputs.past_key_values
    return logits


def test_the_catalogue_is_the_recorded_one() -> None:
    assert [case["name"] for case in generation_cases()] == list(GENERATIONS)
    assert len(GENERATIONS) >= 300
    varied = {tuple(ids) for rows in GENERATIONS.values() for ids in rows}
    assert len(varied) >= 300


@pytest.mark.parametrize(("model_name", "head"), GROUPS)
def test_tokens_are_identical_in_every_recorded_generation(
    golden: Any, backend: str, model_name: str, head: str, monkeypatch: Any
) -> None:
    differing: dict[str, Any] = {}
    count = 0
    if backend == "tf":
        from rag_tf.graph import loop as graph_loop

        # Making a loop's graph takes seconds, for each set of options: one in twenty of one model
        # will do.
        in_graph = model_name == "bart_scaled"
        monkeypatch.setattr(
            graph_loop._SearchSteps, "is_repeated", lambda *args: in_graph and count % 20 == 0
        )

    @cache
    def model_of(seed: int, n_docs: int, config: str) -> Any:
        """One model for many generations, none of which may leave a trace in it."""
        return golden.build(model_name, head, seed, "float32", n_docs, **json.loads(config))

    # weights are written once a seed
    for case in sorted(generation_cases(), key=lambda case: case["seed"]):
        if (case["model"], case["head"]) == (model_name, head):
            model = model_of(case["seed"], case["n_docs"], json.dumps(case["config"]))
            tokens = generate(golden, model, case)
            count += 1
            if tokens != GENERATIONS[case["name"]]:
                differing[case["name"]] = (case["options"], GENERATIONS[case["name"]], tokens)
    assert differing == {} and count > 4


def generate(golden: Any, model: Any, case: dict[str, Any]) -> list[list[int]]:
    options = dict(case["options"])
    if "prefix_allowed_tokens_fn" in options:
        vocabulary = model.config.generator.vocab_size
        rule = allowed_tokens(options["prefix_allowed_tokens_fn"], vocabulary)
        options["prefix_allowed_tokens_fn"] = golden.heard(rule)
    if "logits_processor" in options:
        options["logits_processor"] = [golden.raise_every_third]
    given = inputs(golden, model, case, case["name"], "float32")
    return to_numpy(model.generate(**given, **options)).tolist()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("model_name", prompted.MODELS)
def test_tokens_are_identical_after_every_recorded_prompt(
    golden: Any, model_name: str, use_cache: bool
) -> None:
    model, given = golden.with_contexts("token", 1, prompted.BATCH, model_name)
    for kind, prompt in prompted.prompts(model.generator.config.decoder_start_token_id).items():
        for i, options in enumerate(prompted.CASES):
            fed = golden.integers(prompt)
            made = model.generate(**given, decoder_input_ids=fed, use_cache=use_cache, **options)
            assert to_numpy(made).tolist() == PROMPTED[f"{model_name}/{kind}/{i}"], (kind, options)


def test_a_prompt_is_given_to_the_search_of_every_document(golden: Any) -> None:
    model, given = golden.with_contexts("sequence", 2, 1, prompted.MODELS[0])
    prompt = prompted.prompts(2)["none"][:1]
    made = model.generate(**given, decoder_input_ids=prompt, **prompted.SEQUENCE_CASE)
    assert to_numpy(made).tolist() == PROMPTED["sequence"]
