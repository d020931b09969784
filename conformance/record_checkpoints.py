"""Save tiny checkpoints with transformers 4.37.2, and what it computes with them. Run as a module:

python -m conformance.record_checkpoints --out conformance/golden/checkpoints
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers

from conformance.exchange import CHECKPOINTS, N_DOCS, SEED, outputs
from conformance.oracle import build


def main() -> None:
    """Write one folder per checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write the checkpoints' folders into"
    )
    out = parser.parse_args().out
    for name, (model_name, head, safe) in CHECKPOINTS.items():
        # In memory: reloaded, the reference would tie T5 v1.1's head to its embedding (D7).
        model = build(model_name, head, SEED, torch.float32, N_DOCS)
        model.save_pretrained(out / name, safe_serialization=safe)
        np.savez_compressed(
            out / name / "expected.npz", **outputs(model, model_name, torch.from_numpy)
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        main()
