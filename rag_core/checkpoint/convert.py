"""`dualrag convert`: a model in any layout that can be read -> the one layout that is written here.

Read: safetensors of PyTorch and TensorFlow classes, `pytorch_model.bin`, `tf_model.h5`, each in one
file or in shards, of whole RAG models and of their parts alone. Names and shapes are checked before
anything is written, numbers pass through memory one tensor at a time, and the folder appears when
it is whole.
"""

from __future__ import annotations

import filecmp
import json
import math
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from rag_core.checkpoint.folder import WEIGHT_FILES, read_weights, write_checkpoint
from rag_core.checkpoint.lazy import LazyWeights
from rag_core.checkpoint.weights import FLOATS, fit_weights, tied_names
from rag_core.config import (
    AutoConfig,
    BertConfig,
    DPRConfig,
    PretrainedConfig,
    RagConfig,
    config_from_dict,
)
from rag_core.hub import (
    atomic_folder,
    clear,
    is_local,
    list_commit,
    list_files,
    numbered,
    read_json,
    resolve_file,
    split_hub_kwargs,
)

DTYPES = ("keep", "float32", "float16", "bfloat16")

_RAG_CLASSES = {
    "model": "RagModel",
    "token": "RagTokenForGeneration",
    "sequence": "RagSequenceForGeneration",
}
_CLASSES = {
    "bart": "BartForConditionalGeneration",
    "t5": "T5ForConditionalGeneration",
    "bert": "BertModel",
}
_DPR_CLASSES = {"question": "DPRQuestionEncoder", "context": "DPRContextEncoder"}

# What belongs to a model besides its weights: tokenizers, sentence encoders' settings, a
# retriever's index.
_TOKENIZER = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
_ALONG = (
    *_TOKENIZER,
    *(f"question_encoder_tokenizer/{name}" for name in _TOKENIZER),
    *(f"generator_tokenizer/{name}" for name in _TOKENIZER),
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "hf_dataset/*",
    "hf_dataset_index.faiss",
    "hf_dataset_index.faiss.json",
    "bm25/*",
)
# Says where a tuned model's knowledge base lies, from the model's own folder.
_REMEMBERED = "knowledge_base.json"


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote.

    Attributes:
        weights: how many, tied copies counted once.
        size: of their numbers, in bytes.
        files: names of the files that hold them.
        dtypes: of the numbers written.
        left_out: names of the source that no network here needs.
        copied: files that were copied along.
    """

    weights: int
    size: int
    files: list[str]
    dtypes: list[str]
    left_out: list[str]
    copied: list[str]

    def __str__(self) -> str:
        size = f"{self.size / 1e6:,.1f} MB of {' and '.join(self.dtypes)}"
        text = (
            f"{self.weights} weights, {size}, in {len(self.files)} file(s), {len(self.copied)} "
            "other file(s) copied"
        )
        if self.left_out:
            count = len(self.left_out)
            text += (
                f"; left out, as nothing here needs them: {count} ({numbered(self.left_out, 5)})"
            )
        return text


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    dtype: str = "keep",
    progress: bool = False,
    **hub: Any,
) -> Converted:
    """Writes the model of one folder or repository into a new folder: config, safetensors,
    tokenizers.

    Args:
        source: folder or repository; a RAG model, or a DPR, BERT, BART or T5 alone.
        target: the folder to make; other files in it stay, a model in it is refused unless it is
            this very one.
        max_shard_size: bytes, or text such as "5GB"; larger checkpoints are split.
        dtype: of floating-point numbers: one of `DTYPES`; "keep" leaves each as it is.
        progress: show a bar.
        **hub: options of `rag_core.hub.HUB_KWARGS`.

    Raises:
        OSError: files are missing, damaged or refused, `target` holds a model, or can't be written;
            nothing is left.
        TypeError: an unknown option.
        ValueError: the weights don't fit the configuration (every name is listed), or numbers too
            large for `dtype`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    _, unknown = split_hub_kwargs(hub)
    if unknown:
        raise TypeError(
            "convert_checkpoint must get hub options besides its own, got "
            f"{', '.join(sorted(unknown))}. Leave them out."
        )
    clear(target)
    # configuration, weights and tokenizers of one commit, should the branch move meanwhile
    if not is_local(source):
        hub["revision"] = list_commit(source, **hub)[0]
    names = ("config.json", *WEIGHT_FILES)
    model_files = [name for name in names if (Path(target) / name).exists()]
    config = AutoConfig.from_pretrained(source, **hub)
    if model_files and not _may_be(config, Path(target)):
        raise _holds_model(target, model_files)
    stored = read_weights(source, **hub)
    head = _head(config, stored)
    fitted = fitted_weights(config, stored, str(source))
    copies = {name for group in tied_names(config, head) for name in group[1:]}
    weights = _to_write(fitted, copies, dtype)
    along = [
        name
        for name in list_files(source, **hub)
        if any(fnmatch(name, pattern) for pattern in _ALONG)
    ]

    from tqdm import tqdm

    size = sum(math.prod(weights.shapes[name]) * weights.dtypes[name].itemsize for name in weights)
    hidden = not progress or None  # None: at a terminal alone
    with atomic_folder(target) as draft:
        with tqdm(total=size, desc="converting", unit="B", unit_scale=True, disable=hidden) as bar:
            write_checkpoint(
                draft,
                weights,
                config,
                architecture=_architecture(config, head),
                max_shard_size=max_shard_size,
                progress=bar.update,
            )
        for name in along:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(resolve_file(source, name, **hub), draft / name)
        if _remember(source, Path(target), draft):
            along.append(_REMEMBERED)
        files = sorted(path.name for path in draft.glob("*.safetensors"))
        # A run that was killed at its very end leaves what it was asked for: asked again, it finds
        # it done.
        if model_files and not _equals(Path(target), draft):
            raise _holds_model(target, model_files)
    dtypes = sorted({dtype.name for dtype in weights.dtypes.values()})
    return Converted(len(weights), size, files, dtypes, list(fitted.left_out), along)


def _remember(source: str | Path, target: Path, draft: Path) -> bool:
    """Whether the source is a folder that remembers a knowledge base; the target will, too."""
    file = Path(source).expanduser() / _REMEMBERED
    if not is_local(source) or not file.is_file():
        return False
    notes = read_json(file)
    path = notes.get("path")
    if isinstance(path, str) and not Path(path).is_absolute():
        place = os.path.relpath(file.parent.resolve() / path, target.expanduser().resolve())
        notes["path"] = Path(place).as_posix()
    text = json.dumps(notes, indent=2, ensure_ascii=False) + "\n"
    (draft / _REMEMBERED).write_text(text, encoding="utf-8")
    return True


def fitted_weights(config: PretrainedConfig, stored: LazyWeights, source: str) -> LazyWeights:
    """The weights of a checkpoint under the names of the class that saved it.

    Args:
        config: the checkpoint's.
        stored: as `read_weights` gives them.
        source: what to call the checkpoint in errors.

    Raises:
        ValueError: they don't fit the configuration (every name is listed), or no network here
            computes it.
    """
    return fit_weights(
        _shaped(config, stored),
        stored,
        _head(config, stored),
        context_encoder=_context_encoder(config),
        source=source,
    )


def _holds_model(folder: str | Path, files: list[str]) -> FileExistsError:
    return FileExistsError(
        f"{str(folder)!r} holds a model already ({', '.join(files)}); name another folder."
    )


def _may_be(config: PretrainedConfig, folder: Path) -> bool:
    """Whether a model there has this configuration, but for what a conversion writes anew.

    Cheap to ask.
    """
    try:
        other = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError):
        return False
    rewritten = {"torch_dtype": None, "architectures": None}
    return {**config.to_dict(), **rewritten} == {**other.to_dict(), **rewritten}


def _equals(folder: Path, draft: Path) -> bool:
    """Whether the folder has all files of a draft, byte for byte, and no other weights."""
    files = [path.relative_to(draft) for path in draft.rglob("*") if path.is_file()]
    others = {path.name for path in folder.glob("*.safetensors")} - {str(name) for name in files}
    return not others and all(
        (folder / name).is_file() and filecmp.cmp(folder / name, draft / name, shallow=False)
        for name in files
    )


def _head(config: PretrainedConfig, weights: LazyWeights) -> str | None:
    """Under which names a checkpoint is written: as the class that saved it says."""
    saved_by = "".join(map(str, config.architectures or []))
    if isinstance(config, RagConfig):
        if "RagModel" in saved_by:
            return "model"
        return config.saved_head
    if isinstance(config, DPRConfig):
        if "Context" in saved_by:
            return "context"
        scopes = {part for name in weights for part in name.split(".")}
        if "ctx_encoder" in scopes and "question_encoder" not in scopes:
            return "context"
        return "question"
    return None


def _architecture(config: PretrainedConfig, head: str | None) -> str:
    if isinstance(config, DPRConfig):
        return _DPR_CLASSES[head or "question"]
    if isinstance(config, RagConfig):
        return _RAG_CLASSES[head or "token"]
    if config.model_type not in _CLASSES:
        known = ", ".join(sorted([*_CLASSES, "dpr", "rag"]))
        raise ValueError(
            f"model_type must be one of {known} to be converted, got {config.model_type!r}. Name "
            "its class in transformers in rag_core/checkpoint/convert.py"
        )
    return _CLASSES[config.model_type]


def _shaped(config: PretrainedConfig, weights: LazyWeights) -> PretrainedConfig:
    """The configuration whose network has all that is worth keeping.

    BERT's pooler where the checkpoint has one.
    """
    pooler = any(name.endswith("pooler.dense.weight") for name in weights)
    if isinstance(config, BertConfig) and pooler:
        return BertConfig.from_dict(config.to_dict(), pooling="pooler")
    return config


def _context_encoder(config: PretrainedConfig) -> PretrainedConfig | None:
    if isinstance(config, RagConfig) and config.extra.get("ctx_encoder"):
        return config_from_dict(config.extra["ctx_encoder"])
    return None


def _to_write(weights: LazyWeights, copies: set[str], dtype: str) -> LazyWeights:
    """Weights without their tied copies, floats as `dtype`.

    Memory of what was read before is given back.
    """
    names = [name for name in weights if name not in copies]
    dtypes = {name: weights.dtypes[name].newbyteorder("=") for name in names}
    if dtype != "keep":
        import ml_dtypes  # noqa: F401  # NumPy knows bfloat16 by its name from then on

        floats = [name for name in names if dtypes[name].name in FLOATS]
        dtypes |= dict.fromkeys(floats, np.dtype(dtype))

    def read(name: str) -> np.ndarray:
        weights.free()
        array = weights[name]
        with np.errstate(over="ignore"):
            cast = array.astype(dtypes[name], copy=False)
        is_narrower = cast.dtype.itemsize < array.dtype.itemsize
        if is_narrower and not np.isfinite(cast).all() and np.isfinite(array).all():
            largest = float(np.abs(array).max())
            raise ValueError(
                f"{name} holds {largest:.6g}, too large for {dtype}; nothing was written. Take "
                "bfloat16."
            )
        return cast

    return LazyWeights(
        {name: weights.shapes[name] for name in names}, read, dtypes=dtypes, free=weights.free
    )
