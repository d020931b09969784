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
_UNITS = {"width": "wide", "vocabulary": "tokens"}


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

    summary = contents(Path(local_name(place)))
    if as_json:
        print(json_line(summary))
        return
    from rich.table import Table
    from rich.text import Text

    console = stdout_console()
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for name, text in _lines(summary).items():
        if text:
            table.add_row(name, Text(printable(text, console.encoding)))
    console.print(table)


def _lines(summary: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts of what is shown; empty where it is unknown."""
    if summary["kind"] == "knowledge base":
        return _knowledge_base(summary)
    lines = {summary["kind"]: summary["path"]}
    if "head" in summary:
        lines["head"] = f"RAG-{summary['head'].title()}, {summary['n_docs']} passages a question"
    for name, part in summary.get("parts", {}).items():
        lines[name.replace("_", " ")] = _network(part)
    if sentence := summary.get("sentence"):
        lines["pooling"] = ", ".join(f"{name} {value}" for name, value in sentence.items() if value)
    if weights := summary.get("weights"):
        files = ", ".join(weights.get("files", [])[:VALUES_SHOWN])
        lines["weights"] = ", ".join(filter(None, [files, _stored(weights)]))
        lines["fault"] = shortened(weights.get("fault") or "")
    elif "weights" in summary:
        lines["weights"] = "none here"
    lines["tokenizers"] = "; ".join(
        f"{each['class']}, {each['tokens']:,} tokens"
        for each in summary.get("tokenizers", {}).values()
    )
    if "head" in summary:
        lines["index"] = _own_index(summary["index"])
        lines["confidence"] = ", ".join(
            f"calibrated for RAG-{head.title()}" for head in summary["calibrated"]
        )
    if base := summary.get("knowledge_base"):
        lines["knowledge base"] = base["path"]
        if not base["is_here"]:
            lines["knowledge base"] += ", which is not there"
    lines |= _others(summary)
    lines["licence"] = ", ".join(
        f"{licence} ({file})" for file, licence in summary.get("licence", {}).items()
    )
    if "bytes" in summary:
        lines["size"] = f"{byte_size(summary['bytes'])} in {counted(summary['files'], 'file')}"
    return lines


def _network(part: Mapping[str, Any]) -> str:
    layers = " + ".join(str(part[name]) for name in ("layers", "decoder_layers") if part.get(name))
    words = [part.get("model_type", "")]
    if layers:
        words = [f"{words[0]}: {layers} layers"]
    words += [f"{part[name]:,} {unit}" for name, unit in _UNITS.items() if part.get(name)]
    if "numbers" in part:
        words.append(_stored(part))
    return ", ".join(filter(None, words))


def _stored(weights: Mapping[str, Any]) -> str:
    total = weights["numbers"]
    # not of positions, which old files store as whole numbers
    dtypes = [name for name, count in weights["dtypes"].items() if count * 1000 >= total]
    words = [f"{how_many(total)} numbers", " and ".join(dtypes), byte_size(weights["bytes"])]
    return ", ".join(filter(None, words))


def _own_index(index: Mapping[str, Any]) -> str:
    """The index that a RAG model's config names."""
    if index["index_name"] not in ("custom", "bm25"):
        return f"{index['index_name']} of {index['dataset']}"
    files = [index[name] for name in ("passages_path", "index_path") if index[name]]
    return " and ".join(files) or "none of its own: it is asked with a knowledge base"


def _others(summary: Mapping[str, Any]) -> dict[str, str]:
    """Lines of what is neither a model nor a knowledge base."""
    if summary["kind"] == "faiss index":
        return {
            "index": f"{summary['index']}, {summary['rows']:,} vectors of {summary['dimension']:,} "
            f"numbers, {summary['metric']}"
        }
    if summary["kind"] == "passages":
        columns = ", ".join(f"{name} ({kind})" for name, kind in summary["columns"].items())
        return {"passages": f"{summary['passages']:,}", "columns": columns}
    if summary["kind"] == "questions":
        return {
            "questions": f"{summary['questions']:,}",
            "with answers": f"{summary['with_answers']:,}",
            "with gold documents": f"{summary['with_gold']:,}",
            "with passages": f"{summary['with_contexts']:,}",
            "first": summary["first"],
        }
    if summary["kind"] == "evaluation":
        return {
            "questions": f"{summary['asked']:,}",
            "model": summary["model"] or "",
            "passages of": summary["passages_of"] or "",
            "exact match": ", ".join(
                f"{name} {value:.1%}" for name, value in summary["exact_match"].items()
            ),
        }
    return {}


def _knowledge_base(summary: Mapping[str, Any]) -> dict[str, str]:
    from rag_core.knowledge import index_text

    words = "whole documents"
    if summary["words"]:
        words = f"of about {summary['words']:,} words"
    return {
        "knowledge base": summary["path"],
        "passages": f"{summary['passages']:,}, {words}",
        "files": _files(summary),
        "indexed": ", ".join(summary["roots"]),
        "encoder": f"{summary['encoder']}, {summary['dimension']:,} numbers a vector",
        "encoder at": summary["encoder_at"]
        or "not on this machine: it is fetched where it is needed",
        "backends": ", ".join(summary["backends"]) or "none installed",
        "index": index_text(summary["index"]),
        "conditions on": _keys(summary["metadata"]),
        "size": byte_size(summary["bytes"]),
        "written": summary["written"].replace("T", " ").replace("+00:00", " UTC"),
        "with": ", ".join(f"{name} {version}" for name, version in summary["libraries"].items()),
        "credit": summary["credit"] or "",
    }


def _files(summary: Mapping[str, Any]) -> str:
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary["kinds"].items())
    names = ", ".join(summary["first_files"])
    if summary["files"] > len(summary["first_files"]):
        names += ", ..."
    return f"{summary['files']:,} ({kinds}): {names}"


def _keys(metadata: Mapping[str, list[str]]) -> str:
    told = ["title", "text"]
    for name, values in sorted(metadata.items()):
        if name.startswith("end_"):
            continue
        told.append(f"{name} ({', '.join(values[:VALUES_SHOWN])})")
    if len(told) > KEYS_SHOWN:
        told[KEYS_SHOWN:] = ["..."]
    return ", ".join(told)
