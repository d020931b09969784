"""Work that is left out changes no number: contexts by their length, candidates by their shared beginnings."""

from __future__ import annotations

import pytest
import torch
from rag_models import GENERATING, LABELS, build, close, given_contexts

from rag_torch import seq2seq

RAGGED = [[1] * 7, [1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0] * 7, [1, 0, 1, 1, 0, 1, 0], [1] * 4 + [0] * 3]


@pytest.mark.parametrize("generator", ["bart", "t5"])
@pytest.mark.parametrize("kind", GENERATING)
def test_contexts_by_length_give_the_same_loss_gradients_and_answers(monkeypatch, kind, generator):
    model, given = build(kind, generator), given_contexts()
    given["context_attention_mask"] = torch.tensor(RAGGED)
    seen = []
    for size in (2**18, 1):
        monkeypatch.setattr(seq2seq, "_BUCKET_CPU", size)
        model.zero_grad()
        out = model(**given, labels=LABELS, reduce_loss=True)
        out.loss.backward()
        grads = [p.grad.clone() for p in model.generator.parameters() if p.grad is not None]
        answers = model.generate(**given, num_beams=2, max_length=6)
        again = model.generator(given["context_input_ids"], torch.tensor(RAGGED), LABELS.repeat(3, 1), use_cache=True)
        seen.append((out.loss, out.logits, grads, answers, again.logits, again.past_key_values[0][2].shape))
        assert out.generator_enc_last_hidden_state.shape == (6, 7, 12)
    close(*[each[:3] for each in seen])
    assert torch.equal(*[each[3] for each in seen])
    close(*[each[4] for each in seen])
    assert seen[0][5] == seen[1][5]


def test_each_row_goes_with_rows_of_like_length():
    calls = []

    def function(ids, mask):
        calls.append(tuple(ids.shape))
        return ids[..., None] * mask[..., None]

    mask = torch.tensor([[1] * length + [0] * (9 - length) for length in (9, 2, 8, 1, 3, 9)])
    ids = torch.arange(6 * 9).reshape(6, 9)
    assert torch.equal(seq2seq.by_length(function, ids, mask, 10)[..., 0], ids * mask)
    assert calls == [(4, 8), (1, 9), (1, 9)]
    calls.clear()
    seq2seq.by_length(function, ids, mask, 54)
    assert calls == [(6, 9)]
