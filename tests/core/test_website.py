"""The site of the documentation: its pages are all of them, and what is wrong with a built one is told."""

import re
from pathlib import Path

from website.checks import complaints, reads_differently
from website.pages import gather

ROOT = Path(__file__).parents[2]
SETTINGS = (ROOT / "zensical.toml").read_text("utf-8")
NAVIGATION, _, AFTER = SETTINGS.partition("\n[project.theme]")


def test_every_page_and_every_wing_has_its_place_in_the_navigation():
    pages = re.findall(r'"([\w./-]+\.md)"', NAVIGATION)
    texts = {page for page in pages if not page.startswith("docs/api/")}
    modules = {Path(page).stem for page in pages} - {Path(page).stem for page in texts}
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert there <= texts and [page for page in texts if not (ROOT / page).is_file()] == []
    wings = {f"rag_core.{path.parent.name}" for path in (ROOT / "rag_core").glob("*/__init__.py")}
    assert wings | {"rag_core", "rag_torch", "rag_tf"} <= modules
    assert set(re.findall(r'"([\w./-]+\.md)" =', AFTER)) <= texts  # those of llms.txt


def test_a_file_that_a_page_links_to_becomes_a_page(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    files = {
        "docs/a.md": "[b](b.md#x) [run](../run.py) [all](../data) [far](https://x.org)\n"
        "![chart](chart.svg)\n```\n[kept](../run.py)\n```\n",
        "docs/b.md": "# B\n",
        "docs/chart.svg": "<svg/>",
        "run.py": "print(1)\n",
        "data/one.txt": "1",
        "data/.hidden.yml": "two: 2",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    gather(root, ["docs/a.md", "docs/b.md"], out)
    assert (out / "docs/a.md").read_text() == (
        "[b](b.md#x) [run](../run.py.md) [all](../data.md) [far](https://x.org)\n"
        "![chart](chart.svg)\n```\n[kept](../run.py)\n```\n"
    )
    assert "# `run.py`\n\n````python\nprint(1)\n````\n" in (out / "run.py.md").read_text()
    assert "## `one.txt`\n\n````text\n1\n````" in (out / "data.md").read_text()
    assert (out / "docs/chart.svg").is_file()


def test_what_is_wrong_with_a_built_site_is_told(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="here">A</h1><a href="#here"></a><a href="b.html#x"></a><a href="https://x.org"></a>'
        '<script src="b.js"></script><link rel="stylesheet" href="b.css"><img src="data:image/png;x">'
    )
    (tmp_path / "b.html").write_text('<p id="x"></p>')
    (tmp_path / "b.js").write_text("")
    (tmp_path / "b.css").write_text("p { background: url(data:x) }")
    assert complaints(tmp_path) == []
    (tmp_path / "b.html").write_text('<script src="//x.org/x.js"></script><img src="none.png">')
    (tmp_path / "b.css").write_text("@import 'https://x.org/font.css'")
    (tmp_path / "c.html").write_text("c" * 1_000_000)
    assert complaints(tmp_path) == [
        "a.html links to b.html#x, which is not there",
        "b.html fetches //x.org/x.js from elsewhere",
        "b.html links to none.png, which is not there",
        "c.html is too long for a browser",
        "b.css fetches https://x.org/font.css from elsewhere",
    ]


def test_a_page_that_reads_differently_on_a_code_host_is_noticed():
    html = "<article><h1>A<a class=headerlink>¶</a></h1><p>as</p><ul><li><p>one</p></li></ul>"
    assert reads_differently("---\nx: y\n---\n# A\n\nas\n\n- one\n", html + "</article>") == []
    assert reads_differently("# A\n\nas\n- one\n- two\n", html + "</article>") == ["<li> two"]
