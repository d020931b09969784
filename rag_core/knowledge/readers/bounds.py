"""What all readers hold files to: sizes before anything is parsed, and text that is text."""

from __future__ import annotations

from pathlib import Path
from zipfile import BadZipFile, ZipFile

# Markup takes ten to thirty times its size in memory once it is parsed.
MAX_MARKUP = 64 << 20
# Pictures and fonts of an office file are read whole by the libraries.
MAX_UNPACKED = 1 << 30
# A book of thousands of pages has fewer; an archive that was made to do harm has millions.
MAX_PARTS = 50_000
_MARKUP = (".xml", ".rels", ".html", ".xhtml", ".htm", ".opf", ".ncx")
_PASSWORD_MARK = b"\xd0\xcf\x11\xe0"  # an OLE file: what Office makes of a file with a password


class FileFault(ValueError):
    """What is wrong with a file and what to do, without its name."""


def check_size(size: int, most: int = MAX_MARKUP) -> None:
    """Refuses a file, or a part of one, that would fill the memory.

    Raises:
        FileFault: it has more than `most` bytes.
    """
    if size > most:
        raise FileFault(
            f"it has {size / 1e6:,.0f} MB, more than the {most / 1e6:,.0f} MB that are read of "
            "such a file. Split it, or save its text as .txt."
        )


def check_zip(path: Path) -> None:
    """Refuses a zipped file that unpacks to more than memory holds.

    A file's entries can't be longer than its directory says, as zipfile reads no further.

    Raises:
        FileFault: it does, or is no zip file.
    """
    try:
        with ZipFile(path) as archive:
            entries = archive.infolist()
    except (BadZipFile, NotImplementedError, ValueError, OSError) as error:
        with path.open("rb") as stream:
            if stream.read(4) == _PASSWORD_MARK:
                raise FileFault(
                    "it has a password, or is of an old format under a new suffix. Save it "
                    "without a password, in today's format."
                ) from None
        raise FileFault(f"it is damaged ({error}). Save it anew.") from None
    if len(entries) > MAX_PARTS:
        raise FileFault(f"it has {len(entries):,} parts, at most {MAX_PARTS:,} are read. Split it.")
    if any(entry.flag_bits & 1 for entry in entries):
        raise FileFault("it has a password. Save it without.")
    check_size(sum(entry.file_size for entry in entries), MAX_UNPACKED)
    check_size(
        sum(entry.file_size for entry in entries if entry.filename.lower().endswith(_MARKUP))
    )


def tidy(text: str) -> str:
    """The text without what no encoder, index or file takes.

    NULs and halves of surrogate pairs become U+FFFD, soft hyphens go.
    """
    text = text.replace("\u00ad", "")
    if text.isascii() and "\0" not in text:
        return text
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\0", "\ufffd")
