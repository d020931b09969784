"""What the tests of fine-tuning in both frameworks share.

Tokenizers, an index and the config of a tiny model.
"""

import json

import numpy as np

from rag_core.backends import to_numpy
from rag_core.config.rag import BartConfig, BertConfig, DPRConfig, RagConfig
from rag_core.knowledge.base import build_knowledge_base
from rag_core.retrieval.retriever import RagRetriever
from rag_core.tokenization.rag import RagTokenizer, Tokenizer
from rag_core.training.data import Example

WORDS = "river city king war song tree stone bird fish moon".split()
EXAMPLES = [Example(f"{a} {b} ?", (b,)) for a, b in zip(WORDS, reversed(WORDS), strict=True)]
SETTINGS = {
    "batch_size": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "save_every": 3,
    "log_every": 2,
    "on_collapse": "warn",
}
VECTORS = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)


class Killed(BaseException):
    pass


class ArrayIndex:
    """Exact search in memory."""

    def __init__(self, titles, texts, vectors):
        self.titles, self.texts, self.vectors = titles, texts, vectors

    def __len__(self):
        return len(self.titles)

    def is_initialized(self):
        return True

    def init_index(self):
        pass

    def get_top_docs(self, question_hidden_states, n_docs=5):
        ids = np.argsort(-(question_hidden_states @ self.vectors.T), axis=1, kind="stable")[
            :, :n_docs
        ]
        return ids.astype(np.int64), self.vectors[ids]

    def get_doc_dicts(self, doc_ids):
        return [
            {"title": [self.titles[i] for i in r], "text": [self.texts[i] for i in r]}
            for r in doc_ids
        ]


def small_tokenizers(root):
    """A question encoder's and a generator's tokenizer over `WORDS`."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator(
        [" ".join(WORDS)] * 5, vocab_size=330, special_tokens=special, show_progress=False
    )
    (root / "bart").mkdir()
    bpe.save_model(str(root / "bart"))
    (root / "bart" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BartTokenizer"})
    )
    (root / "bert").mkdir()
    (root / "bert" / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "?"])
    )
    (root / "bert" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer"})
    )
    return Tokenizer.from_pretrained(root / "bert"), Tokenizer.from_pretrained(root / "bart")


def small_config(tokenizers, dropout=0.1):
    """A one-layer BERT and a one-layer BART."""
    question = BertConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, pooling="mean", projection_dim=16, normalize=True, scale=4.0,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    generator = BartConfig(
        vocab_size=len(tokenizers[1]), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
        decoder_start_token_id=0, dropout=dropout, init_std=0.1,
    )  # fmt: skip
    return RagConfig(
        question_encoder=question.to_dict(), generator=generator.to_dict(), n_docs=2, max_combined_length=24,
        index_name="custom", retrieval_vector_size=16, prompt_truncation="document",
    )  # fmt: skip


def small_retriever(config, tokenizers):
    index = ArrayIndex(WORDS, [f"{w} {w}" for w in reversed(WORDS)], VECTORS)
    return RagRetriever(config, *tokenizers, index=index)


def weights(model):
    return {name: to_numpy(value).copy() for name, value in model.state_dict().items()}


def timeless(report):
    """The log without what depends on the clock."""
    lines = [dict(line) for line in report.history]
    for line in lines:
        line.pop("tokens_per_second", None)
    return lines


class Fresh:
    """A model that starts anew with the same weights: TensorFlow's graphs are compiled once."""

    def __init__(self, golden, tokenizers, dropout, precision="float32"):
        golden.set_seed(3)
        config = small_config(tokenizers, dropout)
        self.golden = golden
        self.retriever = small_retriever(config, tokenizers)
        token, sequence = golden.CLASSES["token"], golden.CLASSES["sequence"]
        self.model = golden.cast(token(config, retriever=self.retriever), precision)
        parts = self.model.question_encoder, self.model.generator
        self.sequence = sequence(config, *parts, self.retriever)
        self.start = weights(self.model)

    def __call__(self, head="token"):
        self.golden.restore(self.model, self.start)
        return {"token": self.model, "sequence": self.sequence}[head]


def train_command(folder, model, tokenizers):
    """Writes model, knowledge base and questions.

    Returns the words of a `dualrag train` of two steps.
    """
    model.save_pretrained(folder / "model")
    RagTokenizer(*tokenizers).save_pretrained(folder / "model")
    (folder / "wiki.jsonl").write_text(
        "\n".join(json.dumps({"title": w, "text": f"{w} {w}"}) for w in WORDS)
    )
    vectors = dict(zip(WORDS, VECTORS, strict=True))

    def encode(titles, texts):
        return np.stack([vectors.get(title, VECTORS[0]) for title in titles])

    build_knowledge_base(folder / "wiki.jsonl", folder / "kb", encode, progress=False)
    asked = folder / "qa.jsonl"
    asked.write_text(
        "\n".join(json.dumps({"question": e.question, "answer": e.answers[0]}) for e in EXAMPLES)
    )
    words = ["train", str(asked), "--model", str(folder / "model"), "--kb", str(folder / "kb")]
    return [
        *words,
        "--out",
        str(folder / "tuned"),
        "--steps",
        "2",
        "--validation",
        str(asked),
        "--warmup-steps",
        "0",
    ]


def live_files(folder, rag, tokenizers, kind="bert"):
    """Writes an encoder of passages, a knowledge base of its vectors, a model and questions, for
    `train_files` with a context encoder that learns.

    Args:
        folder: where to.
        rag: the backend's package.
        tokenizers: of `small_tokenizers`.
        kind: of the encoder, "bert" or "dpr".

    Returns:
        The paths of questions, model and knowledge base.
    """
    config = small_config(tokenizers, dropout=0.1)
    fields = config.question_encoder.to_dict() | {"scale": 1.0}
    encoder = rag.BertEncoder(BertConfig.from_dict(fields))
    if kind == "dpr":
        encoder = rag.DPRContextEncoder(DPRConfig.from_dict(fields | {"model_type": "dpr"}))
    encoder.save_pretrained(folder / "encoder")
    tokenizers[0].save_pretrained(folder / "encoder")
    (folder / "wiki.jsonl").write_text(
        "\n".join(json.dumps({"title": w, "text": f"{w} {w}"}) for w in WORDS)
    )
    build_knowledge_base(
        folder / "wiki.jsonl",
        folder / "kb",
        rag.load_encoder(folder / "encoder").embed,
        encoder_name=str(folder / "encoder"),
        shard_rows=4,
        progress=False,
    )
    rag.RagTokenForGeneration(config).save_pretrained(folder / "model")
    RagTokenizer(*tokenizers).save_pretrained(folder / "model")
    (folder / "qa.jsonl").write_text(
        "\n".join(json.dumps({"question": e.question, "answer": e.answers[0]}) for e in EXAMPLES)
    )
    return folder / "qa.jsonl", folder / "model", folder / "kb"
