"""Kinds of files that a library reads: words, headings and places as in the file, hostile ones
refused by name.
"""

import base64
import io
import json
import zipfile
from email.message import EmailMessage

import pytest

from rag_core.knowledge.base import KnowledgeBase, build_knowledge_base
from rag_core.knowledge.documents import read_documents
from rag_core.knowledge.files import BadFilesError, PassedByWarning, find_files
from tests.support.knowledge_bases import hashed


def told(path, **options):
    """(title, text by lines, headings) of each document of a file."""
    return [
        (d.title, d.text.splitlines(), d.metadata.get("headings"))
        for d in read_documents(path, **options)
    ]


def kept(document):
    return [document.text[start:end] for start, end in document.kept]


def write_pdf(path, pages, title=None, password=None):
    """A PDF with lines of Latin text; a page of None is blank."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for lines in pages:
        page = writer.add_blank_page(600, 800)
        if lines is None:
            continue
        shown = " ".join(f"({line}) Tj 0 -14 Td" for line in lines)
        stream = DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 50 750 Td {shown} ET".encode("latin-1"))
        page[NameObject("/Contents")] = writer._add_object(stream)
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    writer.write(path)


def test_pdf_knows_its_pages_and_loses_what_stands_on_every_one(tmp_path) -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon"]
    pages = [
        ["ACME Handbook", f"A {word}.", "Much infor-", "mation.", f"No {word}.", f"Page {n} of 5"]
        for n, word in enumerate(words, 1)
    ]
    write_pdf(tmp_path / "a.pdf", pages, title="Staff handbook")
    [document] = read_documents(tmp_path / "a.pdf")
    assert document.title == "Staff handbook"
    assert document.text.count("ACME Handbook") == 1 and "of 5" not in document.text
    assert document.text.count("information") == 5
    starts = [(document.text[start : start + 14], page) for start, page in document.marks]
    assert starts[0] == ("ACME Handbook\n", {"page": 1})
    assert starts[2] == ("A gamma.\nMuch ", {"page": 3})


@pytest.mark.parametrize(
    ("edge", "left"),
    [
        ("Step {}", 4),
        ("Chapter {}:", 4),
        ("{}", 0),
        ("- {} -", 0),
        ("Page {} of 4", 0),
        ("Seite {} von 4", 0),
        ("ACME Handbook {}", 0),
    ],
)
def test_a_pages_number_goes_and_a_numbered_heading_stays(tmp_path, edge, left) -> None:
    words = ["alpha", "beta", "gamma", "delta"]
    lines = [
        [edge.format(n), f"About {word} only.", f"And {word}s."] for n, word in enumerate(words, 1)
    ]
    write_pdf(tmp_path / "a.pdf", lines)
    [document] = read_documents(tmp_path / "a.pdf")
    found = [line for line in document.text.splitlines() if line in {page[0] for page in lines}]
    assert len(found) == left
    # of two pages only a number by itself goes
    write_pdf(tmp_path / "a.pdf", lines[:2])
    [document] = read_documents(tmp_path / "a.pdf")
    assert ("ACME Handbook 2" in document.text) == (edge == "ACME Handbook {}")


@pytest.mark.parametrize(
    ("pages", "password", "says"),
    [
        ([None, None], None, r"a\.pdf: its 2 page\(s\) hold pictures of text"),
        ([["secret"]], "x", r"a\.pdf: it has a password"),
    ],
)
def test_a_pdf_without_text_for_us_is_an_error(tmp_path, pages, password, says) -> None:
    write_pdf(tmp_path / "a.pdf", pages, password=password)
    with pytest.raises(ValueError, match=says):
        list(read_documents(tmp_path / "a.pdf"))


def test_a_pdf_locked_against_changes_only_is_read_and_blank_pages_are_told(tmp_path) -> None:
    write_pdf(tmp_path / "a.pdf", [["one"], None, ["three"]], title="untitled", password="")
    with pytest.warns(PassedByWarning, match=r"1 page\(s\) without text \(a\.pdf: p\. 2\)"):
        [document] = read_documents(tmp_path / "a.pdf")
    assert (document.title, document.text) == ("a", "one\nthree")
    assert document.marks == [(0, {"page": 1}), (4, {"page": 3})]


def test_docx_is_read_in_order_with_headings_lists_tables_and_notes(tmp_path) -> None:
    import docx

    document = docx.Document()
    document.core_properties.title = ""
    document.add_heading("Handbook", 0)
    document.add_paragraph("Intro\tend.")
    document.add_heading("Safety", 1)
    document.add_paragraph("Helmet", style="List Bullet")
    table = document.add_table(2, 2)
    for number, text in enumerate(("Who", "Room", "Anna", "12")):
        table.cell(number // 2, number % 2).text = text
    document.add_heading("Fire", 2)
    document.add_paragraph("Run.")
    box = document.add_table(1, 1).cell(0, 0)
    box.text = "A frame."
    inserted = document.add_paragraph("Kept ")._p
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    inserted.append(parse_xml(f"<w:ins {nsdecls('w')}><w:r><w:t>inserted</w:t></w:r></w:ins>"))
    inserted.append(
        parse_xml(f"<w:del {nsdecls('w')}><w:r><w:delText>deleted</w:delText></w:r></w:del>")
    )
    inserted.append(
        parse_xml(f"<w:r {nsdecls('w')}><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r>")
    )
    document.save(tmp_path / "a.docx")
    found = list(read_documents(tmp_path / "a.docx"))
    assert told(tmp_path / "a.docx") == [
        ("Handbook", ["Intro\tend."], ["Handbook"]),
        ("Handbook — Safety", ["- Helmet", "Who | Room", "Anna | 12"], ["Handbook", "Safety"]),
        (
            "Handbook — Fire",
            ["Run.", "A frame.", "Kept inserted"],
            ["Handbook", "Safety", "Fire"],
        ),
    ]
    assert kept(found[1]) == ["Who | Room\nAnna | 12"]


def test_one_heading_of_the_first_level_is_the_title_several_are_chapters(tmp_path) -> None:
    import docx

    for name, chapters in (("one", ["A"]), ("two", ["A", "B"])):
        document = docx.Document()
        document.core_properties.title = ""
        for chapter in chapters:
            document.add_heading(chapter, 1)
            document.add_paragraph("x")
        document.save(tmp_path / f"{name}.docx")
        headings = "".join(f"<h1>{chapter}</h1>x" for chapter in chapters)
        (tmp_path / f"{name}.html").write_text(headings)
    for suffix in ("docx", "html"):
        assert told(tmp_path / f"one.{suffix}") == [("A", ["x"], ["A"])]
        assert [title for title, *_ in told(tmp_path / f"two.{suffix}")] == ["two — A", "two — B"]


def test_pptx_is_a_document_a_slide_with_notes_and_tables(tmp_path) -> None:
    from pptx import Presentation
    from pptx.util import Inches

    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Plan"
    slide.placeholders[1].text = "one\ntwo"
    slide.notes_slide.notes_text_frame.text = "Say this."
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Table"
    table = slide.shapes.add_table(1, 2, 0, 0, Inches(2), Inches(1)).table
    table.cell(0, 0).text, table.cell(0, 1).text = "x", "y"
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(0, 0, Inches(1), Inches(1)).text_frame.text = "grouped"
    deck.core_properties.title = "Talk"
    deck.save(tmp_path / "a.pptx")
    found = list(read_documents(tmp_path / "a.pptx"))
    assert [(d.title, d.text, d.metadata["slide"]) for d in found] == [
        ("Talk — Plan", "one\ntwo\nNotes:\nSay this.", 1),
        ("Talk — Table", "x | y\ngrouped", 2),
    ]


PAGE = """<!doctype html><html><head><title>T &amp; x</title><style>b{}</style></head><body>
<nav>no</nav><h1>Fire<a class="headerlink" href="#x">¶</a></h1><p>One <b>bo</b>ld<br>line<!-- c -->
two &eacute;</p><ul><li><p>para</p></li><li>it<ul><li>sub</li></ul></ul><p hidden>no</p>
<h2>Tab</h2><table><caption>Cap</caption><tr><th>A<th>B</tr><tr><td>1<td>2<br>3</table>
<table><tr><td><h3>Deep</h3><p>left<td>right</table>
<pre>def f():
    return 1
</pre><div style="display: none">no</div><img alt="pic"><script>no</script></body></html>"""


def test_html_is_what_a_browser_shows(tmp_path) -> None:
    (tmp_path / "a.html").write_text(PAGE, "utf-8")
    assert told(tmp_path / "a.html") == [
        ("Fire", ["One bold line two é", "- para", "- it", "- sub"], ["Fire"]),
        ("Fire — Tab", ["Cap", "A | B", "1 | 2 3"], ["Fire", "Tab"]),
        (
            "Fire — Deep",
            ["left", "right", "def f():", "    return 1", "pic"],
            ["Fire", "Tab", "Deep"],
        ),
    ]
    found = list(read_documents(tmp_path / "a.html"))
    assert kept(found[1]) + kept(found[2]) == ["A | B\n1 | 2 3", "def f():\n    return 1"]
    (tmp_path / "a.html").write_text(
        "<table><caption hidden>no</caption><caption>Cap</caption><tr><td>a<td hidden>no<td>b<tr style='display:none'>"
        "<td>no<tbody hidden><tr><td>no</table><pre>x<script>no</script>y<br>z</pre>"
    )
    assert told(tmp_path / "a.html") == [("a", ["Cap", "a | b", "xy", "z"], None)]
    (tmp_path / "a.html").write_text("side<main><p>mine</main>foot")
    assert told(tmp_path / "a.html") == [("a", ["mine"], None)]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("<p>caf\u00e9 \u20ac".encode(), "café €"),
        ("<p>caf\u00e9 \u20ac".encode("windows-1252"), "café €"),
        ("<meta charset=iso-8859-1><p>caf\u00e9 \u20ac".encode("windows-1252"), "café €"),
        ("<meta charset='windows-1251'><p>\u0434\u0430".encode("windows-1251"), "да"),
        ("<?xml version='1.0' encoding='iso-8859-2'?><p>\u0142".encode("iso-8859-2"), "ł"),
        ("<meta charset=utf-16><p>caf\u00e9".encode(), "café"),
        ("<meta charset=no-such><p>caf\u00e9".encode(), "café"),
        ("<meta charset=utf-8><p>caf\u00e9 \u00e9".encode() + b"\xe9", "café é\ufffd"),
        ("\ufeff<p>caf\u00e9".encode("utf-16"), "café"),
        ("\ufeff<p>caf\u00e9".encode(), "café"),
        (b"<p>a\0b", "a\ufffdb"),
        ("<meta charset=gb2312><p>\u6731\u9555\u57fa".encode("gb18030"), "朱镕基"),
        ("<meta charset=x-sjis><p>\u2460\u3231".encode("cp932"), "①㈱"),
        ("<meta charset=euc-kr><p>\ub620\ubc29".encode("cp949"), "똠방"),
        ("<meta charset=big5><p>\u556b".encode("big5hkscs"), "啫"),
        ("<meta charset=iso-8859-9><p>\u201c\u015f".encode("cp1254"), "“ş"),
        ("<meta charset=tis-620><p>\u0e01\u2026".encode("cp874"), "ก…"),
        ("<meta charset=iso-8859-8-i><p>\u05e9".encode("iso-8859-8"), "ש"),
        ("<meta charset=x-user-defined><p>\u201c".encode("cp1252"), "“"),
        ("<meta charset=cp437><p>\u00e9".encode("cp437"), "é"),
        ("<meta charset=zip><p>caf\u00e9".encode(), "café"),
    ],
)
def test_letters_of_html_are_read_as_browsers_do(tmp_path, data, text) -> None:
    (tmp_path / "a.htm").write_bytes(data)
    [document] = read_documents(tmp_path / "a.htm")
    assert document.text == text


def write_epub(path, pages, spine, extra=()):
    with zipfile.ZipFile(path, "w") as book:
        book.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="OEBPS/b.opf"/></rootfiles></container>',
        )
        items = "".join(
            f'<item id="{name}" href="text/{name}.xhtml" media-type="application/xhtml+xml"/>'
            for name in pages
        )
        order = "".join(f'<itemref idref="{name}"/>' for name in spine)
        book.writestr(
            "OEBPS/b.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/'
            f'1.1/"><metadata><dc:title>The Book</dc:title></metadata><manifest>{items}</manifest>'
            f"<spine>{order}</spine></package>",
        )
        for name, text in pages.items():
            book.writestr(f"OEBPS/text/{name}.xhtml", text)
        for name, text in extra:
            book.writestr(name, text)


def test_epub_is_read_in_the_order_of_its_spine(tmp_path) -> None:
    pages = {"c1": "<h1>One</h1><p>first</p>", "c2": "<h1>Two</h1><h2>Sub</h2><p>second</p>"}
    write_epub(tmp_path / "a.epub", pages, ["c2", "c1"])
    assert told(tmp_path / "a.epub") == [
        ("The Book — Sub", ["Two", "second"], ["Two", "Sub"]),
        ("The Book — One", ["first"], ["One"]),
    ]
    lock = (
        '<encryption><EncryptedData><EncryptionMethod Algorithm="aes"/><CipherData>'
        '<CipherReference URI="OEBPS/text/c1.xhtml"/></CipherData></EncryptedData></encryption>'
    )
    write_epub(tmp_path / "a.epub", pages, ["c1"], [("META-INF/encryption.xml", lock)])
    with pytest.raises(ValueError, match=r"a\.epub: it is encrypted \(DRM\)"):
        list(read_documents(tmp_path / "a.epub"))


END = "Last *unclosed."
RST = """
=====
Title
=====

Intro with :func:`~a.b`, :ref:`text <label>` and ``code``.

.. versionadded:: 1.2
   New *thing*.

.. toctree::
   no

Sub
---

- item

.. code-block:: python

   def f():
       return 1

.. function:: foo(a)

   Does **it**.

====  ====
a     b
1     2
====  ====

.. include:: secret.txt
.. raw:: html
   :file: secret.txt
.. csv-table::
   :file: secret.txt

Last *unclosed.
"""


def test_rst_is_read_by_its_words_and_nothing_is_included(tmp_path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "a.rst").write_text(RST)
    assert told(tmp_path / "a.rst") == [
        (
            "Title",
            ["Intro with a.b, text and code.", "New in version 1.2", "New thing."],
            ["Title"],
        ),
        (
            "Title — Sub",
            ["- item", "def f():", "    return 1", "foo(a)", "Does it.", "a | b", "1 | 2", END],
            ["Title", "Sub"],
        ),
    ]
    found = list(read_documents(tmp_path / "a.rst"))
    assert kept(found[1]) == ["def f():\n    return 1", "a | b\n1 | 2"]
    lines = RST.splitlines()
    for start, position in found[0].marks[:1] + found[1].marks[:2]:
        word = found[position["line"] > 14].text[start:].lstrip("- ").split()[0]
        assert word in lines[position["line"] - 1]


def test_notebooks_keep_code_and_show_a_little_of_what_it_printed(tmp_path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Head\n", "text *a*\n"]},
        {
            "cell_type": "code",
            "source": "x = 1\nprint(x)",
            "outputs": [
                {"output_type": "stream", "text": ["1\n"]},
                {"output_type": "display_data", "data": {"image/png": "AAA", "text/plain": "fig"}},
                {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["no"]},
                {"output_type": "stream", "text": "z" * 10_000},
            ],
        },
        {"cell_type": "markdown", "source": "## Next\nmore"},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    found = list(read_documents(tmp_path / "a.ipynb"))
    assert [d.title for d in found] == ["Head", "Head — Next"]
    assert found[0].text.startswith("text *a*\nx = 1\nprint(x)\n1\nfig\nzzz")
    assert len(found[0].text) < 3_000 and found[0].kept[0] == (9, 23)
    assert found[0].marks[:2] == [(0, {"cell": 1}), (9, {"cell": 2})]
    old = {"worksheets": [{"cells": [{"cell_type": "code", "input": ["y = 2"]}]}], "nbformat": 3}
    (tmp_path / "a.ipynb").write_text(json.dumps(old))
    assert [d.text for d in read_documents(tmp_path / "a.ipynb")] == ["y = 2"]


def test_an_email_is_titled_by_its_subject_and_its_attachments_are_told(tmp_path) -> None:
    message = EmailMessage()
    message["Subject"] = "Fire drill — Übung"
    message["From"] = "Anna <a@x.org>"
    message["To"] = "all@x.org"
    message["Date"] = "Mon, 2 Mar 2020 10:00:00 +0100"
    message.set_content("Hello,\n\nOn Friday.\n")
    message.add_alternative("<p>no</p>", subtype="html")
    message.add_attachment(b"x", maintype="application", subtype="pdf", filename="plan.pdf")
    (tmp_path / "a.eml").write_bytes(bytes(message))
    with pytest.warns(PassedByWarning, match=r"1 attachment\(s\) \(a\.eml: plan\.pdf\)"):
        [document] = read_documents(tmp_path / "a.eml")
    assert (document.title, document.text) == ("Fire drill — Übung", "Hello,\n\nOn Friday.")
    assert document.metadata == {
        "from": "Anna <a@x.org>",
        "to": "all@x.org",
        "date": "2020-03-02 10:00:00+01:00",
    }
    message = EmailMessage()
    message["Subject"] = "S"
    message.set_content("<p>Only <b>html</b></p>", subtype="html")
    (tmp_path / "a.eml").write_bytes(bytes(message))
    assert [d.text for d in read_documents(tmp_path / "a.eml")] == ["Only html"]


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("gb2312", "gb18030", "朱镕基"),
        ("ks_c_5601-1987", "cp949", "똠방각하"),
        ("iso-8859-8-i", "iso-8859-8", "שלום"),
        ("windows-874", "cp874", "กขค"),
        ("cp-850", "utf-8", "café"),
        ("x-unknown", "windows-1252", "café"),
        ("us-ascii", "utf-8", "café"),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "html"])
def test_letters_of_an_email_are_those_of_its_label(tmp_path, label, codec, text, kind) -> None:
    word = base64.b64encode(text.encode(codec)).decode()
    head = (
        f"Subject: Re: =?{label}?B?{word}?= end\nFrom: =?{label}?B?{word}?= <a@x.org>\n"
        f"Content-Type: text/{kind}; charset={label}\nContent-Transfer-Encoding: base64\n\n"
    )
    (tmp_path / "a.eml").write_text(head + word)
    [document] = read_documents(tmp_path / "a.eml")
    assert document.text == text
    assert (document.title, document.metadata["from"]) == (f"Re: {text} end", f"{text} <a@x.org>")


def test_an_email_whose_plain_part_is_blank_is_its_html(tmp_path) -> None:
    message = EmailMessage()
    message["Subject"] = "S"
    message.set_content(" \n")
    message.add_alternative("<p>Only <b>html</b></p>", subtype="html")
    (tmp_path / "a.eml").write_bytes(bytes(message))
    assert [document.text for document in read_documents(tmp_path / "a.eml")] == ["Only html"]


def bomb():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"word/{number}.xml", b" " * (30 << 20))
    return packed.getvalue()


ENTITIES = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    '<!ENTITY c SYSTEM "file:///etc/passwd">]>'
)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.docx", b"x", "it is damaged"),
        ("a.docx", b"\xd0\xcf\x11\xe0rest", "has a password, or is of an old format"),
        ("a.docx", bomb, r"it has 94 MB, more than the 67 MB"),
        ("a.pptx", bomb, r"it has 94 MB, more than the 67 MB"),
        ("a.epub", bomb, r"it has 94 MB, more than the 67 MB"),
        ("a.pdf", b"%PDF-1.4\nx", r"not a readable \.pdf file"),
        ("a.html", b"<div>" * 50_000 + b"x", "nested thousands deep"),
        ("a.html", b"<img src=x>", "holds no text"),
        ("a.ipynb", b"[1]", "must hold a json object"),
        ("a.ipynb", b'{"cells": 3}', "no list of cells"),
        ("a.ipynb", b'{"cells": ' + b"[" * 9_000, "not valid json"),
        ("a.eml", b"\n\nbody", "no headers"),
        ("a.rst", b"\xff", "must be UTF-8"),
        ("a.rst", b"* " * 3_000 + b"x\n", "RecursionError|nested"),
    ],
)
def test_hostile_files_are_one_error_that_names_them(tmp_path, name, data, says) -> None:
    if callable(data):
        data = data()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=says) as error:
        list(read_documents(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


def test_entities_are_not_followed(tmp_path) -> None:
    write_epub(tmp_path / "a.epub", {"c": "<p>x</p>"}, ["c"])
    with zipfile.ZipFile(tmp_path / "a.epub") as book:
        parts = {name: book.read(name).decode() for name in book.namelist()}
    package = parts["OEBPS/b.opf"].replace("The Book", "T &b; &c;")
    parts["OEBPS/b.opf"] = ENTITIES.replace("DOCTYPE x", "DOCTYPE package") + package
    with zipfile.ZipFile(tmp_path / "a.epub", "w") as book:
        for name, text in parts.items():
            book.writestr(name, text)
    [document] = read_documents(tmp_path / "a.epub")
    assert "aaaa" not in document.title and "root:" not in document.title


def test_a_kind_without_its_library_is_counted_in_a_folder_and_refused_by_name(
    tmp_path, monkeypatch
) -> None:
    from rag_core.knowledge import kinds

    monkeypatch.setattr(kinds, "find_spec", lambda name: None if name == "pypdf" else True)
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ValueError, match=r"cannot read \.pdf.*pip install 'dualrag\[files\]'"):
        find_files(tmp_path / "a.pdf")
    with pytest.raises(ValueError, match=r"holds none of.*To read \.pdf:  pip install"):
        find_files(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.warns(PassedByWarning, match=r"1 \.pdf \(.*\)\. To read \.pdf:  pip install"):
        assert len(find_files(tmp_path)) == 1


def test_columns_of_tables_may_have_other_names(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text("name,body\nN,one\n")
    (tmp_path / "b.jsonl").write_text('{"body": "two", "name": "M"}\n{"text": "three"}\n')
    pq.write_table(pa.table({"Body": ["four"], "name": ["O"]}), tmp_path / "c.parquet")
    (tmp_path / "d.tsv").write_text("text\tother\nfive\tx\n")
    found = read_documents(tmp_path, text_column="body", title_column="name")
    assert [(d.title, d.text) for d in found] == [
        ("N", "one"),
        ("M", "two"),
        ("b", "three"),
        ("O", "four"),
        ("d", "five"),
    ]
    with pytest.raises(BadFilesError) as error:
        list(read_documents(tmp_path, text_column="words"))
    assert [fault.partition(": ")[2][:62] for fault in error.value.faults] == [
        "text_column must be one of its columns, ['body', 'name'], got ",
        "text_column must be one of its columns, ['body', 'name'], got ",
        "text_column must be one of its columns, ['Body', 'name'], got ",
    ]


def test_patterns_exclude_as_gitignore_does(tmp_path) -> None:
    for name in ("a.txt", "drafts/b.txt", "deep/drafts/c.txt", "deep/d.tmp.txt", "keep.tmp.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.warns(PassedByWarning) as warned:
        found = find_files(tmp_path, exclude=["/drafts/", "*.tmp.txt", "!keep.tmp.txt", "nope"])
    here = tmp_path.name
    assert [name for _, name in found] == [
        f"{here}/a.txt",
        f"{here}/deep/drafts/c.txt",
        f"{here}/keep.tmp.txt",
    ]
    assert [str(each.message) for each in warned] == [
        f"passed by: 2 excluded ({here}/drafts, {here}/deep/d.tmp.txt).",
        "exclude: nothing matches 'nope'.",
    ]
    with pytest.warns(PassedByWarning, match="1 excluded"):
        assert len(find_files([tmp_path / "a.txt", tmp_path / "keep.tmp.txt"], exclude="a.*")) == 1
    with pytest.warns(PassedByWarning, match=r"nothing matches 'new'\.$"):
        find_files(tmp_path / "a.txt", exclude=["old", "new"], inherited=["old"])


def test_every_bad_file_is_named_at_once_and_may_be_skipped(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.csv").write_text("text\nx\n" + "y\n" * 10 + '"never closed\n')
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n[1]\n')
    (tmp_path / "d.pdf").write_text("no")
    (tmp_path / "e.txt").write_text("good")
    with pytest.raises(BadFilesError) as error:
        list(read_documents(tmp_path))
    names = [fault.split(":")[0].rpartition("/")[2] for fault in error.value.faults]
    assert names == ["b.csv", "c.jsonl", "d.pdf"]
    with pytest.warns(PassedByWarning, match=r"3 file\(s\) could not be read") as warned:
        assert [d.text for d in read_documents(tmp_path, skip_bad=True)] == ["fine", "good"]
    assert all(name in str(warned[0].message) for name in names)
    with pytest.raises(BadFilesError, match="3 files cannot be read"):
        list(read_documents([tmp_path / name for name in names], skip_bad=True))


def test_updates_and_additions_read_as_the_build_did(tmp_path) -> None:
    folder = tmp_path / "docs"
    (folder / "drafts").mkdir(parents=True)
    (folder / "drafts" / "a.txt").write_text("no")
    (folder / "b.csv").write_text("body\nold\n")
    (folder / "c.pdf").write_text("no")
    options = {"text_column": "body", "exclude": "drafts/", "skip_bad": True}
    with pytest.warns(PassedByWarning, match="c.pdf"):
        kb = build_knowledge_base(folder, tmp_path / "kb", hashed, progress=False, **options)
    (folder / "b.csv").write_text("body\nnew\n")
    with pytest.warns(PassedByWarning, match="c.pdf"):
        update = kb.update(encode=hashed, progress=False)
    assert (update.changed, update.new, update.gone) == (["docs/b.csv"], [], [])
    write_pdf(folder / "c.pdf", [["mended"]])
    assert kb.update(encode=hashed, progress=False).new == ["docs/c.pdf"]
    (tmp_path / "d.csv").write_text("body,name\nmore,N\n")
    with pytest.raises(ValueError, match="text_column must be that of the knowledge base, 'body'"):
        kb.add(tmp_path / "d.csv", hashed, text_column="x", progress=False)
    assert kb.add(tmp_path / "d.csv", hashed, title_column="name", progress=False) == 1
    data = KnowledgeBase.open(tmp_path / "kb").dataset()
    assert list(zip(data["title"], data["text"], strict=True)) == [
        ("b", "new"),
        ("c", "mended"),
        ("N", "more"),
    ]
