"""rag_torch gives what transformers 4.37.2 gave.

Forward passes, losses, the tokens of every recorded generation.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conformance.cases import contexts, questions, targets
from conformance.forward_cases import FORWARD_SEED, LOSS_MODELS, forward_cases, loss_cases
from conformance.generation_cases import BATCH, allowed_tokens, generation_cases, raise_every_third
from conformance.mismatches import compare
from tests.support.golden_models import build, context_encoder, tensors, toy_retriever

GOLDEN = Path(__file__).parents[2] / "conformance" / "golden"
DTYPES = {"float64": (torch.float64, 1e-10), "float32": (torch.float32, 1e-5)}


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, np.ndarray]]:
    return {name: dict(np.load(GOLDEN / f"forward_{name}.npz")) for name in DTYPES}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on arrays as small as these, threads only wait for each other
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def check(
    expected: dict[str, np.ndarray], actual: dict[str, Any], prefix: str, tolerance: float
) -> None:
    wanted = {key: array for key, array in expected.items() if key.startswith(prefix)}
    found = {key: np.asarray(array) for key, array in actual.items() if key in wanted}
    assert wanted
    assert [str(mismatch) for mismatch in compare(wanted, found, tolerance)] == []


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("head", ["token", "sequence"])
@pytest.mark.parametrize("model_name", LOSS_MODELS)
def test_losses(model_name: str, head: str, precision: str, recorded: Any) -> None:
    dtype, tolerance = DTYPES[precision]
    model, rows = build(model_name, head, FORWARD_SEED, dtype, n_docs=3), []
    for case in loss_cases(head):
        model.config.label_smoothing = case["label_smoothing"]
        arguments = tensors(contexts(model_name, "loss", BATCH, case["n_docs"]), dtype)
        arguments["labels"] = torch.tensor(targets(model_name, case["target"], BATCH))
        arguments["n_docs"] = case["n_docs"]
        if head == "sequence":
            arguments["exclude_bos_score"] = case["exclude_bos_score"]
        each, total = (
            model(**arguments, reduce_loss=reduce_loss).loss for reduce_loss in (False, True)
        )
        rows.append([*each.tolist(), total.item()])
    name = f"loss/{model_name}/{head}"
    check(recorded[precision], {name: np.array(rows, dtype=precision)}, name, tolerance)


def forward(case: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    model = build(case["model"], case["head"], FORWARD_SEED, dtype, case["n_docs"])
    ids = torch.tensor(targets(case["model"], case["target"], BATCH))
    arguments: dict[str, Any] = dict(case["arguments"])
    if case["source"] == "retriever":
        model.set_retriever(toy_retriever(case["model"], dtype))
        question = questions(case["model"], "forward", BATCH)
        arguments.update(
            input_ids=torch.tensor(question[0]), attention_mask=torch.tensor(question[1])
        )
        if case["context_encoder"]:
            model.set_context_encoder_for_training(context_encoder(case["model"], dtype))
    else:
        arguments.update(tensors(contexts(case["model"], "forward", BATCH, case["n_docs"]), dtype))
    if case["decoder_mask"]:
        arguments["decoder_attention_mask"] = (ids != model.config.generator.pad_token_id).long()
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
    model: Any, case: dict[str, Any], arguments: dict[str, Any], ids: torch.Tensor
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


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("case", forward_cases(), ids=lambda case: case["name"])
def test_forward(case: dict[str, Any], precision: str, recorded: Any) -> None:
    dtype, tolerance = DTYPES[precision]
    check(recorded[precision], forward(case, dtype), f"{case['name']}:", tolerance)


@cache
def generator(model_name: str, head: str, seed: int, n_docs: int, config: str) -> Any:
    """One model for many generations, none of which may leave a trace in it."""
    return build(model_name, head, seed, torch.float32, n_docs, **json.loads(config))


def generate(case: dict[str, Any]) -> list[list[int]]:
    model_name, dtype, options = case["model"], torch.float32, dict(case["options"])
    model = generator(
        model_name, case["head"], case["seed"], case["n_docs"], json.dumps(case["config"])
    )
    model.set_retriever(toy_retriever(model_name, dtype) if case["source"] == "retriever" else None)
    if "prefix_allowed_tokens_fn" in options:
        vocabulary = model.config.generator.vocab_size
        options["prefix_allowed_tokens_fn"] = allowed_tokens(
            options["prefix_allowed_tokens_fn"], vocabulary
        )
    if "logits_processor" in options:
        options["logits_processor"] = [raise_every_third]
    if case["source"] == "retriever":
        question = questions(model_name, case["name"], BATCH)
        options.update(
            input_ids=torch.tensor(question[0]), attention_mask=torch.tensor(question[1])
        )
    else:
        options.update(tensors(contexts(model_name, case["name"], BATCH, case["n_docs"]), dtype))
    return model.generate(**options).tolist()


GENERATIONS = json.loads((GOLDEN / "generations.json").read_text())
GROUPS = sorted({(case["model"], case["head"]) for case in generation_cases()})


def test_the_catalogue_is_the_recorded_one() -> None:
    assert [case["name"] for case in generation_cases()] == list(GENERATIONS)
    assert len(GENERATIONS) >= 300
    varied = {tuple(ids) for found in GENERATIONS.values() for ids in found}
    assert len(varied) >= 300


@pytest.mark.parametrize(("model_name", "head"), GROUPS)
def test_tokens_are_identical_in_every_recorded_generation(model_name: str, head: str) -> None:
    differing = {}
    for case in generation_cases():
        if (case["model"], case["head"]) == (model_name, head):
            found = generate(case)
            if found != GENERATIONS[case["name"]]:
                differing[case["name"]] = (case["options"], GENERATIONS[case["name"]], found)
    assert differing == {}
