"""int8 linear maps: what integers give, row by row; near float32 in a model.

What they cannot do is refused.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from rag_core.demo import material as demo
from rag_torch.quantize import Int8Linear, has_int8, quantized
from tests.support.rag_models import GENERATING, LABELS, QUESTIONS, Retriever, build, given_contexts

needs_int8 = pytest.mark.skipif(not has_int8(), reason="no exact int8 products on this processor")


def rounded(rows):
    """Rows as whole numbers of -127..127, and their scales."""
    scale = (rows.double().abs().amax(dim=-1, keepdim=True) / 127).clamp_min(1e-38)
    return (rows.double() / scale).round(), scale


@needs_int8
@pytest.mark.parametrize("bias", [True, False])
def test_a_map_is_a_product_of_whole_numbers_each_row_by_itself(bias):
    torch.manual_seed(0)
    linear = nn.Linear(40, 24, bias=bias)
    with torch.no_grad():
        linear.weight[3], linear.weight[4] = 0, linear.weight[4] * 1e-20
        linear.weight[5, 7] = 90  # beside it all else in that row is rounded away, and in no other
    x = torch.randn(2, 9, 40)
    x[0, 1], x[0, 2], x[1, 3], x[1, 4, 5] = 0, x[0, 2] * 1e-30, x[1, 3] * 1e20, 300
    (whole, scale), (weight, by) = rounded(x), rounded(linear.weight.detach())
    wanted = (whole @ weight.T) * scale * by[:, 0] + (linear.bias.detach().double() if bias else 0)
    layer = Int8Linear(linear)
    torch.testing.assert_close(layer(x).double(), wanted, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(layer(x[1, 6]), layer(x)[1, 6], rtol=0, atol=0)
    assert layer(x.bfloat16()).dtype == torch.bfloat16 and layer(x[:0]).shape == (0, 9, 24)
    x[0, 5, 0], x[1, 5, 0] = float("nan"), float("inf")
    assert torch.isfinite(layer(x)).all(-1).logical_not().nonzero().tolist() == [[0, 5], [1, 5]]


@needs_int8
@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("kind", GENERATING)
def test_a_model_stays_near_float32_and_its_table_stays_as_it_is(kind, generator):
    exact = build(kind, generator, torch.float32, Retriever())
    model = quantized(exact)
    assert type(model) is type(exact)
    assert not any(type(module) is nn.Linear for module in model.modules())
    assert (
        model.generator.get_input_embeddings().weight
        is exact.generator.get_input_embeddings().weight
    )
    given = given_contexts(torch.float32)
    with torch.no_grad():
        for inputs in (given, {"input_ids": QUESTIONS}):
            near, far = (each(**inputs, labels=LABELS).logits for each in (model, exact))
            assert 0 < (near - far).norm() / far.norm() < 0.03
        assert model.generate(**given, num_beams=2, max_length=6).shape[0] == 2


@needs_int8
def test_saving_training_and_other_devices_are_refused(tmp_path):
    model = build(dtype=torch.float32)
    # what it computes is unknown
    model.generator.adapter = nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4)
    model = quantized(model)
    assert type(model.generator.adapter) is not Int8Linear
    with pytest.raises(ValueError, match="int8 cannot be saved"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(RuntimeError, match="cannot be trained: take the model that"):
        model(**given_contexts(torch.float32), labels=LABELS)
    with pytest.raises(ValueError, match="the model is elsewhere"):
        quantized(nn.Sequential(nn.Linear(2, 2, device="meta")))
    with pytest.raises(RuntimeError, match="compute on the CPU"):
        Int8Linear(nn.Linear(2, 2))(torch.zeros(1, 2, device="meta"))


@needs_int8
def test_the_model_given_stays_as_it_is_and_shares_what_is_not_rounded(tmp_path):
    model = build(dtype=torch.float32, retriever=Retriever()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rounded = quantized(model)
    assert model.training and not rounded.training and rounded.retriever is model.retriever
    shared = {id(tensor) for tensor in model.parameters()}
    assert {id(tensor) for tensor in rounded.parameters()} < shared
    rounded.set_retriever(None)
    model(**given_contexts(torch.float32), labels=LABELS, reduce_loss=True).loss.backward()
    model.save_pretrained(tmp_path / "saved")
    assert model.retriever is not None and (tmp_path / "saved" / "model.safetensors").exists()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_exact_products_it_is_refused():
    """Processors before VNNI add pairs of products in 16 bits, which cut off large ones without
    a word.
    """
    code = (
        "import torch; from rag_torch.quantize import quantized\n"
        "try: quantized(torch.nn.Sequential(torch.nn.Linear(4, 4)))\n"
        "except RuntimeError as error: print(error)"
    )
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    assert "no exact int8 products" in done.stdout


@needs_int8
@pytest.mark.skipif(
    not (demo.home() / "demo-kb" / "manifest.json").is_file(), reason="the demo was not built here"
)
def test_the_demo_answers_as_in_float32():
    import rag_torch
    from rag_core.cli.models import open_model
    from rag_core.demo.clues import natural_questions

    questions = [each["question"] for each in natural_questions()][:8]
    texts = []
    for int8 in (False, True):
        model, _ = open_model(rag_torch, None, None, None, print, int8)
        assert int8 == any(type(module) is Int8Linear for module in model.modules())
        texts.append([found.text for found in model.answer(questions)])
    assert sum(one == other for one, other in zip(*texts, strict=True)) >= 6
