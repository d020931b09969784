"""Record golden arrays from the reference, transformers 4.37.2 with PyTorch. Run as a module, from
the repository root:

pip install -r conformance/requirements-oracle.txt
python -m conformance.record_oracle --out conformance/golden
"""

import argparse
import json
import platform
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from conformance.cases import contexts, questions, targets
from conformance.forward_cases import FORWARD_SEED, LOSS_MODELS, forward_cases, loss_cases
from conformance.generation_cases import BATCH, allowed_tokens, generation_cases, raise_every_third
from conformance.oracle import ToyRetriever, build, context_encoder, pure_float64, tensors

DTYPES = {"float64": torch.float64, "float32": torch.float32}
FLOAT32 = re.compile("loss|logits|doc_scores|model_given")


def record_losses(dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Losses by head and model.

    A row per case of the grid, holding each question's loss and their reduced sum.
    """
    losses = {}
    for model_name in LOSS_MODELS:
        for head in ("token", "sequence"):
            rows = [_losses(model_name, head, case, dtype) for case in loss_cases(head)]
            losses[f"loss/{model_name}/{head}"] = np.array(rows)
    return losses


def _losses(model_name: str, head: str, case: dict[str, Any], dtype: torch.dtype) -> list[float]:
    model = build(
        model_name,
        head,
        FORWARD_SEED,
        dtype,
        n_docs=case["n_docs"],
        label_smoothing=case["label_smoothing"],
    )
    labels = torch.tensor(targets(model_name, case["target"], BATCH))
    arguments = tensors(contexts(model_name, "loss", BATCH, case["n_docs"]), dtype)
    if head == "sequence":
        arguments["exclude_bos_score"] = case["exclude_bos_score"]
    row: list[float] = []
    for reduce_loss in (False, True):
        loss = model(**arguments, labels=labels, reduce_loss=reduce_loss).loss
        row += loss.reshape(-1).tolist()
    return row


def record_forward(case: dict[str, Any], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Every array that one forward pass returns, under the case's name."""
    model_name = case["model"]
    n_docs = case["n_docs"]
    model = build(model_name, case["head"], FORWARD_SEED, dtype, n_docs=n_docs)
    ids = torch.tensor(targets(model_name, case["target"], BATCH))
    arguments: dict[str, Any] = dict(case["arguments"])
    if case["source"] == "retriever":
        rag = model
        if case["head"] != "model":
            rag = model.rag
        rag.retriever = ToyRetriever(model_name, model.config)
        arguments.update(_questions(model_name, "forward"))
        if case["context_encoder"]:
            rag.context_encoder_training = True
            rag.ctx_encoder = context_encoder(model_name, dtype)
        # the reference hands these on to no part, but parts obey their configs
        if "output_hidden_states" in arguments:
            for part in rag.modules():
                if hasattr(part, "config"):
                    part.config.output_hidden_states = part.config.output_attentions = True
    else:
        arguments.update(tensors(contexts(model_name, "forward", BATCH, n_docs), dtype))
    if case["decoder_mask"]:
        pad = model.config.generator.pad_token_id
        arguments["decoder_attention_mask"] = (ids != pad).long()
    if case["steps"] or case["reuse"]:
        return _reused(model, case, arguments, ids)
    if case["labels"]:
        arguments["labels"] = ids
    else:
        arguments["decoder_input_ids"] = ids
    return _arrays(case["name"], model(**arguments), case["keep"])


def _questions(model_name: str, key: str) -> dict[str, torch.Tensor]:
    ids, mask = questions(model_name, key, BATCH)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _reused(
    model: Any, case: dict[str, Any], arguments: dict[str, Any], ids: torch.Tensor
) -> dict[str, np.ndarray]:
    """Encoder states, and for steps the cache, of a first call handed to later ones."""
    first = model(**arguments, decoder_input_ids=ids[:, :2], use_cache=True)
    arguments.pop("context_input_ids")
    arguments["encoder_outputs"] = (first.generator_enc_last_hidden_state,)
    logits = {f"{case['name']}:logits0": first.logits.numpy()}
    out = first
    pieces = [ids[:, :4]]
    if case["steps"]:
        pieces = [ids[:, 2:3], ids[:, 3:4]]
    for step, piece in enumerate(pieces, start=1):
        if case["steps"]:
            arguments["past_key_values"] = out.past_key_values
        out = model(**arguments, decoder_input_ids=piece, use_cache=True)
        logits[f"{case['name']}:logits{step}"] = out.logits.numpy()
    return logits


def _arrays(name: str, outputs: Any, keep: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    arrays = {}
    for field, value in outputs.items():
        if field == "past_key_values" or not (keep is None or field in keep):
            continue
        named = {f"{name}:{field}": value}
        if isinstance(value, tuple):
            named = {f"{name}:{field}.{place}": item for place, item in enumerate(value)}
        # context_input_ids is (None,) where not asked for: D21
        if all(torch.is_tensor(item) for item in named.values()):
            arrays |= {key: item.numpy() for key, item in named.items()}
    return arrays


def record_generation(case: dict[str, Any], dtype: torch.dtype) -> list[list[int]]:
    """The token ids that one generation gave."""
    model_name = case["model"]
    options = dict(case["options"])
    model = build(
        model_name, case["head"], case["seed"], dtype, n_docs=case["n_docs"], **case["config"]
    )
    vocabulary = model.config.generator.vocab_size
    if "prefix_allowed_tokens_fn" in options:
        rule = options["prefix_allowed_tokens_fn"]
        options["prefix_allowed_tokens_fn"] = allowed_tokens(rule, vocabulary)
    if "logits_processor" in options:
        options["logits_processor"] = transformers.LogitsProcessorList([raise_every_third])
    if case["source"] == "retriever":
        model.rag.retriever = ToyRetriever(model_name, model.config)
        options.update(_questions(model_name, case["name"]))
    else:
        options.update(tensors(contexts(model_name, case["name"], BATCH, case["n_docs"]), dtype))
    return model.generate(**options).tolist()


def write_forward(out: Path, about: dict[str, Any]) -> None:
    """Record forward passes and losses, whole in float64 and their results in float32."""
    for name, dtype in DTYPES.items():
        with pure_float64(dtype is torch.float64):
            arrays = record_losses(dtype)
            for case in forward_cases():
                arrays.update(record_forward(case, dtype))
        if name == "float32":
            arrays = {
                key: array.astype(np.float32)
                for key, array in arrays.items()
                if FLOAT32.search(key)
            }
        np.savez_compressed(out / f"forward_{name}.npz", **arrays)
        about[f"arrays_{name}"] = len(arrays)


def write_generations(out: Path, about: dict[str, Any]) -> None:
    """Record generations in float32, and name those that float64 would change."""
    cases = generation_cases()
    tokens = {case["name"]: record_generation(case, torch.float32) for case in cases}
    with pure_float64(True):
        again = {case["name"]: record_generation(case, torch.float64) for case in cases}
    lines = (
        f"{json.dumps(name)}: {json.dumps(ids, separators=(',', ':'))}"
        for name, ids in tokens.items()
    )
    (out / "generations.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    about["generations"] = len(tokens)
    about["sequences"] = sum(len(ids) for ids in tokens.values())
    about["generations_that_float64_changes"] = sorted(
        name for name in tokens if tokens[name] != again[name]
    )


def main() -> None:
    """Record what is asked for into a folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the golden files")
    parser.add_argument(
        "--only", choices=("forward", "generations"), help="record one part, keep the other's files"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "about.json"
    about = {}
    if path.exists():
        about = json.loads(path.read_text())
    about["versions"] = {
        **{module.__name__: module.__version__ for module in (transformers, torch, np)},
        "python": platform.python_version(),
    }
    with torch.no_grad():
        if options.only != "generations":
            write_forward(options.out, about)
        if options.only != "forward":
            write_generations(options.out, about)
    path.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    main()
