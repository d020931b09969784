"""A cache like the one that `dualrag demo` fills: the demo's configs at tiny sizes, fresh weights,
a dozen passages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rag_core import BertConfig, RagConfig, RagTokenizer, Tokenizer, build_knowledge_base
from rag_core.demo.checkpoint import HEAD, MARK, SHIPPED, parts_digest
from rag_core.demo.material import ENCODER
from tests.support.golden_prompts import write_tokenizers

SIZE = 16
ARTICLES = {
    "War and Peace": "A novel by Leo Tolstoy, set during Napoleon's invasion of Russia.",
    "Leo Tolstoy": "A Russian writer, the author of War and Peace.",
    "Saturn": "The sixth planet from the Sun, known for its rings of ice and rock.",
    "Photosynthesis": "Plants turn sunlight, water and carbon dioxide into sugar.",
    "Michelangelo": "He painted the ceiling of the Sistine Chapel.",
    "Paris": "About two million people live in the capital of France.",
}


def write_demo_cache(home: Path, rag: Any) -> Path:
    """What `DUALRAG_HOME` is to name.

    Args:
        home: where to.
        rag: the backend that draws the weights.
    """
    write_tokenizers(home / "tokenizers")
    question, target = (
        Tokenizer.from_pretrained(home / "tokenizers" / name) for name in ("question", "bart")
    )
    config = _small(RagConfig.from_pretrained(SHIPPED), len(question), len(target))
    encoder = home / Path(ENCODER).name
    _write_encoder(encoder, rag, config.question_encoder, question)

    model = home / "demo-model"
    getattr(rag, HEAD)(config).save_pretrained(model)
    RagTokenizer(question, target).save_pretrained(model)
    (model / MARK).write_text(parts_digest(SHIPPED, encoder))

    lines = [json.dumps({"title": title, "text": text}) for title, text in ARTICLES.items()]
    (home / "articles.jsonl").write_text("\n".join(lines))
    build_knowledge_base(
        home / "articles.jsonl",
        home / "demo-kb",
        rag.load_encoder(encoder).embed,
        encoder_name=ENCODER,
        progress=False,
    )
    return home


def _small(shipped: RagConfig, question_words: int, target_words: int) -> RagConfig:
    values = shipped.to_dict()
    values["question_encoder"] |= {
        "vocab_size": question_words,
        "hidden_size": SIZE,
        "projection_dim": SIZE,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    values["generator"] |= {
        "vocab_size": target_words,
        "d_model": SIZE,
        "encoder_layers": 1,
        "num_hidden_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    return RagConfig.from_dict(values | {"retrieval_vector_size": SIZE})


def _write_encoder(folder: Path, rag: Any, config: Any, tokenizer: Tokenizer) -> None:
    """A sentence encoder without the projection that the model adds."""
    values = config.to_dict() | {"projection_dim": 0, "scale": 1.0}
    rag.BertEncoder(BertConfig.from_dict(values)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pooling = {"word_embedding_dimension": SIZE, "pooling_mode_mean_tokens": True}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    kinds = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules
    ]
    (folder / "modules.json").write_text(json.dumps(kinds))
