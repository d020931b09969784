"""Save every catalogue model with rag_torch's save_pretrained, and what rag_torch computes. Run as
a module:

python -m conformance.save_ours --out FOLDER       # here
python -m conformance.check_in_oracle FOLDER       # in an environment with transformers 4.37.2
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from conformance.cases import MODELS
from conformance.exchange import N_DOCS, SEED, outputs
from tests.support.golden_torch import build


def main() -> None:
    """Write one folder per model and head."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write the checkpoints' folders into"
    )
    out = parser.parse_args().out
    for model_name in MODELS:
        for head in ("token", "sequence"):
            model = build(model_name, head, SEED, "float32", N_DOCS)
            folder = out / f"{head}-{model_name}"
            model.save_pretrained(folder)
            np.savez_compressed(
                folder / "expected.npz", **outputs(model, model_name, torch.from_numpy)
            )


if __name__ == "__main__":
    with torch.no_grad():
        main()
