"""Save tiny checkpoints with the TensorFlow classes of transformers 4.37.2, and what those compute.
Run as a module:

python -m conformance.record_tf_checkpoints --out conformance/golden/checkpoints

Needs TensorFlow 2.15 beside requirements-oracle.txt. The models are built in memory: 4.37.2 can't
save a TensorFlow RAG model that it loaded from PyTorch's files, and can't build one with T5.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from conformance.cases import model_weights
from conformance.tf_exchange import MODEL, N_DOCS, SEED, TF_CHECKPOINTS, config, given
from rag_core.checkpoint.tf_names import torch_name, unscoped


def fill(model: Any) -> None:
    """Seeded weights, drawn in PyTorch's layout by the name that the weight has there."""
    names = [unscoped(torch_name(weight.name)) for weight in model.weights]
    turned = [bool(re.search(r"/kernel:0$", weight.name)) for weight in model.weights]
    sizes = [tuple(weight.shape) for weight in model.weights]
    shapes = {
        name: size[::-1] if turn else size
        for name, size, turn in zip(names, sizes, turned, strict=True)
    }
    arrays = model_weights(MODEL, shapes, SEED)
    for weight, name, turn in zip(model.weights, names, turned, strict=True):
        weight.assign(arrays[name].T if turn else arrays[name])


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
        found = {"logits": output.logits.numpy()}
        if class_name == "TFRagTokenForGeneration":
            found["greedy"] = model.generate(
                **inputs, n_docs=N_DOCS, num_beams=1, max_length=10
            ).numpy()
        model.save_pretrained(out / name, safe_serialization=safe)
        np.savez_compressed(out / name / "expected.npz", **found)
        print(name, {key: array.shape for key, array in found.items()})


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    main()
