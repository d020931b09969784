"""Builds `tokenizers` pipelines from the vocabularies of BERT (WordPiece), BART (byte-level BPE)
and T5 (unigram).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.hub import bounded_json

if TYPE_CHECKING:
    import tokenizers

MANY = int(1e30)  # transformers' way of writing "no limit" as model_max_length


@dataclass(frozen=True)
class Family:
    """What a kind of tokenizer is when its files do not say.

    Special tokens, returned keys, vocabulary files.
    """

    name: str
    tokenizer_class: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    model_input_names: tuple[str, ...] = ("input_ids", "attention_mask")
    vocabulary_files: tuple[str, ...] = ()


_TYPED = ("input_ids", "token_type_ids", "attention_mask")
BERT = Family(
    "bert",
    "BertTokenizer",
    {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")},
    _TYPED,
    ("vocab.txt",),
)
BART = Family(
    "bart",
    "BartTokenizer",
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    vocabulary_files=("vocab.json", "merges.txt"),
)
T5 = Family(
    "t5",
    "T5Tokenizer",
    {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    vocabulary_files=("spiece.model",),
)
OTHER = Family("other", "PreTrainedTokenizerFast", {}, _TYPED)
FAMILIES = (BERT, BART, T5)
VOCABULARY_FILES = tuple(name for family in FAMILIES for name in family.vocabulary_files)
# tokenizer_class (without "Tokenizer" and "Fast") or config.json's model_type -> family
FAMILY_OF = {
    "bert": BERT,
    "dpr": BERT,
    "dprquestionencoder": BERT,
    "dprcontextencoder": BERT,
    "dprreader": BERT,
    "bart": BART,
    "roberta": BART,
    "t5": T5,
}


def build_wordpiece(files: Mapping[str, bytes], config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BERT's tokenizer from `vocab.txt`, honouring do_lower_case, strip_accents and
    tokenize_chinese_chars.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    lines = files["vocab.txt"].decode("utf-8").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocabulary = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    unk = config["unk_token"]
    vocabulary.setdefault(unk, len(vocabulary))  # WordPiece must find it among its own
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=unk, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def build_byte_bpe(files: Mapping[str, bytes], config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """BART's (and RoBERTa's) tokenizer from `vocab.json` and `merges.txt`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = bounded_json(files["vocab.json"].decode("utf-8"))
    merges = []
    for line in files["merges.txt"].decode("utf-8").split("\n"):
        if line.strip() and not line.startswith("#version"):
            left, _, right = line.rstrip("\r").partition(" ")
            merges.append((left, right))
    backend = Tokenizer(
        models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=bool(config.get("add_prefix_space", False))
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def build_unigram(files: Mapping[str, bytes], config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """T5's tokenizer from a sentencepiece `spiece.model`, with its sentinels `<extra_id_0>` ...

    at the end.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        from sentencepiece import sentencepiece_model_pb2 as schema
    except ImportError as error:
        raise ImportError(
            "Reading spiece.model (a T5 tokenizer without tokenizer.json) needs sentencepiece and "
            f"protobuf, of releases that go together ({error}). Run  pip install 'dualrag[t5]', or, "
            "where another library holds protobuf below 5,  pip install 'sentencepiece<0.2.1'"
        ) from error
    proto = getattr(schema, "ModelProto")()  # noqa: B009 - made at run time, so unknown to type checkers
    try:
        proto.ParseFromString(files["spiece.model"])
    # protobuf's DecodeError lives in a module that differs between its versions
    except Exception as error:
        raise ValueError(
            f"spiece.model is no sentencepiece model, or is cut short: {error}"
        ) from error
    if proto.trainer_spec.model_type != 1:
        raise ValueError(
            "spiece.model must be a unigram model (T5's kind), got type "
            f"{proto.trainer_spec.model_type}. Ship a tokenizer.json instead"
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(int(config.get("extra_ids", 100))))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=proto.trainer_spec.unk_id))
    steps: list[Any] = [
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(" {2,}"), "▁"),
    ]
    if proto.normalizer_spec.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    return backend


BUILDERS = {"bert": build_wordpiece, "bart": build_byte_bpe, "t5": build_unigram}


def frame_texts(backend: tokenizers.Tokenizer, family: Family, config: Mapping[str, Any]) -> None:
    """Has a pipeline built here put its family's special tokens around texts.

    They are in the vocabulary by now.
    """
    from tokenizers import processors

    def numbered(name: str) -> tuple[str, Any]:
        return config[name], backend.token_to_id(config[name])

    if family is BART:
        # by position: releases of the library disagree on the names
        spaced = bool(config.get("add_prefix_space", False))
        backend.post_processor = processors.RobertaProcessing(
            numbered("sep_token"), numbered("cls_token"), True, spaced
        )
        return
    if family is T5:
        eos = config["eos_token"]
        single, pair, around = f"$A {eos}", f"$A {eos} $B {eos}", [numbered("eos_token")]
    else:
        cls, sep = config["cls_token"], config["sep_token"]
        single, pair = f"{cls}:0 $A:0 {sep}:0", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
        around = [numbered("cls_token"), numbered("sep_token")]
    backend.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=around
    )


def follow_config(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Lets tokenizer_config.json overrule tokenizer.json where both speak.

    Drops stored truncation and padding.
    """
    from tokenizers import normalizers, pre_tokenizers

    backend.no_truncation()
    backend.no_padding()
    normalizer, splitter = backend.normalizer, backend.pre_tokenizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        names = {
            "lowercase": "do_lower_case",
            "strip_accents": "strip_accents",
            "handle_chinese_chars": "tokenize_chinese_chars",
        }
        for attribute, key in names.items():
            if key in config:
                setattr(normalizer, attribute, config[key])
        backend.normalizer = normalizer
    if isinstance(splitter, pre_tokenizers.ByteLevel) and "add_prefix_space" in config:
        splitter.add_prefix_space = bool(config["add_prefix_space"])
        backend.pre_tokenizer = splitter


def split_special_tokens(backend: tokenizers.Tokenizer) -> None:
    """Has a pipeline read special tokens that are spelled in a text as letters."""
    from tokenizers import models

    backend.encode_special_tokens = True
    if not isinstance(backend.model, models.Unigram):
        return
    # T5's special tokens are pieces of its model too: they keep their ids under spellings that no
    # text has.
    model = json.loads(backend.to_str())["model"]
    special = {
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    }
    pieces = [
        (f"\0\uffff{piece}\0" if piece in special else piece, score)
        for piece, score in model["vocab"]
    ]
    backend.model = models.Unigram(
        pieces, unk_id=model["unk_id"], byte_fallback=model.get("byte_fallback", False)
    )


def portable_json(backend: tokenizers.Tokenizer) -> str:
    """tokenizer.json in the dialect that every release of `tokenizers` since 0.13 reads (merges,
    Metaspace).
    """
    content = json.loads(backend.to_str())
    model = content["model"]
    merges = model.get("merges")
    if (
        merges
        and not isinstance(merges[0], str)
        and not any(" " in part for pair in merges for part in pair)
    ):
        model["merges"] = [" ".join(pair) for pair in merges]
    if not model.get("ignore_merges"):
        model.pop("ignore_merges", None)
    for part in (content.get("pre_tokenizer"), content.get("decoder")):
        for step in [part or {}, *((part or {}).get("pretokenizers") or [])]:
            if step.get("type") == "Metaspace":
                step["add_prefix_space"] = step.get("prepend_scheme") != "never"
                if step.get("split"):
                    del step["split"]
    return json.dumps(content, ensure_ascii=False)


def vocabulary_files(
    backend: tokenizers.Tokenizer, folder: Path, prefix: str | None = None
) -> list[Path]:
    """Writes vocab.txt, or vocab.json and merges.txt, for readers that take no tokenizer.json."""
    if type(backend.model).__name__ not in ("WordPiece", "BPE"):
        return []
    return [Path(name) for name in backend.model.save(str(folder), prefix)]
