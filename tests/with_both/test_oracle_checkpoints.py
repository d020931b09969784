"""Checkpoints that transformers 4.37.2 saved, from either framework, load in both backends and give
its outputs. The way back: conformance/README.md.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance import tf_exchange
from conformance.exchange import CHECKPOINTS, outputs
from conformance.mismatches import compare
from rag_core.backends import load_backend

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "conformance" / "golden" / "checkpoints"

IN_TENSORFLOW = pytest.mark.parametrize(
    "backend", [pytest.param("tf", marks=pytest.mark.backend("tf"))], scope="module"
)


@pytest.fixture(autouse=True)
def no_grad(golden: Any) -> Any:
    with golden.without_gradients():
        yield


@pytest.mark.parametrize("saved_again", [False, True])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_pytorch_gives_the_references_outputs(
    golden: Any, name: str, saved_again: bool, tmp_path: Path
) -> None:
    model_name, head, _ = CHECKPOINTS[name]
    model = golden.CLASSES[head].from_pretrained(FOLDER / name)
    if saved_again:
        model.save_pretrained(tmp_path)
        model = golden.CLASSES[head].from_pretrained(tmp_path)
    expected = dict(np.load(FOLDER / name / "expected.npz"))
    actual = outputs(model, model_name, golden.integers)
    assert [str(mismatch) for mismatch in compare(expected, actual, 1e-5)] == []


@IN_TENSORFLOW
@pytest.mark.parametrize("name", tf_exchange.TF_CHECKPOINTS)
def test_a_checkpoint_of_tensorflow_gives_the_references_outputs(backend: str, name: str) -> None:
    """In PyTorch: `test_convert.py` and `test_h5_files.py`."""
    expected = np.load(FOLDER / name / "expected.npz")
    kind = getattr(load_backend(backend), tf_exchange.TF_CHECKPOINTS[name][0])
    model = kind.from_pretrained(FOLDER / name)
    given = tf_exchange.given()
    labels = given.pop("labels")
    logits = {"logits": model(**given, decoder_input_ids=labels).logits.numpy()}
    mismatches = compare({"logits": expected["logits"]}, logits, 1e-5)
    assert [str(mismatch) for mismatch in mismatches] == []
    if "greedy" in expected:
        assert np.array_equal(model.generate(**given, max_length=10), expected["greedy"])


@IN_TENSORFLOW
def test_pickled_weights_are_read_where_torch_cannot_be_imported(backend: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import rag_tf; "
        f"rag_tf.TFRagTokenForGeneration.from_pretrained({str(FOLDER / 'token_bart')!r}); "
        "print('read')"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "read", done.stderr


def test_the_other_head_and_the_bare_model_take_the_same_weights(golden: Any) -> None:
    sequence, token, bare = (
        golden.CLASSES[head].from_pretrained(FOLDER / "token_bart").state_dict()
        for head in ("sequence", "token", "model")
    )
    for state in (sequence, {f"rag.{name}": array for name, array in bare.items()}):
        assert state.keys() == token.keys()
        assert all(np.array_equal(state[name], array) for name, array in token.items())


def test_an_untied_head_stays_untied(golden: Any) -> None:
    model = golden.CLASSES["sequence"].from_pretrained(FOLDER / "sequence_t5_gated")
    state = model.state_dict()
    table = state["rag.generator.shared.weight"]
    assert not np.array_equal(state["rag.generator.lm_head.weight"], table)
