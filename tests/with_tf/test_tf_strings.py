"""Text in a graph is read and written as by our tokenizers, and a SavedModel of strings answers as
`model.answer` where TensorFlow and TensorFlow Text alone are loaded.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import tensorflow as tf
from datasets import Dataset

from conformance.seeded import seeded_weights
from rag_core import (
    BartConfig,
    BertConfig,
    DPRConfig,
    RagConfig,
    RagRetriever,
    T5Config,
    Tokenizer,
)
from rag_core.retrieval import FaissIndex, index_tables
from rag_core.tokenization import text_tables
from rag_tf import RagSequenceForGeneration, RagTokenForGeneration, export_saved_model
from rag_tf.graph import TextGraph
from rag_tf.strings import _Passages, _Prompts

TOKENIZERS = Path(__file__).parents[1] / "data" / "tokenizers"
HARD = [
    "", "   ", " \n\t x", "don't I'll we've they're I'm he'd 's''s ' s 'S 'LL", "'s's't 'sam", "it''s '''",
    "Café naïve ÅNGSTRÖM İstanbul ΣΊΣΥΦΟΣ ς", "日本語のテキスト。東京タワー", "한국어 조선", "ไทยภาษา",
    "a" * 99 + " " + "b" * 100 + " " + "c" * 101 + " " + "é" * 100, "aaaaaaaaaaaaaaaaab banana bananana",
    "[MASK] x [CLS][SEP] [mask]", "<s> foo <mask>  <mask> </s>bar\u3000<mask><pad><unk>", "e\u0301 a\u0327\u0301",
    "\u200b\u200d\ufeff zero", "\x00\x01\x1f ctrl\x7f\x85", "a\x00<s>\x00b", "😀👩‍👩‍👧 emoji 🇩🇪", "½ ² Ⅷ ١٢٣ १२ 3.14",
    "tab\tnew\nline\r\n  end  ", "\u00a0nbsp\u3000ideo\u2028ls", "x\u3000\u3000y \n z", "ﬁ ﬀ \u210c ① Ω Å K \U0001d400",
    "naïve—dash\u2013x…“q”", "http://example.com/a_b-c?d=e&f=1.2", "\ufffd\ufffe\U0010ffff\U0010fffd\U000e0041",
    "1234567890 1,5", "  two  spaces   three", "\u0307 \u0345 \u302e\u302f ẞ ß ŉ", "#hash_tag @me", "ꙮ 𐍈 ꧁",
]  # fmt: skip


def drawn(count, seed=0):
    """Texts of characters where kinds meet."""
    rng = np.random.default_rng(seed)
    ranges = ((0, 0x250), (0x250, 0x3000), (0x3000, 0xD800), (0xE000, 0x110000))
    texts = []
    for number in range(count):
        letters = ["abc 'strevldmSTD", "a1. \n\t'\u00a0é", " ' s\n"][number % 3]
        if number % 2:
            letters += "".join(chr(rng.integers(*ranges[rng.integers(4)])) for _ in range(20))
        texts.append("".join(rng.choice([*letters], rng.integers(0, 40))))
    return texts


def tokenizer(name, **settings):
    return Tokenizer.from_pretrained(TOKENIZERS / name, **settings)


@pytest.mark.parametrize(
    "name, settings, limit",
    [
        ("bert", {}, 40),
        ("bert", {"do_lower_case": False, "truncation_side": "left"}, 9),
        ("bart", {"add_prefix_space": True, "split_special_tokens": True}, 40),
        ("bart", {}, 40),
        ("bart", {"truncation_side": "left"}, 2),
        ("bert", {}, 2),
    ],
)
def test_text_in_a_graph_becomes_the_same_ids_and_text_again(name, settings, limit):
    ours = tokenizer(name, **settings)
    graph = TextGraph(text_tables(ours, name, len(ours) + 3), limit)
    texts = HARD + drawn(300)
    ids, mask = graph.encode(tf.constant(texts))
    want = ours(texts, padding=True, truncation=True, max_length=limit, return_tensors="np")
    np.testing.assert_array_equal(ids, want["input_ids"])
    np.testing.assert_array_equal(mask, want["attention_mask"])
    # any ids: bytes that are no text, special tokens, and some that no token has
    drawn_ids = np.random.default_rng(1).integers(0, len(ours) + 3, (200, 12))
    rows = np.concatenate([np.asarray(want["input_ids"])[:, :12], drawn_ids[:, : ids.shape[1]]])
    decoded = ours.batch_decode(rows, skip_special_tokens=True)
    assert [text.decode() for text in graph.decode(tf.constant(rows)).numpy()] == decoded
    assert [text.decode() for text in graph.decode_alone(tf.constant(rows[0])).numpy()] == [
        ours.decode([index]) for index in rows[0]
    ]


def test_sentencepiece_in_a_graph_reads_as_ours_but_for_ties():
    ours = tokenizer("t5")
    graph = TextGraph(text_tables(ours, "t5", len(ours)), 40)
    texts = [*HARD, *drawn(300)]
    ids, _ = graph.encode(tf.constant(texts))
    want = ours(texts, padding=True, truncation=True, max_length=40, return_tensors="np")
    found, wanted = ids.numpy(), want["input_ids"]
    other = np.flatnonzero((found != wanted).any(axis=1))
    assert len(other) <= 3
    for row in other:  # pieces of equal probability, in another order
        assert sorted(found[row]) == sorted(wanted[row])
    assert [text.decode() for text in graph.decode(ids).numpy()] == ours.batch_decode(
        found, skip_special_tokens=True
    )


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2, None])
def test_equal_scores_come_in_the_order_of_the_index(metric):
    rng = np.random.default_rng(0)
    vectors = rng.integers(-1, 2, (200, 3)).astype(np.float32)
    index = faiss.IndexFlat(3, metric or faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    index = FaissIndex(passages(vectors), index)
    if metric is None:
        index = index.where(lambda passage: passage["title"] != "T7")
    questions = rng.integers(-1, 2, (40, 3)).astype(np.float32)
    for n_docs in (1, 4, 17):
        found = _Passages(index_tables(index), n_docs)
        rows = found.rows_at(found.search(tf.constant(questions)))
        np.testing.assert_array_equal(rows, index.get_top_docs(questions, n_docs)[0])


WORDS = ["wood", "apple don't", "été", "日本語のテキスト。", "ไทยภาษาไทย", "<mask>", "x" * 120]
WORDS += ["3,000", "two  blanks", "a-b?"]
TIED = ("3,000", "x" * 120)  # sentencepiece has several ways to part them that are as likely


def passages(vectors, words=WORDS):
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(words, rng.integers(1, 14))) for _ in vectors]
    titles = [f'"T{i}"' if i % 3 == 0 else f"T{i}" for i in range(len(vectors))]
    columns = {"title": titles, "text": texts, "source": [f"f{i % 4}" for i in range(len(vectors))]}
    return Dataset.from_dict({**columns, "embeddings": vectors.tolist()})


def bart():
    target = tokenizer("bart")
    return target, BartConfig(
        vocab_size=len(target), d_model=8, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, max_position_embeddings=64,
    )  # fmt: skip


def t5():
    """With a prefix of its own, and a table of more rows than there are pieces, as released ones."""
    target = tokenizer("t5")
    return target, T5Config(
        vocab_size=len(target) + 12, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        prefix="answer: ", decoder_start_token_id=0,
    )  # fmt: skip


def build(kind, encoder, generator=bart, words=WORDS, **fields):
    question = tokenizer("bert")
    target, generator = generator()
    sizes = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 48, "vocab_size": len(question),
    }  # fmt: skip
    config = RagConfig.from_question_encoder_generator_configs(
        encoder(**sizes), generator, n_docs=3, max_combined_length=40, index_name="custom", **fields
    )
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    vectors[1::3] = vectors[::3]  # pairs that no search can tell apart
    flat = faiss.IndexFlatIP(8)
    flat.add(vectors)
    retriever = RagRetriever(
        config, question, target, index=FaissIndex(passages(vectors, words), flat)
    )
    question.model_max_length = 30
    model = kind(config, retriever=retriever)
    weights = dict(model.named_parameters())
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name, values in seeded_weights(shapes, 7).items():
        weights[name].assign(values)
    return model


MODELS = {
    "token": (RagTokenForGeneration, DPRConfig, {}, {"num_beams": 3, "num_return_sequences": 2}),
    "sequence": (
        RagSequenceForGeneration,
        lambda **sizes: BertConfig(**sizes, pooling="mean", query_prompt="query: "),
        {"prompt_truncation": "document", "doc_sep": " // "},
        {"num_beams": 2, "num_return_sequences": 2, "question_text": True},
    ),
    "t5": (
        RagTokenForGeneration,
        DPRConfig,
        {"generator": t5, "words": [word for word in WORDS if word not in TIED]},
        {"question_text": True},
    ),
}
QUESTIONS = [
    "Who wrote  the 'Café', and don't you [MASK]  know?",
    "what is a wood apple",
    "日本 " * 30,
    "Is it \x00 so?",
]
WORDLESS = ["", "  \n", "[SEP]"]
# and then what the command `saved_model_cli` runs, which has to find the operations first
ALONE = """
import sys
import numpy as np, tensorflow as tf, tensorflow_text
from tensorflow.python.tools.saved_model_cli import main
for name in ("token", "sequence", "t5"):
    served = tf.saved_model.load(name).signatures["serving_default"]
    for number, batch in enumerate((questions[:1], questions)):
        output = served(question=tf.constant(batch))
        arrays = {key: value.numpy() for key, value in output.items()}
        np.savez(f"{name}{number}.npz", **{k: v.astype("S") if v.dtype == object else v for k, v in arrays.items()})
for question in wordless:
    try:
        served(question=tf.constant(["what is it", question]))
        print("answered", repr(question))
    except tf.errors.InvalidArgumentError as error:
        assert "every question must have a word or more" in str(error), error
of_default = ["--dir", "sequence", "--tag_set", "serve", "--signature_def", "serving_default"]
for arguments in (["show", *of_default], ["run", *of_default, "--input_exprs", "question=['what is a wood']"]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
other = [m for m in sys.modules if m.split(".")[0] in ("rag_tf", "rag_core", "torch", "transformers", "tokenizers")]
assert not other, other
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strings")
    models = {}
    for name, (kind, encoder, fields, options) in MODELS.items():
        models[name] = build(kind, encoder, **fields)
        export_saved_model(models[name], folder / name, max_length=9, strings=True, **options)
    code = f"questions, wordless = {QUESTIONS!r}, {WORDLESS!r}\n{ALONE}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=folder,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, models, done.stdout


@pytest.mark.parametrize("name", MODELS)
def test_tensorflow_alone_answers_questions_as_the_model_does(exported, name):
    folder, models, _ = exported
    for number, questions in enumerate((QUESTIONS[:1], QUESTIONS)):
        served = np.load(folder / f"{name}{number}.npz")
        answers = models[name].answer(questions, max_length=9, **MODELS[name][3])
        assert len(answers) == int((served["log_probability"] > -np.inf).sum())
        places = np.argwhere(served["log_probability"] > -np.inf)
        for (b, i), answer in zip(places, answers, strict=True):
            texts = {key: served[key][b] for key in served if key.startswith("passage_")}
            for place, passage in enumerate(answer.passages):
                assert texts["passage_id"][place] == passage.id
                assert texts["passage_title"][place].decode() == passage.title
                assert texts["passage_text"][place].decode() == passage.text
                assert texts["passage_source"][place].decode() == passage.source
            assert served["answer"][b, i].decode() == answer.text
            tokens = [token.decode() for token in served["tokens"][b, i]]
            assert tokens[: len(answer.tokens)] == [t.rstrip("\0") for t in answer.tokens]
            for key, of in (("prior", "prior"), ("passage_score", "score")):
                want = [getattr(passage, of) for passage in answer.passages]
                np.testing.assert_allclose(served[key][b], want, rtol=1e-5, atol=1e-6)
            posterior = [passage.posterior for passage in answer.passages]
            np.testing.assert_allclose(served["posterior"][b, i], posterior, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(
                served["log_probability"][b, i], answer.log_probability, rtol=1e-4
            )
            if answer.token_posteriors is not None:
                by_token = served["token_posterior"][b, i, : len(answer.tokens)]
                np.testing.assert_allclose(by_token, answer.token_posteriors, rtol=1e-4, atol=1e-6)
        assert ("token_posterior" in served) == (name != "sequence")


def test_the_command_of_tensorflow_shows_and_runs_it(exported):
    _, models, printed = exported
    assert "inputs['question'] tensor_info:\n      dtype: DT_STRING\n      shape: (-1)" in printed
    posterior = "outputs['posterior'] tensor_info:\n      dtype: DT_FLOAT\n      shape: (-1, 2, 3)"
    assert posterior in printed
    answers = models["sequence"].answer("what is a wood", max_length=9, **MODELS["sequence"][3])
    for passage in answers[0].passages:
        assert str(passage.title.encode())[2:-1] in printed


def test_a_question_without_a_word_is_refused(exported):
    assert "answered" not in exported[2]


def test_what_no_graph_can_hold_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    model = build(*MODELS["token"][:2])

    def refused(says, error=ValueError, **options):
        with pytest.raises(error, match=says):
            export_saved_model(model, tmp_path / "out", **{"strings": True, **options})
        assert list(tmp_path.iterdir()) == []

    refused("options of strings=True", strings=False, n_docs=2)
    refused("n_docs must be at most the passages of the index, 60, got 61", n_docs=61)
    for wrong in (0, -1, 2.5):
        refused(f"n_docs must be a positive integer, got {wrong}", n_docs=wrong)
    retriever, flat = model.retriever, model.retriever.index
    lists = faiss.index_factory(8, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    vectors = flat.vectors_of(np.arange(60))
    lists.train(vectors)
    lists.add(vectors)
    retriever.index = FaissIndex(passages(vectors), lists)
    refused("index must be flat to be part of a graph, got IndexIVFFlat")
    retriever.index = flat
    retriever.generator_tokenizer.padding_side = "left"
    refused("generator_tokenizer must pad on the right")
    model.set_retriever(None)
    refused("model must have a retriever for strings=True")
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    refused(
        "needs tensorflow-text for TensorFlow .*pip install 'dualrag\\[tf-text\\]'", ImportError
    )


def test_a_text_needs_room_for_its_special_tokens():
    ours = tokenizer("bart")
    with pytest.raises(ValueError, match="no room for the special tokens: it is 1 too small"):
        TextGraph(text_tables(ours, "bart", len(ours)), 1)


@pytest.mark.parametrize("token, words", [("[ent]", []), (None, ["<mask>", "\n\n <mask>", "pear"])])
def test_documents_with_added_tokens_are_shortened_as_python_does(token, words):
    def generator():
        target, config = bart()
        if token:
            target.add_tokens([token])
            config.vocab_size = len(target)
        return target, config

    settings = {"words": words} if words else {"doc_sep": f" {token} "}
    settings |= {"prompt_truncation": "document", "generator": generator}
    model = build(RagTokenForGeneration, DPRConfig, **settings)
    model.retriever.config.max_combined_length = 16
    tables = index_tables(model.retriever.index)
    questions = ["who is it", "apple [ent] it", "x"]
    drawn_vectors = np.random.default_rng(0).normal(size=(3, 8)).astype("float32")
    _, ids, docs = model.retriever.retrieve(drawn_vectors, 3)
    prefix = model.config.generator.prefix
    want = model.retriever.postprocess_docs(docs, questions, prefix, 3, return_tensors="np")[0]
    places = np.searchsorted(tables.rows, ids)
    titles, texts = (tf.gather(tf.constant(part), places) for part in (tables.titles, tables.texts))
    prompts = _Prompts(model, tables, 3)
    got, _ = prompts.encode(titles, texts, tf.constant(questions), tf.constant(places, tf.int32))
    np.testing.assert_array_equal(got, want)


def test_pipelines_that_tables_cannot_express_are_refused():
    ours = tokenizer("bart")
    pipeline = json.loads(ours.backend_tokenizer.to_str())
    for part, key, value, says in (
        ("model", "dropout", 0.1, "dropout=0.1"),
        ("pre_tokenizer", "use_regex", False, "other words than GPT-2's"),
        ("model", "end_of_word_suffix", "</w>", "end_of_word_suffix"),
    ):
        changed = {**pipeline, part: {**pipeline[part], key: value}}
        ours._files.backend = type(ours.backend_tokenizer).from_str(json.dumps(changed))
        with pytest.raises(ValueError, match=f"t must be BERT's.*{says}"):
            text_tables(ours, "t", len(ours))
