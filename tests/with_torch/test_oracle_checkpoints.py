"""Checkpoints saved by transformers 4.37.2 load here and give its outputs. The way back.

Conformance/README.md.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from conformance.exchange import CHECKPOINTS, outputs
from conformance.mismatches import compare
from rag_torch import RagModel, RagSequenceForGeneration, RagTokenForGeneration

FOLDER = Path(__file__).parents[2] / "conformance" / "golden" / "checkpoints"
CLASSES = {"token": RagTokenForGeneration, "sequence": RagSequenceForGeneration}


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_reference_checkpoint_gives_the_reference_outputs(name: str) -> None:
    model_name, head, _ = CHECKPOINTS[name]
    model = CLASSES[head].from_pretrained(FOLDER / name)
    expected = dict(np.load(FOLDER / name / "expected.npz"))
    found = outputs(model, model_name, torch.from_numpy)
    assert [str(mismatch) for mismatch in compare(expected, found, 1e-5)] == []


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_saved_again_it_still_gives_them(name: str, tmp_path: Path) -> None:
    model_name, head, _ = CHECKPOINTS[name]
    CLASSES[head].from_pretrained(FOLDER / name).save_pretrained(tmp_path)
    expected = dict(np.load(FOLDER / name / "expected.npz"))
    found = outputs(CLASSES[head].from_pretrained(tmp_path), model_name, torch.from_numpy)
    assert [str(mismatch) for mismatch in compare(expected, found, 1e-5)] == []


def test_the_other_head_and_the_bare_model_take_the_same_weights() -> None:
    sequence, token = (
        CLASSES[head].from_pretrained(FOLDER / "token_bart") for head in ("sequence", "token")
    )
    bare = RagModel.from_pretrained(FOLDER / "token_bart")
    expected = token.state_dict()
    for found in (
        sequence.state_dict(),
        {f"rag.{name}": array for name, array in bare.state_dict().items()},
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], array) for name, array in expected.items())


def test_an_untied_head_stays_untied() -> None:
    model = RagSequenceForGeneration.from_pretrained(FOLDER / "sequence_t5_gated")
    assert not torch.equal(model.generator.lm_head.weight, model.generator.shared.weight)
