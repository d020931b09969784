"""Markdown by CommonMark's rules: sections and titles right, code as it is, no word dropped."""

import re
from bisect import bisect
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core.knowledge import markdown
from rag_core.knowledge.documents import read_documents
from rag_core.knowledge.markdown import sections


def read(text: str) -> list[tuple[str, str]]:
    found = sections(text.splitlines(keepends=True), "doc", 1 << 20)
    return [(section.title, " ".join(section.text.split())) for section in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # front matter, and what looks like it
        ("---\ntitle: A: b\ntags:\n- x\n# note\nlong: >\n  folded\n\n  more\n...\nBody\n", "Body"),
        ("+++\ntitle = 'x'\n[menu.main]\nb = [\n  1,\n]\n+++\nBody\n", "Body"),
        ('+++\n\n# c\na.b = 1\ntags = ["x",\n"y"]\nc = """\nprose\n+++\n"""\n+++\nBody\n', "Body"),
        ("+++\n\n# no key\n+++\nBody\n", [("doc", "+++"), ("no key", "+++ Body")]),
        ("---\n\nNotes.\n\n---\n\nRest.\n", "Notes. Rest."),
        ("---\n\nText\n", "Text"),
        ("---\ntitle: x\n\nno end\n", "title: x no end"),
        ("---\nNote: not on Mondays.\n---\nB\n", [("doc \u2014 Note: not on Mondays.", "B")]),
        ("---\nPlease note: not now!\nAnd bring: a pen.\n\n---\nB\n", "Please note: not now! And bring: a pen. B"),
        ("---\nTitle: Ways\nSummary: How to go.\nby: I.\n---\nB\n", "B"),
        ("---\ndescription: How to go.\n---\nB\n", "B"),
        ("---\nNote: so\nThis is prose.\n---\nB\n", "Note: so This is prose. B"),
        ("+++\nprose here\n+++\nB\n", "+++ prose here +++ B"),
        # links and their like
        ("[x](https://e/a_(b)) [y](<a b> \"T\") ![alt [in] t](i.png) [[n] m](u)", "x y alt [in] t [n] m"),
        ("\\[no\\](x) <https://a.b> `[a](b)` ``x ` y``", "[no](x) https://a.b `[a](b)` ``x ` y``"),
        ("&amp; 5*3*2 **b** [nope] [nope][x] c:\\d", "& 5*3*2 **b** [nope] [nope][x] c:\\d"),
        ("[r][Ref] and [r2].\n\n[ref]: http://x.y 'title'\n[r2]: /u\n", "r and r2."),
        ("[alice]: hello\n[^1]: word\n\nsee[^1]\n\n[//]: # (gone)\n", "[alice]: hello [^1]: word see^1"),
        # code
        ("```\nf[name](event) <!-- stay -->\n# no title\n```\n", "``` f[name](event) <!-- stay --> # no title ```"),
        ("~~~~\n```\na[b](c)\n~~~\n~~~~\n[x](y)\n", "~~~~ ``` a[b](c) ~~~ ~~~~ x"),
        ("````py x\n```\n# no\n````x\n````\n[x](y)\n", "````py x ``` # no ````x ```` x"),
        ("- item\n\n      deep[x](y)\n\n  ```\n  q[x](w)\n  # z\n  ```\n", "- item deep[x](y) ``` q[x](w) # z ```"),
        ("a\n\n    <!-- kept --> f[1](2)\n\nb", "a <!-- kept --> f[1](2) b"),
        ("<pre>\n<!-- kept -->\n</pre>\n", "<pre> <!-- kept --> </pre>"),
        ("```\nnever closed\n# here", "``` never closed # here"),
        # comments
        ("a <!-- gone --> b\n\n<!-- block\n\n# gone\n\nstill --> tail\n", "a b tail"),
        ("<!--> not gone -->\n\n<!-- never closed\n\nwords\n", "not gone --> <!-- never closed words"),
        # blocks
        ("> # quoted\n> text\n\n1. one\n2. two\n   - sub\n", "quoted text 1. one 2. two - sub"),
        ("1.\n2. x\n3.\n   y\n-\n", "1. 2. x 3. y"),
        ("| a | b |\n|---|---|\n| 1 | [2](x) | 3 extra |\n", "| a | b | |---|---| | 1 | 2 | 3 extra |"),
        ("a paragraph\nof two lines\n---\nafter\n", "a paragraph of two lines after"),
        ("> " * 40 + "deep\n", "> " * 40 + "deep"),
        ("![](data:image/png;base64," + "A" * 60_000 + ") x\n", "x"),
        ("[" * 60_000 + " [x](y)\n", "[" * 60_000 + " [x](y)"),
    ],
)  # fmt: skip
def test_text_is_what_a_reader_sees(text, expected) -> None:
    assert read(text) == (expected if isinstance(expected, list) else [("doc", expected)])


def test_headings_of_both_kinds_make_titles_and_none_is_lost() -> None:
    assert read(
        "Top [x](y) <!-- c -->\n=====\n\nintro\n\nSub\n---\nbody\n### `a[b](c)` ###\nmore\n#hash\n"
    ) == [
        ("Top x", "intro"),
        ("Top x — Sub", "body"),
        ("Top x — `a[b](c)`", "more #hash"),
    ]
    assert read("# A\n## B\n### C\ntext\n## D\n# E\n# F\nz\n## G\n#\nend\n") == [
        ("A — C", "B text"),
        ("A — D", "D"),
        ("E", "E"),
        ("F", "z"),
        ("F — G", "G"),
        ("doc", "end"),
    ]
    assert read("text\n---\na: b\n---\n") == [("doc — a: b", "text a: b")]
    assert read("# Only\n") == [("Only", "Only")] and read("\n---\n") == []


def test_sources_are_lines_of_the_file(tmp_path) -> None:
    (tmp_path / "a.md").write_bytes(
        b"\xef\xbb\xbf---\r\nt: x\r\n---\r\nlead\r\n\r\nTop\r\n===\r\ntext\r\r## Two\rmore\r"
    )
    assert [
        (d.title, d.text, d.place.rpartition(":")[2]) for d in read_documents(tmp_path / "a.md")
    ] == [
        ("a", "lead", "1"),
        ("Top", "text", "6"),
        ("Top — Two", "more", "10"),
    ]


BLOCKS = st.sampled_from(
    [
        "{}\n", "{} {}\n\n", "# {}\n", "## {}\n{}\n", "{}\n===\n", "{}\n---\n", "{}\n{}\n---\n", "- {}\n", "  - {}\n\n",
        "1. {}\n", "> {}\n", "> # {}\n", "```\n{}\n", "```\n", "~~~ {}\n", "    {}\n", "\t{}\n", "---\n", "***\n", "\n",
        "| {} | {} |\n|---|---|\n", "[{}]({})\n", "![{}](x)\n", "[{}]: {}\n", "[{}]: <{}> '{}'\n", "*{}* __{}__ `{}`\n",
        "<div>{}\n", "<!-- {}\n", "{} -->\n", "<b>{}</b>\n", "\\[{}\\]({})\n", "[{}\n", "]({})\n", "`{}\n", "+++\n",
        "k: {}\n", "{} = {}\n", "> > - 1. {}\n", "> " * 25 + "{}\n", "- " * 25 + "{}\n", "*\n",
        "</pre> {}\n", "<pre>{}\n",
    ]
)  # fmt: skip


@given(st.lists(BLOCKS, max_size=12), st.sampled_from([1 << 18, 30]))
def test_no_word_is_lost_or_comes_twice_and_pieces_change_nothing_of_that(blocks, piece) -> None:
    words = iter(range(10_000))
    text = "".join(re.sub(r"\{\}", lambda _: f"w{next(words)}w", block) for block in blocks)
    before = markdown.PIECE_CHARS, markdown.BLOCK_LIMIT
    markdown.PIECE_CHARS, markdown.BLOCK_LIMIT = piece, 4 * piece
    try:
        found = list(sections(text.splitlines(keepends=True), "doc", 1 << 20))
    finally:
        markdown.PIECE_CHARS, markdown.BLOCK_LIMIT = before
    seen = re.findall(r"w\d+w", " ".join(section.text for section in found))
    titled = re.findall(r"w\d+w", " ".join(section.title for section in found))
    assert len(seen) == len(set(seen)), text
    # What may go: comments, addresses, titles of links, front matter.
    hidden = re.findall(r"(?s)<!--.*?-->", text) + re.findall(r"\](?:\(.*?\)|: .*)", text)
    if text.startswith(("---\n", "+++\n")):
        hidden.append(text)
    may_go = set(re.findall(r"w\d+w", " ".join(hidden)))
    lost = set(re.findall(r"w\d+w", text)) - set(seen) - set(titled)
    assert lost <= may_go, text
    lines = text.splitlines()
    for section in found:
        for word in re.finditer(r"w\d+w", section.text):
            [_, place] = section.marks[bisect(section.marks, word.start(), key=itemgetter(0)) - 1]
            its_lines = lines[place["line"] - 1 : place.get("end_line", place["line"])]
            assert word[0] in " ".join(its_lines), (text, word[0], place)


def test_large_files_are_read_in_pieces_with_the_same_words(monkeypatch) -> None:
    monkeypatch.setattr(markdown, "PIECE_CHARS", 2000)
    monkeypatch.setattr(markdown, "BLOCK_LIMIT", 8000)
    text = (
        "# T\n\n"
        + "- a [link](http://x.y)\n" * 500
        + "\n```\n"
        + "code[a](b) # c\n# d\n" * 900
        + "```\n\nend\n"
    )
    found = list(sections(text.splitlines(keepends=True), "doc", 1000))
    assert len(found) > 5 and {section.title for section in found} == {"T"}
    joined = " ".join(" ".join(section.text for section in found).split())
    assert (
        joined.startswith("- a link " * 500)
        and joined.count("code[a](b) # c ") == joined.count("# d") == 900
    )
    assert joined.endswith("# d ``` end")
