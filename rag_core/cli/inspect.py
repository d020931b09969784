"""`dualrag inspect`: what a model, a knowledge base or another folder holds, on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rag_core.cli.common import clean
from rag_core.cli.lines import counted, json_line, printable, stdout_console
from rag_core.display import byte_size, how_many, shortened

VALUES_SHOWN = 3
KEYS_SHOWN = 12


@clean
def inspect(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="Model, knowledge base, passages, evaluation; or a faiss index, weights or a file "
            "of questions.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, on stdout.")] = False,
) -> None:
    """Say what a folder or file holds: parts, sizes, types, index, recall, licences.

    No framework is loaded and no weight is read; a damaged file is one sentence.
    """
    from rag_core.cli.contents import contents
    from rag_core.hub import local_name

    found = contents(Path(local_name(place)))
    if as_json:
        print(json_line(found))
        return
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for name, text in _lines(found).items():
        if text:
            table.add_row(name, Text(printable(text, console.encoding)))
    console.print(table)


def _lines(found: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts of what is shown; empty where it is unknown."""
    if found["kind"] == "knowledge base":
        return _knowledge_base(found)
    lines = {found["kind"]: found["path"]}
    if "head" in found:
        lines["head"] = f"RAG-{found['head'].title()}, {found['n_docs']} passages a question"
    for name, part in found.get("parts", {}).items():
        lines[name.replace("_", " ")] = _network(part)
    if sentence := found.get("sentence"):
        lines["pooling"] = ", ".join(f"{name} {value}" for name, value in sentence.items() if value)
    if weights := found.get("weights"):
        files = ", ".join(weights.get("files", [])[:VALUES_SHOWN])
        lines["weights"] = ", ".join(filter(None, [files, _stored(weights)]))
        lines["fault"] = shortened(weights.get("fault") or "")
    elif "weights" in found:
        lines["weights"] = "none here"
    lines["tokenizers"] = "; ".join(
        f"{each['class']}, {each['tokens']:,} tokens"
        for each in found.get("tokenizers", {}).values()
    )
    if "head" in found:
        lines["index"] = _own_index(found["index"])
    if base := found.get("knowledge_base"):
        lines["knowledge base"] = base["path"]
        if not base["is_here"]:
            lines["knowledge base"] += ", which is not there"
    lines |= _others(found)
    lines["licence"] = ", ".join(
        f"{licence} ({file})" for file, licence in found.get("licence", {}).items()
    )
    if "bytes" in found:
        lines["size"] = f"{byte_size(found['bytes'])} in {counted(found['files'], 'file')}"
    return lines


def _network(part: Mapping[str, Any]) -> str:
    layers = " + ".join(str(part[name]) for name in ("layers", "decoder_layers") if part.get(name))
    words = []
    if part.get("model_type"):
        words = [
            f"{part['model_type']}: {layers} layers",
            f"{part['width']:,} wide",
            f"{part['vocabulary']:,} tokens",
        ]
    if "numbers" in part:
        words.append(_stored(part))
    return ", ".join(words)


def _stored(weights: Mapping[str, Any]) -> str:
    total = weights["numbers"]
    # not of positions, which old files store as whole numbers
    dtypes = [name for name, count in weights["dtypes"].items() if count * 1000 >= total]
    words = [f"{how_many(total)} numbers", " and ".join(dtypes), byte_size(weights["bytes"])]
    return ", ".join(filter(None, words))


def _own_index(index: Mapping[str, Any]) -> str:
    """The index that a RAG model's config names."""
    if index["index_name"] != "custom":
        return f"{index['index_name']} of {index['dataset']}"
    files = [index[name] for name in ("passages_path", "index_path") if index[name]]
    return " and ".join(files) or "none of its own: it is asked with a knowledge base"


def _others(found: Mapping[str, Any]) -> dict[str, str]:
    """Lines of what is neither a model nor a knowledge base."""
    if found["kind"] == "faiss index":
        return {
            "index": f"{found['index']}, {found['rows']:,} vectors of {found['dimension']:,} "
            f"numbers, {found['metric']}"
        }
    if found["kind"] == "passages":
        columns = ", ".join(f"{name} ({kind})" for name, kind in found["columns"].items())
        return {"passages": f"{found['passages']:,}", "columns": columns}
    if found["kind"] == "questions":
        return {
            "questions": f"{found['questions']:,}",
            "with answers": f"{found['with_answers']:,}",
            "with gold documents": f"{found['with_gold']:,}",
            "with passages": f"{found['with_contexts']:,}",
            "first": found["first"],
        }
    if found["kind"] == "evaluation":
        return {
            "questions": f"{found['asked']:,}",
            "model": found["model"] or "",
            "passages of": found["passages_of"] or "",
            "exact match": ", ".join(
                f"{name} {value:.1%}" for name, value in found["exact_match"].items()
            ),
        }
    return {}


def _knowledge_base(found: Mapping[str, Any]) -> dict[str, str]:
    from rag_core.knowledge import index_text

    words = "documents whole"
    if found["words"]:
        words = f"of about {found['words']:,} words"
    return {
        "knowledge base": found["path"],
        "passages": f"{found['passages']:,}, {words}",
        "files": _files(found),
        "indexed": ", ".join(found["roots"]),
        "encoder": f"{found['encoder']}, {found['dimension']:,} numbers a vector",
        "encoder at": found["encoder_at"]
        or "not on this machine: it is fetched where it is needed",
        "backends": ", ".join(found["backends"]) or "none installed",
        "index": index_text(found["index"]),
        "conditions on": _keys(found["metadata"]),
        "size": byte_size(found["bytes"]),
        "written": found["written"].replace("T", " ").replace("+00:00", " UTC"),
        "with": ", ".join(f"{name} {version}" for name, version in found["libraries"].items()),
        "credit": found["credit"] or "",
    }


def _files(found: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found["kinds"].items())
    names = ", ".join(found["first_files"])
    if found["files"] > len(found["first_files"]):
        names += ", ..."
    return f"{found['files']:,} ({kinds}): {names}"


def _keys(metadata: Mapping[str, list[str]]) -> str:
    told = ["title", "text"]
    for name, values in sorted(metadata.items()):
        if name.startswith("end_"):
            continue
        told.append(f"{name} ({', '.join(values[:VALUES_SHOWN])})")
    if len(told) > KEYS_SHOWN:
        told[KEYS_SHOWN:] = ["..."]
    return ", ".join(told)
