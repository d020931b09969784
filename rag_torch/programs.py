"""The networks as programs of torch.export or as ONNX: what runs without this package, or without
Python.

Letters: B questions, Q question length, D vector size, R contexts, S context length, P tokens so
far, H heads, h width of a head, V vocabulary, l layers of the decoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from rag_core.hub import atomic_folder, clear
from rag_core.modeling import Steps
from rag_core.positions import t5_buckets
from rag_torch.attention import KeysValues, key_mask
from rag_torch.bert import PooledEncoder
from rag_torch.decode_state import GrowingCache
from rag_torch.layers import Trace
from rag_torch.quantize import Int8Linear
from rag_torch.seq2seq import Generator
from rag_torch.t5 import T5Stack

_LONGEST = 1 << 16  # of what has no table of positions


def export_program(model: Any, folder: str | Path, *, onnx: bool = False) -> Path:
    """Write question encoder, generator's encoder and one step of its decoder as programs.

    Batch sizes and lengths stay open. Search, marginalisation, tokenizers and index are not in them.
    Files, each with what it takes and gives:

    - `question_encoder`: input_ids, attention_mask (B, Q) int64 -> vectors (B, D)
    - `encoder`: input_ids, attention_mask (R, S) int64 -> cross (l, 2, R, H, S, h), the keys and
      values that every step attends to
    - `step`: tokens (R, 1) int64, attention_mask (R, S), cross, past (l, 2, R, H, P, h) -> logits
      (R, V) of the next token, past (l, 2, R, H, P + 1, h). The first step's past has P = 0.

    Args:
        model: a RAG model, or a generator alone (which has no `question_encoder`).
        folder: where to; it must be empty or not exist.
        onnx: `.onnx` files instead of `.pt2`, which `torch.export.load` reads.

    Returns:
        The folder.

    Raises:
        ImportError: `onnx` without its packages.
        OSError: the folder holds something or can't be written.
        TypeError: networks of other libraries, or of int8.
    """
    generator = getattr(model, "generator", model)
    encoder = getattr(model, "question_encoder", None)
    if isinstance(model, nn.Module) and any(map(_is_int8, model.modules())):
        raise TypeError(
            "model must hold floating-point weights, got a copy of rag_torch.quantized. Export the "
            "model that it was made of"
        )
    if not isinstance(generator, Generator):
        raise TypeError(
            f"model must hold rag_torch's BART or T5, got {type(generator).__name__}. Export it "
            "with its own library's tools"
        )
    if encoder is not None and not isinstance(encoder, PooledEncoder):
        raise TypeError(
            f"model's question_encoder must be rag_torch's, got {type(encoder).__name__}. Export "
            "it with its own library's tools, and model.generator here"
        )
    if onnx:
        _require_onnx()
    target = Path(folder)
    clear(target)
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(
            f"folder {str(folder)!r} is not empty: remove what is in it, or name another folder"
        )
    with _as_served(model, generator), atomic_folder(target) as draft:
        for name, part in _parts(generator, encoder).items():
            program = torch.export.export(
                part.module, part.inputs, dynamic_shapes=part.sizes, strict=False
            )
            if onnx:
                torch.onnx.export(
                    program,
                    f=draft / f"{name}.onnx",
                    input_names=list(part.names),
                    output_names=list(part.gives),
                    dynamo=True,
                    verbose=False,
                )
            else:
                torch.export.save(program, draft / f"{name}.pt2")
    return target


def _is_int8(part: nn.Module) -> bool:
    return isinstance(part, Int8Linear)


class _Part(NamedTuple):
    """A program to be written.

    Attributes:
        module: what it computes.
        inputs: an example.
        sizes: which sizes of each input stay open.
        names, gives: of inputs and outputs.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    sizes: tuple[dict[int, Any], ...]
    names: tuple[str, ...]
    gives: tuple[str, ...]


def _parts(generator: Generator, question_encoder: Any) -> dict[str, _Part]:
    limit = getattr(generator.config, "max_position_embeddings", None) or _LONGEST
    rows, length, past = Dim("rows"), Dim("length", max=limit), Dim("past", min=0, max=limit - 1)
    texts = {0: rows, 1: length}
    # no size of an example may be one that another size has to be, or 0 or 1
    ids, mask = torch.full((3, 7), 2), torch.ones(3, 7, dtype=torch.long)
    reads = ("input_ids", "attention_mask")
    encoder = _Encoder(generator)
    cross = encoder(ids, mask)
    own = cross[:, :, :, :, :5].contiguous()
    steps = (torch.full((3, 1), 2), mask, cross, own)
    step_sizes = ({0: rows}, texts, {2: rows, 4: length}, {2: rows, 4: past})
    parts = {
        "encoder": _Part(encoder, (ids, mask), (texts, texts), reads, ("cross",)),
        "step": _Part(
            _Step(generator),
            steps,
            step_sizes,
            ("tokens", "attention_mask", "cross", "past"),
            ("logits", "new_past"),
        ),
    }
    if question_encoder is not None:
        limit = question_encoder.config.max_position_embeddings
        texts = {0: Dim("questions"), 1: Dim("words", max=limit)}
        module = _QuestionEncoder(question_encoder)
        parts["question_encoder"] = _Part(module, (ids, mask), (texts, texts), reads, ("vectors",))
    return parts


class _QuestionEncoder(nn.Module):
    def __init__(self, encoder: PooledEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(input_ids, attention_mask)[0]


class _Encoder(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.generator.get_encoder()(input_ids, attention_mask).last_hidden_state
        return _stacked(self.generator.get_decoder().cross(states))


class _Step(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self, tokens: Tensor, attention_mask: Tensor, cross: Tensor, past: Tensor
    ) -> tuple[Tensor, Tensor]:
        # not unbind, whose slices would all be outputs of the program's first operation
        layers = range(cross.shape[0])
        cache = GrowingCache([(past[layer, 0], past[layer, 1]) for layer in layers])
        keys_values = [(cross[layer, 0], cross[layer, 1]) for layer in layers]
        trace = Trace(False, False)
        steps = Steps(cache, keys_values, key_mask(attention_mask), trace)
        states = self.generator.get_decoder()(tokens, steps=steps)
        return self.generator._logits(states)[:, 0], _stacked(cache.layers)


def _stacked(layers: list[KeysValues]) -> Tensor:
    """Keys and values of l layers as one tensor, (l, 2, ...)."""
    return torch.stack([torch.stack(pair) for pair in layers])


@contextlib.contextmanager
def _as_served(model: Any, generator: Generator) -> Iterator[None]:
    """Without dropout and gradients, and with T5's biases of any length."""
    modes = [(part, part.training) for part in model.modules()]
    stacks = [part for part in generator.modules() if isinstance(part, T5Stack) and part.block]
    biases = [_open_bias(stack) for stack in stacks]
    try:
        model.eval()
        for stack, bias in zip(stacks, biases, strict=True):
            stack.position_bias = bias  # type: ignore[method-assign]
        with torch.no_grad():
            yield
    finally:
        for stack in stacks:
            del stack.position_bias
        # Part by part: one that its owner keeps from dropout stays so.
        for part, mode in modes:
            part.training = mode


def _open_bias(stack: T5Stack) -> Callable[..., Tensor]:
    """`T5Stack.position_bias` for lengths that are not known yet."""
    _, most = stack.buckets  # keys further away share a bucket
    buckets = t5_buckets(1, 2 * most + 1, *stack.buckets, not stack.decoder, most)
    of_distance = torch.from_numpy(buckets)[0]  # (2 * most + 1,)
    table = stack.block[0].layer[0].SelfAttention.relative_attention_bias

    def position_bias(length: int, keys: int, first: int = 0) -> Tensor:
        distance = torch.arange(keys) - torch.arange(first, first + length)[:, None]  # (T, L)
        place = distance.clamp(-most, most) + most
        return table(of_distance[place]).permute(2, 0, 1)[None]  # (1, H, T, L)

    return position_bias


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "onnx=True needs onnx and onnxscript. Run  pip install 'dualrag[onnx]'"
        ) from error
