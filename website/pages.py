"""The pages of the site, where they lie in the repository, so that links between them hold as they are."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FENCED = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
HIGHLIGHTED = {".py": "python", ".jsonl": "json", ".yml": "yaml", ".cff": "yaml", ".csv": "text"}
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def in_navigation(nav: list[Any]) -> list[str]:
    """The pages that `nav` of zensical.toml names, in its order."""
    pages: list[str] = []
    for entry in nav:
        for value in entry.values():
            pages += in_navigation(value) if isinstance(value, list) else [value]
    return pages


def gather(root: Path, pages: list[str], out: Path) -> None:
    """Copy pages and what they show; a file of the repository that they link to becomes a page.

    Args:
        root: the repository.
        pages: below `root`.
        out: the folder that Zensical builds from; pages lie in it as in `root`.
    """
    for page in pages:
        source = root / page
        parts = FENCED.split(source.read_text("utf-8"))
        for place in range(0, len(parts), 2):  # the others are code
            for link in set(LINK.findall(parts[place])):
                parts[place] = parts[place].replace(
                    f"]({link}", f"]({_shown(root, page, link, pages, out)}"
                )
        _write(out / page, "".join(parts))


def _shown(root: Path, page: str, link: str, pages: list[str], out: Path) -> str:
    """The link as it has to be on the site."""
    if re.match(r"[a-z]+:", link):
        return link
    target = Path(os.path.normpath(root / page / ".." / link))
    path = target.relative_to(root)
    if path.as_posix() in pages:
        return link
    if path.suffix in (".svg", ".png"):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target, out / path)
        return link
    # Zensical passes by what begins with a dot
    shown = path.with_name(f"{path.name}.md").as_posix().removeprefix(".")
    _write(out / shown, NOT_SEARCHED + f"# `{path}`\n\n" + "\n\n".join(_contents(target)) + "\n")
    return os.path.relpath(shown, Path(page).parent).replace(os.sep, "/")


def _contents(path: Path) -> Iterator[str]:
    if path.is_dir():
        for file in sorted(path.iterdir()):
            yield f"## `{file.name}`"
            yield from _contents(file)
    elif path.suffix == ".ipynb":
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            text = "".join(cell["source"])
            yield (
                text.replace("\n# ", "\n## ")
                if cell["cell_type"] == "markdown"
                else _code(text, "python")
            )
    else:
        yield _code(path.read_text("utf-8").rstrip(), HIGHLIGHTED.get(path.suffix, "text"))


def _code(text: str, language: str) -> str:
    return f"````{language}\n{text}\n````"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
