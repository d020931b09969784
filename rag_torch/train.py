"""`torchrun --nproc-per-node 2 -m rag_torch.train QUESTIONS --out FOLDER ...`: `dualrag train` in
PyTorch, by a name that launchers take.
"""

import os
import sys

if __name__ == "__main__":
    # DistributedDataParallel warns that it looks for weights without a gradient where all have one.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from rag_core.cli import main

    sys.argv[1:1] = ["train", "--backend", "torch"]
    main()
else:
    from rag_torch import training

    # whoever imports this file still finds the function under its name
    sys.modules[__name__] = training.train  # type: ignore[assignment]
