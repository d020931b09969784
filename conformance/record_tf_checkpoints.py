"""Save tiny checkpoints with the TensorFlow classes of transformers 4.37.2, and what those compute.
Run as a module:

python -m conformance.record_tf_checkpoints --out conformance/golden/checkpoints

Needs TensorFlow 2.15 beside requirements-oracle.txt. The models are built in memory: 4.37.2 can't
save a TensorFlow RAG model that it loaded from PyTorch's files, and can't build one with T5.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases import model_weights
from conformance.tf_exchange import MODEL, N_DOCS, SEED, TF_CHECKPOINTS, config, given
from rag_core.checkpoint.tf_names import torch_name, unscoped


def fill(model: Any) -> None:
    """Seeded weights, drawn in PyTorch's layout by the name that the weight has there."""
    names = [unscoped(torch_name(weight.name)) for weight in model.weights]
    shapes = {}
    for weight, name in zip(model.weights, names, strict=True):
        shapes[name] = tuple(weight.shape)
        if _is_kernel(weight):
            shapes[name] = shapes[name][::-1]
    arrays = model_weights(MODEL, shapes, SEED)
    for weight, name in zip(model.weights, names, strict=True):
        array = arrays[name]
        if _is_kernel(weight):
            array = array.T
        weight.assign(array)


def _is_kernel(weight: Any) -> bool:
    """Whether it is a matrix that Keras stores as (in, out)."""
    return weight.name.endswith("/kernel:0")


def main() -> None:
    """Write one folder per checkpoint."""
    import tensorflow as tf
    import transformers

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write the checkpoints' folders into"
    )
    out = parser.parse_args().out
    for name, (class_name, safe) in TF_CHECKPOINTS.items():
        model = getattr(transformers, class_name)(transformers.RagConfig(**config()))
        inputs = {key: tf.constant(array) for key, array in given().items()}
        labels = inputs.pop("labels")
        # Without the leading None this class takes its keywords for missing inputs.
        model(None, **inputs, decoder_input_ids=labels, n_docs=N_DOCS)
        fill(model)
        output = model(None, **inputs, decoder_input_ids=labels, n_docs=N_DOCS)
        expected = {"logits": output.logits.numpy()}
        if class_name == "TFRagTokenForGeneration":
            tokens = model.generate(**inputs, n_docs=N_DOCS, num_beams=1, max_length=10)
            expected["greedy"] = tokens.numpy()
        model.save_pretrained(out / name, safe_serialization=safe)
        np.savez_compressed(out / name / "expected.npz", **expected)
        print(name, {key: array.shape for key, array in expected.items()})


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    main()
