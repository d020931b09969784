"""Records that are dictionaries.

Of attributes, keys and places, and for what copies, gathers or moves them.
"""

import copy
import pickle

import pytest

from rag_core.outputs import RetrievAugLMMarginOutput as Record
from rag_core.outputs import Seq2SeqLMOutput


def test_a_record_is_a_dictionary_of_its_present_fields_in_their_order():
    record = Record(logits=1, past_key_values=3)
    record.doc_scores = 2
    record["loss"] = 0
    assert isinstance(record, dict)
    assert list(record) == ["loss", "logits", "doc_scores", "past_key_values"]
    assert (
        dict(record)
        == {**record}
        == {"loss": 0, "logits": 1, "doc_scores": 2, "past_key_values": 3}
    )
    assert record.to_tuple() == (0, 1, 2, 3)
    assert (record[1], record["logits"], record.logits, record[2:]) == (1, 1, 1, (2, 3))
    record.loss = None
    assert record.pop("doc_scores") == 2
    assert (record.doc_scores, "loss" in record, len(record)) == (None, False, 2)
    del record["logits"]
    assert (record.to_tuple(), record.get("logits", "none")) == ((3,), "none")
    with pytest.raises(KeyError, match="no field 'scores'"):
        record["scores"] = 1
    record.clear()
    assert not record and record == Record()


def test_it_is_made_from_what_makes_a_dictionary_and_copied_whole():
    record = Record(loss=0, logits=[1], doc_scores=2)
    for made in (
        Record(dict(record)),
        Record((name, record[name]) for name in record),
        Record(list(record.items())),
    ):
        assert made == record and list(made) == list(record)
    for again in (
        copy.copy(record),
        copy.deepcopy(record),
        pickle.loads(pickle.dumps(record)),
        record.copy(),
    ):
        assert type(again) is Record and again == record and dict(again) == dict(record)
    assert copy.deepcopy(record).logits is not record.logits
    assert Seq2SeqLMOutput(logits=1, past_key_values=((2, 3),)).past_key_values == ((2, 3),)
    assert Record([("a", 1), 2]).loss == [("a", 1), 2]  # a value, not entries


@pytest.mark.backend("torch")
def test_pytorch_gathers_flattens_and_exports_records(monkeypatch):
    import torch
    from torch.nn.parallel import scatter_gather
    from torch.utils import _pytree

    import rag_torch.pretrained  # noqa: F401

    records = [
        Record(loss=torch.full((2,), value), logits=torch.ones(2, 3)) for value in (1.0, 2.0)
    ]
    monkeypatch.setattr(
        scatter_gather.Gather, "apply", lambda device, dim, *parts: torch.cat(parts, dim)
    )
    gathered = scatter_gather.gather(records, 0)
    assert type(gathered) is Record
    assert gathered.loss.tolist() == [1, 1, 2, 2] and gathered.logits.shape == (4, 3)
    leaves, tree = _pytree.tree_flatten(records[0])
    assert len(leaves) == 2
    assert list(_pytree.tree_unflatten(leaves, tree)) == ["loss", "logits"]
    # as torch.export.save writes it
    assert _pytree.treespec_loads(_pytree.treespec_dumps(tree)) == tree


@pytest.mark.backend("tf")
def test_tensorflow_takes_records_into_graphs_and_out_of_them():
    import tensorflow as tf

    record = Record(loss=tf.ones(2), logits=tf.ones((2, 3)))
    seen = []

    @tf.function
    def doubled(given):
        seen.append(list(given))
        return tf.nest.map_structure(lambda each: 2 * each, given)

    result = doubled(record)
    assert type(result) is Record and list(result) == seen[0] == ["loss", "logits"]
    assert result.loss.numpy().tolist() == [2, 2]
