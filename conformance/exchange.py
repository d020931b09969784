"""What is asked of a checkpoint on either side of the exchange with transformers 4.37.2.

Numpy only.
"""

from typing import Any

import numpy as np

from conformance.cases import contexts, targets

# name: catalogue model, head, whether transformers writes safetensors (else pytorch_model.bin)
CHECKPOINTS: dict[str, tuple[str, str, bool]] = {
    "token_bart": ("bart", "token", False),
    "sequence_t5_gated": ("t5_gated", "sequence", True),
}
SEED = 2
BATCH, N_DOCS = 2, 3
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"max_length": 10},
    "beams": {"num_beams": 3, "max_length": 10, "no_repeat_ngram_size": 2},
}


def outputs(model: Any, model_name: str, tensor: Any) -> dict[str, np.ndarray]:
    """Logits, losses and generations of a loaded model, the same way in every library.

    Args:
        model: a head for generation, in float32 and eval mode.
        model_name: its name in the catalogue.
        tensor: numpy array to tensor.
    """
    arrays = contexts(model_name, "exchange", BATCH, N_DOCS)
    arrays["doc_scores"] = arrays["doc_scores"].astype(np.float32)
    inputs = {name: tensor(array) for name, array in arrays.items()}
    labels = tensor(targets(model_name, "padded", BATCH))
    out = model(**inputs, labels=labels, reduce_loss=False)
    results = {"logits": out.logits.numpy(), "loss": out.loss.numpy()}
    for name, options in SEARCHES.items():
        results[name] = model.generate(**inputs, **options).numpy()
    return results
