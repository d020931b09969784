"""Sentence encoders: every setting of their folder that changes a vector is carried out or
refused by name.
"""

import json

import numpy as np
import pytest

from rag_core import RagConfig, RagTokenizer, Tokenizer
from rag_core.backends import load_backend
from rag_core.config.sentence_transformers import sentence_settings
from tests.support.frameworks import INSTALLED

WORDS = "[PAD] [UNK] [CLS] [SEP] query passage : who Who wrote it is a text about . nothing".split()
KINDS = (("", "Transformer"), ("1_Pooling", "Pooling"))
PROMPTS = {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": None}


def write(folder, name, values):
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(values), encoding="utf-8")


def write_folder(
    folder,
    transformer=None,
    model=None,
    pooling=None,
    modules=KINDS,
    package="sentence_transformers.models",
):
    """The files of a cased sentence encoder around whatever network is saved in `folder`."""
    write(
        folder,
        "modules.json",
        [{"path": path, "type": f"{package}.{kind}"} for path, kind in modules],
    )
    write(
        folder,
        "1_Pooling/config.json",
        pooling or {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True},
    )
    if transformer is not None:
        write(folder, "sentence_bert_config.json", transformer)
    if model is not None:
        write(folder, "config_sentence_transformers.json", model)
    return folder


@pytest.fixture(scope="module", params=sorted(INSTALLED))
def rag(request):
    return load_backend(request.param)


@pytest.fixture
def network(rag, tmp_path):
    """A folder with a small cased BERT, and the vectors of texts as its tokenizer sees them."""
    from rag_core import BertConfig

    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    model = rag.BertEncoder(BertConfig(**sizes, vocab_size=len(WORDS), pooling="mean"))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("pooling", "normalize", "scale", "projection_dim"):
        config.pop(name, None)
    write(tmp_path, "config.json", config)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    write(
        tmp_path,
        "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
    )
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    kind = "pt" if rag.__name__ == "rag_torch" else "tf"

    def vectors(texts, **options):
        ids = tokenizer(texts, padding=True, return_tensors=kind, **options)
        output = model.eval()(**ids)[0]
        return output.detach().numpy() if kind == "pt" else output.numpy()

    return tmp_path, vectors


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_passages_are_embedded_as_the_folder_says(rag, network):
    folder, vectors = network
    write_folder(
        folder,
        {"max_seq_length": 5, "do_lower_case": True},
        {**PROMPTS, "similarity_fn_name": "cosine"},
    )
    found = rag.load_encoder(folder).embed(["Who", ""], ["wrote it", "Who is a text about nothing"])
    seen = ["passage: who wrote it", "passage: who is a text about nothing"]
    expected = unit(vectors(seen, truncation=True, max_length=5))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(
        found, unit(vectors(["Who wrote it", "Who is a text about nothing"])), atol=1e-3
    )


def test_questions_are_embedded_with_a_prompt_of_their_own(rag, network):
    folder, vectors = network
    write_folder(folder, {"max_seq_length": 5, "do_lower_case": True}, PROMPTS)
    encoder = rag.load_encoder(folder)
    found = encoder.embed_questions(["Who", "Who is a text about nothing"], batch_size=1)
    seen = [PROMPTS["prompts"]["query"] + "who", PROMPTS["prompts"]["query"] + "who is a text"]
    expected = vectors(seen, truncation=True, max_length=5)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_plain_folder_and_the_tokenizers_limit(rag, network):
    folder, vectors = network
    texts = ["Who wrote it", "a text about nothing ."]
    write_folder(
        folder,
        {"max_seq_length": None, "do_lower_case": False},
        modules=(*KINDS, ("2_Normalize", "Normalize")),
    )
    np.testing.assert_allclose(
        rag.load_encoder(folder).embed_texts(texts), unit(vectors(texts)), atol=1e-6
    )
    write(
        folder,
        "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 4},
    )
    cut = unit(vectors(texts, truncation=True, max_length=4))
    np.testing.assert_allclose(rag.load_encoder(folder).embed_texts(texts), cut, atol=1e-6)


def test_questions_are_asked_as_the_folder_says_and_prompts_hold_what_was_asked(
    rag, network, world, tmp_path
):
    folder, _ = network
    write_folder(folder, {"max_seq_length": 7, "do_lower_case": True}, PROMPTS)
    generator = world / "facebook" / "bart-large"
    target = Tokenizer.from_pretrained(generator)
    model = rag.RagTokenForGeneration.from_pretrained_question_encoder_generator(
        folder, generator, n_docs=1
    )
    question = Tokenizer.from_pretrained(folder)
    RagTokenizer(question, target).save_pretrained(tmp_path / "rag")
    model.save_pretrained(tmp_path / "rag")
    for tokenizer in (
        RagTokenizer(question, target, model.config),
        RagTokenizer.from_pretrained(tmp_path / "rag"),
    ):
        ids = tokenizer(["Who wrote it", "Who wrote it . it . it"], truncation=True)["input_ids"]
        assert question.batch_decode(ids) == [
            "[CLS] query : who wrote it [SEP]",
            "[CLS] query : who wrote it [SEP]",
        ]
        assert question.decode(tokenizer("Who")["input_ids"]) == "[CLS] query : who [SEP]"
        assert tokenizer(text_target="Who")["input_ids"] == target("Who")["input_ids"]

    class OnePassage:
        def is_initialized(self):
            return True

        def init_index(self):
            pass

        def get_top_docs(self, vectors, n_docs=1):
            return np.zeros((len(vectors), 1), np.int64), np.ones((len(vectors), 1, 8), np.float32)

        def get_doc_dicts(self, ids):
            return [{"title": ["a"], "text": ["b"]} for _ in ids]

    retriever = rag.RagRetriever(
        RagConfig.from_pretrained(tmp_path / "rag"), question, target, index=OnePassage()
    )
    assert retriever.decode_questions(retriever.tokenizer(["Who wrote it"])["input_ids"]) == [
        "who wrote it"
    ]
    with pytest.warns(UserWarning, match="do not begin with 'query: '"):
        assert retriever.decode_questions(question(["who wrote it"])["input_ids"]) == [
            "who wrote it"
        ]
    seen = []
    retriever.postprocess_docs = lambda *args: (
        seen.append(args[1]) or type(retriever).postprocess_docs(retriever, *args)
    )
    model.set_retriever(retriever)
    [answer] = model.answer("Who wrote it", max_new_tokens=2)
    assert answer.question == "Who wrote it"
    assert seen == [["who wrote it"]]


@pytest.mark.parametrize(
    ("values", "query", "passage"),
    [
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "q: ", "p: "),
        ({"prompts": {"query": "q: ", "corpus": "c: ", "document": ""}}, "q: ", ""),
        ({"prompts": {"all": "x: "}, "default_prompt_name": "all"}, "x: ", "x: "),
        ({"prompts": {"query": None, "all": "x: "}, "default_prompt_name": "all"}, "", "x: "),
        ({"prompts": {"all": "x: "}, "default_prompt_name": None}, "", ""),
        ({"__version__": {"pytorch": "2"}, "prompts": {}, "similarity_fn_name": None}, "", ""),
    ],
)
def test_which_prompt_counts(tmp_path, values, query, passage):
    found = sentence_settings(write_folder(tmp_path, model=values))
    assert (found.query_prompt, found.passage_prompt) == (query, passage)


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        ("model", {"truncate_dim": 64}, "truncate_dim"),
        ("model", {"similarity_fn_name": "euclidean"}, "similarity_fn_name"),
        ("model", {"similarity_fn_name": "maxsim"}, "similarity_fn_name"),
        ("model", {"model_type": "SparseEncoder"}, "model_type"),
        ("model", {"default_prompt_name": "query", "prompts": {}}, "default_prompt_name"),
        ("model", {"prompts": ["query: "]}, "prompts"),
        ("transformer", {"max_seq_length": "many"}, "max_seq_length"),
        ("transformer", {"max_seq_length": 0}, "max_seq_length"),
        ("transformer", {"do_lower_case": "yes"}, "do_lower_case"),
        ("transformer", {"tokenizer_args": {"truncation_side": "left"}}, "tokenizer_args"),
        ("transformer", {"model_args": {"attn": 1}}, "model_args"),
        ("transformer", {"query_length": 32}, "query_length"),
        ("transformer", {"modality_config": {"image": {}}}, "modality_config"),
        ("pooling", {"pooling_mode_median_tokens": True}, "pooling_mode_median_tokens"),
        ("pooling", {"pooling_mode": ["mean", "cls"]}, "mean, cls"),
        (
            "pooling",
            {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True},
            "max, mean",
        ),
        ("modules", (*KINDS, ("2_LSTM", "LSTM")), "LSTM"),
        (
            "modules",
            (("", "Transformer"), ("2_Normalize", "Normalize"), ("1_Pooling", "Pooling")),
            "in this order",
        ),
        ("modules", (*KINDS, ("1_Pooling", "Pooling")), "one Pooling"),
        ("modules", KINDS[:1], "one Pooling"),
        ("package", "custom_code", "custom_code.Transformer"),
    ],
)
def test_what_would_change_vectors_and_is_not_computed_is_refused_by_name(
    tmp_path, part, values, named
):
    with pytest.raises(ValueError, match=named):
        sentence_settings(write_folder(tmp_path, **{part: values}))


def test_prompts_left_out_of_pooling_and_settings_never_heard_of(tmp_path):
    pooling = {"pooling_mode": "mean", "embedding_dimension": 8, "include_prompt": False}
    assert sentence_settings(write_folder(tmp_path, pooling=pooling)).pooling == "mean"
    with pytest.raises(ValueError, match="include_prompt"):
        sentence_settings(write_folder(tmp_path, model=PROMPTS, pooling=pooling))
    with pytest.warns(UserWarning, match="whitening"):
        sentence_settings(write_folder(tmp_path, transformer={"whitening": True}, model={}))
