"""Bad input to the models: one error that names the argument, and missing documents that count for
nothing.

What a single room refuses is tested with that room, files and the command in test_bad_files.py.
"""

import numpy as np
import pytest
import torch

from rag_core.knowledge.base import build_knowledge_base
from rag_core.retrieval.retriever import RagRetriever
from rag_core.tokenization.rag import RagTokenizer
from rag_torch import (
    AutoTokenizer,
    RagModel,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    load_encoder,
)

MODEL = "facebook/rag-token-nq"
HEADS = [RagTokenForGeneration, RagSequenceForGeneration]
ROWS = 3


@pytest.fixture(scope="module")
def base(world):
    """A knowledge base of three passages by the tiny context encoder."""
    notes = world / "three.tsv"
    notes.write_text(
        "title\ttext\nParis\tA city of 2 people.\nRome\tA city of 3.\nBern\tA small one.\n"
    )
    encoder = load_encoder(str(world / "facebook/dpr-ctx_encoder-single-nq-base"))
    return build_knowledge_base(
        notes, world / "three", encoder.embed, encoder_name="tiny", progress=False
    )


@pytest.fixture(scope="module")
def parts(world, base):
    """Both heads with a retriever, the tokenizers, and what they make of two questions."""
    folder = world / MODEL
    tokenizer = RagTokenizer.from_pretrained(folder)
    retriever = RagRetriever.from_pretrained(folder, index=base.index())
    models = {
        kind: kind.from_pretrained(folder, retriever=retriever) for kind in (RagModel, *HEADS)
    }
    questions = tokenizer(
        ["How many people live in Paris?", "Who?"], return_tensors="pt", padding=True
    )
    questions = {name: questions[name] for name in ("input_ids", "attention_mask")}
    found = retriever(
        questions["input_ids"],
        np.ones((2, base.manifest.dimension), np.float32),
        return_tensors="pt",
    )
    contexts = {name: found[name] for name in ("context_input_ids", "context_attention_mask")}
    contexts["doc_scores"] = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    labels = tokenizer(text_target=["In Paris", "x"], return_tensors="pt", padding=True)[
        "input_ids"
    ]
    return models, tokenizer, questions, contexts, labels


def ids(rows, columns, value=5, dtype=torch.long):
    return torch.full((rows, columns), value, dtype=dtype)


CONTEXTS = [
    ({"doc_scores": None}, "must be given together or not at all, got .* without doc_scores"),
    ({"context_attention_mask": None}, "got .* without context_attention_mask"),
    ({"context_input_ids": None}, "got .* without context_input_ids"),
    ({"question_text": ["How many?", "Who?"]}, "question_text is for contexts that are retrieved"),
    (
        {"doc_scores": torch.zeros(2, 3)},
        r"doc_scores must be \(B, n_docs\) with n_docs = 2, got shape \(2, 3\)",
    ),
    ({"doc_scores": torch.zeros(1, 2)}, r"1 \* 2 = 2 rows"),
    ({"doc_scores": torch.tensor([[0.0, torch.nan], [0, 0]])}, "doc_scores must be numbers"),
    (
        {"doc_scores": torch.tensor([[-torch.inf] * 2, [0, 0]])},
        "one number or more for each question",
    ),
    ({"doc_scores": [[0.0, 0.0]] * 2}, "doc_scores must be a torch.Tensor, got list"),
    ({"context_input_ids": ids(3, 48)}, r"2 \* 2 = 4 rows .* got shape \(3, 48\)"),
    ({"context_input_ids": ids(4, 0), "context_attention_mask": ids(4, 0)}, "one token or more"),
    (
        {"context_input_ids": ids(4, 48, dtype=torch.float)},
        r"must hold integer ids \(int64\), got float32",
    ),
    (
        {"context_input_ids": ids(4, 48, 490)},
        "context_input_ids must lie in the model's vocabulary, 0 to 489; got",
    ),
    ({"context_input_ids": ids(4, 48, -1)}, "got ids from -1 to -1"),
    ({"context_attention_mask": ids(4, 5)}, r"shape of context_input_ids, \(4, 48\), got \(4, 5\)"),
    ({"n_docs": 3}, "pass n_docs= if the contexts hold another number"),
    ({"n_docs": 0}, "n_docs must be a positive integer, got 0"),
    ({"n_docs": [2]}, r"n_docs must be a positive integer, got \[2\]"),
]


@pytest.mark.parametrize("change, message", CONTEXTS)
def test_contexts_that_do_not_fit_are_named_by_every_call(parts, change, message):
    models, _, questions, contexts, labels = parts
    given = {**questions, **contexts, **change}
    for kind in HEADS:
        with pytest.raises((ValueError, TypeError), match=message):
            models[kind](**given, labels=labels)
        with pytest.raises((ValueError, TypeError), match=message):
            models[kind].generate(**given)
    with pytest.raises((ValueError, TypeError), match=message):
        models[RagModel](**given, decoder_input_ids=labels)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": ids(1, 4)}, r"must be \(B, T\) with B = 2"),
        ({"labels": ids(2, 0)}, "one token or more"),
        (
            {"labels": ids(2, 4, 490)},
            r"labels \(but for -100\) must lie in the model's vocabulary, 0 to 489",
        ),
        ({"labels": ids(2, 4, -5)}, "got ids from -5 to -5"),
        ({"labels": ids(2, 4, dtype=torch.float)}, "labels must hold integer ids"),
        ({"labels": [[5]] * 2}, "labels must be a torch.Tensor, got list"),
        (
            {"labels": ids(2, 4), "decoder_input_ids": ids(2, 3)},
            r"shape of decoder_input_ids, \(2, 3\), got \(2, 4\)",
        ),
        (
            {"decoder_input_ids": ids(2, 4), "decoder_attention_mask": ids(2, 3)},
            r"= \(4, 4\), got \(4, 3\)",
        ),
        (
            {"decoder_input_ids": ids(2, 1), "past_key_values": "cache"},
            "past_key_values must be what an earlier call",
        ),
        (
            {"decoder_input_ids": ids(2, 1), "past_key_values": ((torch.zeros(1, 2, 3, 8),) * 4,)},
            "as many rows .* 4",
        ),
        (
            {"decoder_input_ids": ids(2, 4), "encoder_outputs": (torch.zeros(3, 48, 16),)},
            "encoder_outputs must hold",
        ),
        (
            {"decoder_input_ids": ids(2, 4), "encoder_outputs": (torch.zeros(4, 48, 8),)},
            "d = 16 as element 0",
        ),
        (
            {"decoder_input_ids": ids(2, 4), "encoder_outputs": (torch.zeros(4, 9, 16),)},
            r"\(4, 9\), got \(4, 48\)",
        ),
    ],
)
def test_targets_caches_and_states_that_do_not_fit_are_named(parts, change, message):
    models, _, _, contexts, _ = parts
    for kind in HEADS:
        with pytest.raises((ValueError, TypeError), match=message):
            models[kind](**contexts, **change)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_beams": 0}, "num_beams must be"),
        ({"num_beams": "two"}, "num_beams must be .*'two'"),
        ({"max_length": 2.5}, "max_length must be a whole number"),
        ({"top_p": "0.9"}, "top_p must be a number from 0 to 1, got '0.9'"),
        ({"decoder_start_token_id": 490}, "decoder_start_token_id, .* 0 to 489; got ids from 490"),
        ({"decoder_input_ids": ids(2, 1, -1)}, "decoder_input_ids, must lie in .* got ids from -1"),
        (
            {"guidance_scale": 2.0, "negative_prompt_ids": ids(2, 3, 999)},
            "negative_prompt_ids must lie in",
        ),
    ],
)
def test_options_of_generate_that_can_not_be_are_named(parts, kind, options, message):
    models, _, _, contexts, _ = parts
    with pytest.raises((ValueError, TypeError), match=message):
        models[kind].generate(**contexts, **options)


@pytest.mark.parametrize("kind", HEADS)
def test_empty_foreign_and_endless_questions(parts, kind):
    models, tokenizer, questions, _, labels = parts
    model = models[kind]
    for asked, rows in (([""], [0]), (["Who?", " \n"], [1])):
        encoded = {
            n: v
            for n, v in tokenizer(asked, return_tensors="pt", padding=True).items()
            if n in questions
        }
        with pytest.raises(
            ValueError, match=rf"question_input_ids: every question .* rows \{rows} are empty"
        ):
            model.generate(**encoded)
        with pytest.raises(ValueError, match=r"question number \d is empty"):
            model.answer(asked)
    with pytest.raises(
        ValueError, match=r"question_text: every question must have a word or more, rows \[1\]"
    ):
        model(**questions, labels=labels, question_text=["Who?", ""])
    for text, got in (("Who?", "'Who[?]'"), (5, "5"), ([1, 2], r"\[1, 2\]")):
        with pytest.raises(
            TypeError, match=f"question_text must be a list of strings, one a question, got {got}"
        ):
            model(**questions, labels=labels, question_text=text)
    # or a column of a table
    one, row = model.answer("Who?"), model.answer(np.array(["Who?", "Where?"]))
    assert [row[0].text, row[1].question] == [one[0].text, "Where?"]
    for nothing in (None, {"question": "Who?"}, {"Who?", "Where?"}, b"Who?", 5):
        with pytest.raises(TypeError, match="questions must be a string or a list of strings"):
            model.answer(nothing)
    foreign = tokenizer.generator(["How many people live in Paris?"], return_tensors="pt")[
        "input_ids"
    ]
    with pytest.raises(ValueError, match="input_ids must lie in the model's vocabulary, 0 to 287"):
        model.generate(foreign)
    with pytest.raises(ValueError, match="input_ids must lie in the model's vocabulary"):
        model.question_encoder(foreign)
    with pytest.raises(
        ValueError, match=r"512 positions .*got 600 tokens; cut texts .* max_length=512"
    ):
        model.generate(ids(1, 600))
    assert len(model.answer("who is " * 2000)) == 1  # answer() cuts what the encoder can't hold


def test_a_retriever_of_another_vocabulary_is_named(parts, world, base):
    models, tokenizer, questions, _, labels = parts
    model = models[RagTokenForGeneration]
    foreign = RagRetriever.from_pretrained(world / MODEL, index=base.index())

    def shifted(texts, **kwargs):
        encoded = tokenizer.generator(texts, **kwargs)
        return {**encoded, "input_ids": [[i + 400 for i in row] for row in encoded["input_ids"]]}

    foreign.generator_tokenizer = shifted
    before = model.retriever
    model.set_retriever(foreign)
    try:
        with pytest.raises(
            ValueError, match="retriever's generator_tokenizer must lie in the model's vocabulary"
        ):
            model(**questions, labels=labels)
    finally:
        model.set_retriever(before)


@pytest.mark.parametrize("kind", HEADS)
def test_more_documents_than_the_index_holds_change_nothing(parts, kind):
    models, _, questions, _, labels = parts
    model = models[kind]
    whole, more = (
        model(**questions, labels=labels, n_docs=n, output_retrieved=True) for n in (ROWS, ROWS + 2)
    )
    torch.testing.assert_close(more.loss, whole.loss)
    assert more.doc_scores.isneginf().tolist() == [[False] * ROWS + [True] * 2] * 2
    assert (more.retrieved_doc_ids[:, ROWS:] == -1).all() and not more.retrieved_doc_embeds[
        :, ROWS:
    ].any()
    for options in ({}, {"num_beams": 3}):
        texts = [model.generate(**questions, n_docs=n, **options) for n in (ROWS, ROWS + 2)]
        assert texts[0].tolist() == texts[1].tolist()
    one, other = (model.answer("Who?", n_docs=n)[0] for n in (ROWS, ROWS + 2))
    assert len(other.passages) == ROWS and other.log_probability == pytest.approx(
        one.log_probability, abs=1e-5
    )
    for name in ("prior", "posterior"):
        assert sum(getattr(p, name) for p in other.passages) == pytest.approx(1, abs=1e-5)


def test_the_parts_alone_name_what_they_can_not_take(parts, world, tmp_path):
    models, _, questions, _, labels = parts
    retriever = models[RagModel].retriever
    for vectors in (None, np.ones(16), "vectors"):
        with pytest.raises(ValueError, match="question_hidden_states must be numbers of shape"):
            retriever(questions["input_ids"], vectors)
    with pytest.raises(ValueError, match=r"question_input_ids must be \(B, Q\) token ids"):
        retriever([5, 6, 7], np.ones((1, 16)))
    with pytest.raises(TypeError, match=r"passages must be a datasets.Dataset, got str"):
        RagRetriever.from_pretrained(world / MODEL, indexed_dataset="wiki")
    with pytest.raises(ValueError, match="decoder_input_ids must lie in the model's vocabulary"):
        models[RagModel].generator(input_ids=labels, decoder_input_ids=labels + 490)
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(
            OSError, match=r"config\.json (is not valid json|must hold a json object)"
        ):
            AutoTokenizer.from_pretrained(tmp_path)
