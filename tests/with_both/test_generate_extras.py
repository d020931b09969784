"""What `generate` takes and gives beside tokens, the same in both backends: generators by
themselves, streams, numbers of NumPy.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from conformance import record_generators as recorded
from rag_core.backends import to_numpy

GOLDEN = json.loads(
    (Path(recorded.__file__).parent / "golden" / "generators.json").read_text("utf-8")
)
# Half of the models in TensorFlow, where each set of options takes a graph.
GENERATORS = [
    *(pytest.param("torch", name, marks=pytest.mark.backend("torch")) for name in recorded.MODELS),
    *(
        pytest.param("tf", name, marks=pytest.mark.backend("tf"))
        for name in ("bart_habits", "t5_gated")
    ),
]


@pytest.mark.parametrize(("backend", "name"), GENERATORS, scope="module")
def test_generations_of_generators_are_the_references(golden, name):
    model = golden.build(name, "token", recorded.SEED, "float64", 1).generator
    given = golden.tensors(recorded.given(name), "float64")
    target = golden.integers(recorded.labels(model.config.pad_token_id))
    for i, options in enumerate(recorded.CASES):
        # as Seq2SeqTrainer hands a batch over
        made = model.generate(**given, **options, labels=target)
        assert to_numpy(made).tolist() == GOLDEN[f"{name}/tokens/{i}"], options
    made = model.generate(given["input_ids"], max_length=9)
    assert to_numpy(made).tolist() == GOLDEN[f"{name}/tokens/no mask"]
    last = {key: value[-1:] for key, value in given.items()}
    for i, options in enumerate(recorded.SCORED):
        made = model.generate(**last, **options, return_dict_in_generate=True, output_scores=True)
        expected = GOLDEN[f"{name}/scored/{i}"]
        assert to_numpy(made.sequences).tolist() == expected["sequences"]
        summary = recorded.summary([to_numpy(scores) for scores in made.scores])
        np.testing.assert_allclose(summary, expected["scores"], rtol=1e-9)
        if expected["sequences_scores"] is not None:
            # float32 there
            scores = to_numpy(made.sequences_scores)
            np.testing.assert_allclose(scores, expected["sequences_scores"], rtol=1e-6)


class Stream:
    def __init__(self):
        self.heard = []

    def put(self, ids):
        self.heard.append(ids)

    def end(self):
        self.heard.append("end")


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "seed": 3}, {"decoder_input_ids": [[2, 9]]}]
)
def test_a_stream_hears_the_start_tokens_then_each_token(golden, options):
    prompt = options.get("decoder_input_ids", [[2]])
    for kind, n_docs in (("token", 3), ("sequence", 1)):
        model, given = golden.with_contexts(kind, n_docs=n_docs, batch=1)
        stream = Stream()
        made = model.generate(**given, streamer=stream, max_length=7, **options)
        first, *tokens, last = stream.heard
        assert last == "end" and first.shape == (1, len(prompt[0]))
        assert {each.shape for each in tokens} == {(1,)}
        written = np.concatenate([to_numpy(part) for part in (first[0], *tokens)])
        assert written.tolist() == to_numpy(made)[0].tolist()


def test_a_stream_is_for_one_row_without_beams(golden):
    model, given = golden.with_contexts("token")
    _, alone = golden.with_contexts("token", batch=1)
    sequence, of_three_documents = golden.with_contexts("sequence", batch=1)
    sampled = {"do_sample": True, "num_return_sequences": 2}
    for each, inputs, options in (
        (model, given, {}),
        (model, alone, {"num_beams": 2}),
        (model, alone, sampled),
        (sequence, of_three_documents, {}),
        (sequence, of_three_documents, {"num_beams": 2}),
    ):
        with pytest.raises(ValueError, match="streamer needs one row"):
            each.generate(**inputs, streamer=Stream(), **options)
    with pytest.raises(TypeError, match="put"):
        model.generate(**alone, streamer=print)


def test_guidance_is_refused_where_it_can_mean_nothing(golden):
    model, given = golden.with_contexts("token")
    ids = golden.integers([[5, 6, 7], [8, 9, 2]])
    for wrong, words in (
        ({"negative_prompt_ids": ids}, "guidance_scale other than 1"),
        ({"negative_prompt_ids": ids[:1], "guidance_scale": 2.0}, r"must be \(2, S\)"),
        (
            {"negative_prompt_attention_mask": ids, "guidance_scale": 2.0},
            "needs negative_prompt_ids",
        ),
        ({"guidance_scale": 0.0}, "above 0"),
    ):
        with pytest.raises(ValueError, match=words):
            model.generate(**given, **wrong)


@pytest.mark.parametrize("kind", ["token", "sequence"])
def test_numbers_of_numpy_are_numbers(golden, kind):
    model, given = golden.with_contexts(kind)
    lengths = {
        "num_beams": 2,
        "num_return_sequences": 2,
        "max_length": 7,
        "no_repeat_ngram_size": 2,
        "n_docs": 3,
    }
    lists = {"bad_words_ids": [[5], [6]], "suppress_tokens": [8]}
    options, wrapped = lengths | lists, {name: np.int64(value) for name, value in lengths.items()}
    wrapped |= {name: np.array(value) for name, value in lists.items()}
    for more, seed in (
        ({}, {}),
        ({"do_sample": True, "seed": 3}, {"do_sample": True, "seed": np.int32(3)}),
    ):
        of_numpy = model.generate(**given, **wrapped, **seed)
        plain = model.generate(**given, **options, **more)
        assert np.array_equal(to_numpy(of_numpy), to_numpy(plain))
