"""Books in .epub -> sections: the pages of their spine, in order, each as HTML is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any
from urllib.parse import unquote
from zipfile import ZipFile

from rag_core.knowledge.outline import Block, Section, sections
from rag_core.knowledge.readers.bounds import FileFault, check_zip, tidy
from rag_core.knowledge.readers.html import page_blocks

_ADVICE = "Save it anew, or name another file."
# Fonts may be scrambled in a book that is free to read.
_FONT_SCRAMBLERS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def read(path: Path, name: str) -> Iterator[Section]:
    """The sections of an .epub file; the book's title names it, else the file."""
    check_zip(path)
    with ZipFile(path) as archive:
        pages, title = _spine(archive)
        yield from sections(_blocks(archive, pages), title or name)


def _blocks(archive: ZipFile, pages: list[str]) -> Iterator[Block]:
    for page in pages:
        blocks, _ = page_blocks(archive.read(page))
        yield from blocks


def _spine(archive: ZipFile) -> tuple[list[str], str]:
    """The names of the pages in reading order, and the title or ""."""
    container = _xml(archive, "META-INF/container.xml")
    packages = [str(entry.get("full-path")) for entry in _all(container, "rootfile")]
    if not packages:
        raise FileFault(f"it names no table of its parts. {_ADVICE}")
    package = _xml(archive, packages[0])
    folder = dirname(packages[0])
    hrefs = {item.get("id"): item.get("href", "") for item in _all(package, "item")}
    is_page = {
        item.get("id"): "html" in item.get("media-type", "html") for item in _all(package, "item")
    }
    pages = []
    for entry in _all(package, "itemref"):
        number = entry.get("idref")
        if number in hrefs and is_page[number]:
            pages.append(normpath(join(folder, unquote(hrefs[number].partition("#")[0]))))
    pages = list(dict.fromkeys(pages))
    there = set(archive.namelist())
    if missing := [page for page in pages if page not in there]:
        raise FileFault(f"its part {missing[0]!r:.80} is missing. {_ADVICE}")
    _check_readable(archive, pages)
    titles = [tidy("".join(entry.itertext())) for entry in _all(package, "title")]
    return pages, " ".join("".join(titles[:1]).split())


def _check_readable(archive: ZipFile, pages: list[str]) -> None:
    if "META-INF/encryption.xml" not in archive.namelist():
        return
    for entry in _all(_xml(archive, "META-INF/encryption.xml"), "EncryptedData"):
        methods = [method.get("Algorithm") for method in _all(entry, "EncryptionMethod")]
        names = {unquote(part.get("URI", "")) for part in _all(entry, "CipherReference")}
        if names & set(pages) and not set(methods) <= set(_FONT_SCRAMBLERS):
            raise FileFault("it is encrypted (DRM). Name a copy without.")


def _xml(archive: ZipFile, name: str) -> Any:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.fromstring(archive.read(name), parser)
    except (KeyError, etree.XMLSyntaxError) as error:
        raise FileFault(
            f"its part {name!r:.80} is missing or damaged ({error}). {_ADVICE}"
        ) from None


def _all(root: Any, name: str) -> Iterator[Any]:
    """All elements of a name, whatever their namespace."""
    return root.iter(f"{{*}}{name}")
