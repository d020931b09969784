"""What the commands load: an encoder of passages, a model with its knowledge base."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag_core.cli.common import pasteable

if TYPE_CHECKING:
    from rag_core.knowledge import KnowledgeBase
    from rag_core.retrieval import RayIndex

Say = Callable[[str], None]


def open_encoder(engine: Any, name: str, say: Say, **options: Any) -> tuple[Any, str, str | None]:
    """An encoder of passages, the name a knowledge base keeps of it, and the sum of its weights
    where they are local.

    Args:
        engine: the backend's package.
        name: folder or hub name; the demo's encoder comes from its cache.
        say: told what is fetched.
        **options: of `load_encoder`.
    """
    from rag_core.demo import ENCODER, ENCODER_FINGERPRINT, encoder_folder
    from rag_core.knowledge import describe

    folder = Path(name)
    if name == ENCODER:
        folder = encoder_folder(say)
    elif folder.is_dir():
        name = folder.resolve().name
    weights = folder / "model.safetensors"
    fingerprint = None
    if weights.is_file():
        fingerprint = f"sha256:{describe(weights)['sha256']}"
    if fingerprint == ENCODER_FINGERPRINT:  # whatever the folder of this copy is called
        name = ENCODER
    return engine.load_encoder(str(folder), **options), name, fingerprint


def open_model(
    engine: Any,
    kb: Path | None,
    model: str | None,
    head: str | None,
    say: Say,
    int8: bool = False,
    where: list[str] | None = None,
    index: str | None = None,
    when_exchanged: str | None = None,
    **placing: str | None,
) -> tuple[Any, KnowledgeBase | None]:
    """A RAG model with a retriever, and the knowledge base if it is one; of shards without `kb` one
    that has a manifest alone.

    Args:
        engine: the backend's package.
        kb: folder of a knowledge base; None = the model's own index, or the demo's.
        model: folder or hub name; None or "dualrag/demo" = the demo's.
        head: "token" or "sequence"; None = as it was saved.
        say: told what is fetched.
        int8: round linear maps to int8.
        where: conditions on the passages that are searched; None or none searches all.
        index: "ray://ADDRESS/NAME" of shards to search in the place of the knowledge base's own
            index; of `kb`, where that is given, too.
        when_exchanged: see `RayIndex`.
        **placing: `dtype` and `device`; None leaves them to `from_pretrained`.
    """
    if int8 and not hasattr(engine, "quantized"):
        raise ValueError(
            f"--int8 must go with --backend torch, got {engine.__name__}. Add that, or leave it out"
        )
    from rag_core.cli.process import uncollected
    from rag_core.cli.reader_notes import unfamiliar, way_to_a_reader
    from rag_core.config import RagConfig
    from rag_core.hub import DEMO
    from rag_core.retrieval import RagRetriever, find_own_index
    from rag_core.tokenization import RagTokenizer

    if model == DEMO and not Path(DEMO).exists():
        model = None
    if model is None:
        from rag_core.demo import check_shipped, demo_model_folder

        check_shipped()
        folder = str(demo_model_folder(say))
    else:
        folder = model
    config = RagConfig.from_pretrained(folder)
    base = None
    if index is None or kb is not None:
        base = _open_base(engine, kb, model, say)
    if index is not None:
        tokenizer = RagTokenizer.from_pretrained(folder)
        shards, base = _held_shards(index, base, config, when_exchanged)
        retriever = RagRetriever(
            config, tokenizer.question_encoder, tokenizer.generator, index=shards
        )
    elif base is None:
        find_own_index(config, folder)
        if config.index_name == "custom" and not (config.passages_path and config.index_path):
            raise ValueError(
                f"--kb must be given for {folder!r}, which has no index of its own. "
                f"Build one: {pasteable('index')} PATHS --out KB"
            )
        retriever = RagRetriever.from_pretrained(folder)
    else:
        base.check_model(config)
        if note := unfamiliar(folder, base):
            say(f"note: {note} {way_to_a_reader(base)}")
        tokenizer = RagTokenizer.from_pretrained(folder)
        retriever = RagRetriever(
            config, tokenizer.question_encoder, tokenizer.generator, index=base.index()
        )
    if where:
        retriever.index = _filtered(retriever.index, where)
    kind = "RagSequenceForGeneration"
    if (head or config.saved_head) == "token":
        kind = "RagTokenForGeneration"
    options = {name: value for name, value in placing.items() if value is not None}
    # nothing of the framework is imported before, unless a knowledge base had to be built
    with uncollected():
        network = getattr(engine, kind).from_pretrained(folder, retriever=retriever, **options)
    if int8:
        network = engine.quantized(network)
    return network, base


def _held_shards(
    place: str, base: KnowledgeBase | None, config: Any, when_exchanged: str | None
) -> tuple[RayIndex, KnowledgeBase]:
    """The index of shards on a cluster, which must be those of a model and a knowledge base, and
    that knowledge base.
    """
    from rag_core.knowledge import base_of_manifest, held_index

    index = held_index(place, base, when_exchanged=when_exchanged)
    if base is None:
        base = base_of_manifest(place, index.manifest)
    base.check_model(config)
    return index, base


def _filtered(index: Any, where: list[str]) -> Any:
    if not hasattr(index, "where"):
        raise ValueError(
            f"--where must go with an index of passages, got {type(index).__name__}. Leave it out."
        )
    return index.where(where)


def fetch_encoder(name: str, say: Say) -> None:
    """Sees that the demo's encoder is in the cache where it is named; others load by their names."""
    from rag_core.demo import ENCODER, encoder_folder

    if name == ENCODER and not Path(name).exists():
        encoder_folder(say)


def single_use(engine: Any, last: bool) -> AbstractContextManager[None]:
    """Within it a backend makes nothing ready for later calls, where this is the last one."""
    if last and hasattr(engine, "once"):
        return engine.once()
    return nullcontext()


def _open_base(engine: Any, kb: Path | None, model: str | None, say: Say) -> KnowledgeBase | None:
    from rag_core.knowledge import FILE as MANIFEST
    from rag_core.knowledge import KnowledgeBase, describe, remembered_base

    if kb is not None:
        return KnowledgeBase.open(kb)
    if model is not None:
        own = remembered_base(model)
        if own is None or own.path is None:
            return None
        if not own.is_here():
            raise FileNotFoundError(
                f"{model} was trained with the knowledge base {own.path}, which is not there. Name "
                "it with --kb"
            )
        base = KnowledgeBase.open(own.path)
        since = ""
        if describe(own.path / MANIFEST)["sha256"] != own.manifest_sha256:
            since = ", but which has changed since"
        say(f"note: the passages are those of {own.path}, which {model} was trained with{since}")
        return base
    from rag_core.demo import demo_knowledge_base, missing

    if todo := missing():
        say("The demo's model and text are taken. First this will\n  - " + "\n  - ".join(todo))
    return demo_knowledge_base(lambda folder: engine.load_encoder(str(folder)).embed, say)
