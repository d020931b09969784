"""Checkpoints that transformers 4.37.2 saved from either framework load in rag_tf and give its
outputs.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rag_tf
from conformance import tf_exchange
from conformance.exchange import CHECKPOINTS, SEARCHES, contexts, targets
from conformance.mismatches import compare

FOLDER = Path(__file__).parents[2] / "conformance" / "golden" / "checkpoints"
ROOT = FOLDER.parents[2]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_pytorch_gives_the_references_outputs(name, tmp_path):
    model_name, head, _ = CHECKPOINTS[name]
    kind = {"token": rag_tf.TFRagTokenForGeneration, "sequence": rag_tf.TFRagSequenceForGeneration}[
        head
    ]
    kind.from_pretrained(FOLDER / name).save_pretrained(tmp_path)
    for folder in (FOLDER / name, tmp_path):
        model = kind.from_pretrained(folder)
        given = contexts(model_name, "exchange", 2, 3)
        given["doc_scores"] = given["doc_scores"].astype(np.float32)
        out = model(**given, labels=targets(model_name, "padded", 2), reduce_loss=False)
        found = {"logits": out.logits.numpy(), "loss": out.loss.numpy()}
        found |= {
            search: model.generate(**given, **options).numpy()
            for search, options in SEARCHES.items()
        }
        expected = dict(np.load(FOLDER / name / "expected.npz"))
        assert [str(mismatch) for mismatch in compare(expected, found, 1e-5)] == []


@pytest.mark.parametrize("name", tf_exchange.TF_CHECKPOINTS)
def test_a_checkpoint_of_tensorflow_gives_the_references_outputs(name):
    expected = np.load(FOLDER / name / "expected.npz")
    model = getattr(rag_tf, tf_exchange.TF_CHECKPOINTS[name][0]).from_pretrained(FOLDER / name)
    inputs = tf_exchange.given()
    labels = inputs.pop("labels")
    logits = model(**inputs, decoder_input_ids=labels).logits.numpy()
    assert [
        str(each) for each in compare({"logits": expected["logits"]}, {"logits": logits}, 1e-5)
    ] == []
    if "greedy" in expected:
        assert np.array_equal(model.generate(**inputs, max_length=10), expected["greedy"])


def test_pickled_weights_are_read_where_torch_cannot_be_imported():
    code = (
        "import sys; sys.modules['torch'] = None; import "
        f"rag_tf;rag_tf.TFRagTokenForGeneration.from_pretrained({str(FOLDER / 'token_bart')!r}); "
        "print('read')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "read", done.stderr
