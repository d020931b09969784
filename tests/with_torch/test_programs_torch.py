"""Programs of torch.export and ONNX take any size and answer as the model does."""

import numpy as np
import pytest
import torch

from rag_core import BertConfig, RagConfig
from rag_torch import RagTokenForGeneration, export_program, quantized
from rag_torch.foreign import ForeignGenerator
from tests.support.networks import BART, BERT, T5_UNTIED, seeded

QUESTIONS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 3, 2, 0]])
SIZES = [(3, 2, 6), (1, 1, 2)]  # questions, documents, context length: others than in the examples


def build(generator):
    config = RagConfig.from_question_encoder_generator_configs(
        BertConfig(**BERT, pooling="mean"), generator, n_docs=2
    )
    return seeded(RagTokenForGeneration(config), torch.float32)


class Torch:
    """Programs of torch.export."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name, *inputs):
        outputs = torch.export.load(self.folder / f"{name}.pt2").module()(*inputs)
        return outputs if isinstance(outputs, tuple | list) else [outputs]


class Onnx(Torch):
    """Sessions of ONNX Runtime."""

    def __call__(self, name, *inputs):
        import onnxruntime

        session = onnxruntime.InferenceSession(self.folder / f"{name}.onnx")
        names = [given.name for given in session.get_inputs()]
        arrays = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, arrays)]


def greedy(run, ids, mask, scores, start, steps):
    """RAG-Token's greedy search over programs."""
    [cross] = run("encoder", ids, mask)
    past = cross[:, :, :, :, :0]
    docs = scores.shape[1]
    tokens = torch.full((len(scores), 1), start)
    for _ in range(steps):
        logits, past = run("step", tokens[:, -1:].repeat_interleave(docs, 0), mask, cross, past)
        by_doc = logits.log_softmax(-1).unflatten(0, (-1, docs))
        marginal = (by_doc + scores.log_softmax(1)[..., None]).logsumexp(1)
        tokens = torch.cat([tokens, marginal.argmax(-1, keepdim=True)], 1)
    return tokens


@pytest.mark.parametrize(
    "runtime, generator", [(Torch, T5_UNTIED), (Onnx, BART)], ids=["torch-t5", "onnx-bart"]
)
def test_a_greedy_answer_of_programs_is_that_of_the_model(runtime, generator, tmp_path):
    model = build(generator)
    model.train()
    model.question_encoder.eval()  # as of an encoder that is not to be shaken
    modes = [part.training for part in model.modules()]
    assert export_program(model, tmp_path / "out", onnx=runtime is Onnx) == tmp_path / "out"
    assert [part.training for part in model.modules()] == modes
    assert "position_bias" not in vars(model.generator.get_decoder())
    model.eval()
    run = runtime(tmp_path / "out")
    mask = (QUESTIONS != 0).long()
    for rows in (3, 1):
        [vectors] = run("question_encoder", QUESTIONS[:rows], mask[:rows])
        want = model.question_encoder(QUESTIONS[:rows], mask[:rows])[0]
        torch.testing.assert_close(vectors, want.detach(), rtol=1e-5, atol=1e-6)
    for questions, docs, length in SIZES:
        rng = np.random.default_rng(length)
        ids = torch.from_numpy(rng.integers(3, 23, (questions * docs, length)))
        real = torch.ones_like(ids)
        real[0, length // 2 :] = 0
        scores = torch.from_numpy(rng.normal(size=(questions, docs)).astype(np.float32))
        contexts = {
            "context_input_ids": ids,
            "context_attention_mask": real,
            "doc_scores": scores,
        }
        want = model.generate(
            **contexts, n_docs=docs, max_length=8, eos_token_id=None, forced_eos_token_id=None
        )
        start = model.generator.config.decoder_start_token_id
        found = greedy(run, ids, real, scores, start, 6)
        # BART's last token is forced
        torch.testing.assert_close(found, want[:, :7])


def test_what_is_no_program_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    model = build(BART)
    foreign = build(BART)
    foreign.rag.generator = ForeignGenerator(foreign.generator)
    with pytest.raises(TypeError, match="rag_torch's BART or T5, got ForeignGenerator"):
        export_program(foreign, tmp_path / "out")
    with pytest.raises(
        TypeError, match=r"floating-point weights, got a copy of rag_torch\.quantized"
    ):
        export_program(quantized(model), tmp_path / "out")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'dualrag\[onnx\]'"):
        export_program(model, tmp_path / "out", onnx=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        export_program(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
