"""Load checkpoints that rag_torch saved into transformers 4.37.2 and compare what it computes with
what rag_torch did.

python -m conformance.check_in_oracle FOLDER       # FOLDER as conformance.save_ours wrote it
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers

from conformance.exchange import outputs
from conformance.mismatches import compare, relative_error
from conformance.oracle import CLASSES

TOLERANCE = 1e-5


def main() -> int:
    """Print a line per checkpoint; the number of those that differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folders = sorted(path.parent for path in parser.parse_args().folder.glob("*/config.json"))
    failed = 0
    for folder in folders:
        head, model_name = folder.name.split("-")
        model, report = CLASSES[head].from_pretrained(folder, output_loading_info=True)
        expected = dict(np.load(folder / "expected.npz"))
        found = outputs(model.eval(), model_name, torch.from_numpy)
        names = [f"{kind}: {value}" for kind, value in report.items() if value]
        wrong = [*names, *(str(mismatch) for mismatch in compare(expected, found, TOLERANCE))]
        errors = (
            f"{name} {relative_error(expected[name], found[name]):.1e}"
            for name in ("logits", "loss")
        )
        print(f"{folder.name}: {', '.join(errors)}; {'; '.join(wrong) or 'equal tokens'}")
        failed += bool(wrong)
    print(f"{len(folders) - failed} of {len(folders)} agree")
    return failed or not folders


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        sys.exit(main())
