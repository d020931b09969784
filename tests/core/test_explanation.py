"""Answers to look at: pages, pictures and JSON that show what they are given, and do nothing."""

import base64
import hashlib
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.dom import minidom

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from rag_core import RagConfig, RagRetriever
from rag_core.cli import app
from rag_core.cli.ask import Answerer
from rag_core.cli.lines import json_line
from rag_core.display import Explanation, explanation_kind, style_hash
from rag_core.generation import GenerationConfig
from rag_core.knowledge import KnowledgeBase
from rag_core.knowledge.manifest import Manifest
from rag_core.outputs import Answer, Hit, Passage
from rag_core.retrieval import FaissIndex

EVIL = "<script>alert(1)</script> & \"quotes' $x^2$ \\frac \x1b[31m\x00"
PASSAGES = [
    Passage(3, f"Crocus {EVIL}", f"Saffron comes from it. {EVIL}", 1.0, 0.8, 0.925, "javascript:x"),
    Passage(4, "", "", 0.5, 0.2, 0.075, 'https://example.org/"onload="x'),
]
TOKEN = Answer(
    f"Which spice? {EVIL}",
    "Saffron 漢!",
    -0.1,
    PASSAGES,
    ["Saffron", " \ufffd", "\ufffd!", "</s>"],
    [[1.0, 0.0], [0.96, 0.04], [0.84, 0.16], [0.9, 0.1]],
    [(0, 7), (7, 9), (8, 10), (10, 10)],
)
SEQUENCE = Answer("Which spice?", "Saffron", -0.1, PASSAGES, ["Saffron"])
VOID = {"meta", "rect"}


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.cells, self.style = [], ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "td":
            self.cells.append(dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data


def test_a_page_shows_what_it_is_given_and_does_nothing():
    source = TOKEN.explain().html()
    shown = Page(source)
    text = " ".join(shown.text.split())
    assert "script" not in shown.tags and text.count("<script>alert(1)</script>") >= 3
    assert not {name for name, _ in shown.attributes if name.startswith("on") or name == "style"}
    links = {value for name, value in shown.attributes if name == "href"}
    assert [link for link in links if not link.startswith(("#dualrag-", "https://"))] == []
    assert 'https://example.org/"onload="x' in links
    assert {value for name, value in shown.attributes if name == "id"} >= {
        link[1:] for link in links if link.startswith("#")
    }
    assert "before answering 80.0 %" in text and "given the answer 92.5 %" in text
    assert "\x1b" not in source and "\x00" not in source
    assert source.count("<mark>Saffron</mark>") == 1
    told = [(cell["class"], cell["title"]) for cell in shown.cells if "class" in cell]
    assert len(told) == 8 and told[0][0] == "c20" and told[5][0] == "c1"
    assert told[5][1] == '“漢”: 4.0 % from https://example.org/"onload="x'
    assert "Saffron 漢![1]" in text and "probability of this exact wording: 90.5 %" in text
    sure = Page(replace(SEQUENCE, confidence=0.71).explain().html()).text
    assert "probability that it is right: 71.0 %; probability of this" in sure


def test_a_policy_that_names_the_style_allows_all_there_is():
    shown = Page(TOKEN.explain().html())
    [policy] = [value for name, value in shown.attributes if name == "content" and "src" in value]
    digest = base64.b64encode(hashlib.sha256(shown.style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert style_hash() == f"sha256-{digest}"


@given(st.text(st.characters(codec=None)), st.text(), st.lists(st.text(), max_size=3))
@settings(max_examples=30, deadline=None)
def test_any_text_makes_a_whole_page(question, text, titles):
    passages = [Passage(n, title, text, 0.0, 0.5, 0.5) for n, title in enumerate(titles)]
    source = Answer(question, text, -1.0, passages, ["", text]).explain().html()
    assert "</html>" in source and source.encode()
    Page(source)


def luminance(colour):
    parts = [value / 255 for value in colour]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def rgb(name):
    return [int(name[at : at + 2], 16) for at in (1, 3, 5)]


@pytest.mark.parametrize("mode", [0, 1], ids=["light", "dark"])
def test_figures_can_be_read_on_every_colour_of_the_map(mode):
    """A contrast of 4.5, as WCAG asks for; and the map gets steadily darker or lighter."""
    style = Page(SEQUENCE.explain().html()).style
    pairs = dict(re.findall(r"--(hue|paper): light-dark\((.*?)\);", style))
    ends = [rgb(pairs[name].split(", ")[mode]) for name in ("hue", "paper")]
    shades = []
    for level in range(21):
        [share, *letters] = re.search(
            rf"\.c{level} {{.*?(\d+)%.* color: light-dark\((\S+), (\S+)\); }}", style
        ).groups()
        mixed = [
            a * int(share) / 100 + b * (1 - int(share) / 100) for a, b in zip(*ends, strict=True)
        ]
        low, high = sorted([luminance(mixed), luminance(rgb(letters[mode]))])
        assert (high + 0.05) / (low + 0.05) >= 4.5, level
        shades.append(luminance(mixed))
    assert shades == sorted(shades, reverse=mode == 0)


def test_pictures_hold_their_texts():
    both = Explanation([TOKEN.to_dict(), SEQUENCE.to_dict()], "by $ <authors>")
    source = both.svg()
    drawing = minidom.parseString(source)
    texts = [node.firstChild.data for node in drawing.getElementsByTagName("text")]
    assert "by $ <authors>" in texts and texts.count("before answering") == 2
    assert any(text.startswith("→ Saffron 漢!") for text in texts)
    assert {"100", "96", "16", "80 %", "92 %"} <= set(texts)
    assert not drawing.getElementsByTagName("script")
    assert both.svg() == source
    assert SEQUENCE.explain().png().startswith(b"\x89PNG")


def test_names_without_spaces_are_cut_and_not_left_out():
    names = {
        "/home/somebody/handbook/of/the/office/safety.md": "/home/somebody/handbook/of/the/o …",
        "東京都の歴史と文化" * 6: ("東京都の歴史と文化" * 6)[:32] + " …",
        "A history of the city and of its libraries": "A history of the city and of its …",
        "Saffron": "Saffron",
    }
    passages = [replace(PASSAGES[0], title=name) for name in names]
    answer = replace(SEQUENCE, passages=passages)
    texts = minidom.parseString(answer.explain().svg()).getElementsByTagName("text")
    shown = {node.firstChild.data for node in texts}
    assert {f"{name} [{place}]" for place, name in enumerate(names.values(), 1)} <= shown
    assert "東京都の歴史" in repr(replace(PASSAGES[1], text="東京都の歴史と文化" * 20))


def test_numbers_that_json_lacks_are_null_in_a_file_and_in_a_line():
    answer = replace(SEQUENCE, log_probability=float("-inf")).to_dict()
    for text in (Explanation([answer]).json(), json_line({"answers": [answer]})):
        assert json.loads(text, parse_constant=pytest.fail)["answers"][0]["log_probability"] is None


def test_a_file_is_what_its_name_says(tmp_path):
    explanation = SEQUENCE.explain()
    for name, start in (("a.HTML", b"<!DOCTYPE html>"), ("a.json", b"{"), ("new/a.svg", b"<?xml")):
        explanation.save(tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == explanation.to_dict()
    with pytest.raises(ValueError, match=r"^path must end in \.html, .* got 'a\.pdf'\. Choose"):
        explanation_kind("a.pdf")


def test_a_picture_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ImportError, match=r"svg needs matplotlib\. Run: pip install 'dualrag\[plots"
    ):
        SEQUENCE.explain().svg()
    assert SEQUENCE.explain().html()


def test_a_notebook_shows_an_answer_as_a_part_of_its_page():
    part = TOKEN._repr_html_()
    assert part == TOKEN.explain()._repr_html_() and "<html" not in part
    assert Page(part).tags[:2] == ["div", "style"]
    assert repr(TOKEN.explain()) == "Explanation(['Saffron 漢!'])"


def test_a_notebook_shows_configs_knowledge_bases_and_retrievers():
    config = RagConfig(
        question_encoder={"model_type": "dpr", "hidden_size": 36},
        generator={"model_type": "bart", "d_model": 32},
        n_docs=3,
        title_sep=" <b> ",
    )
    manifest = Manifest({"name": "mini"}, 384, 10033, 100, {"kind": "hnsw", "recall_at_5": 0.9}, [])
    retriever = object.__new__(RagRetriever)
    retriever.config, retriever.index = config, FaissIndex.from_files("a", "b")
    retriever.question_encoder_tokenizer = retriever.generator_tokenizer = "words"
    for thing, facts in (
        (config, ["n_docs3", "title_sep<b>", "model_type dpr, hidden_size 36", '"n_docs": 3']),
        (GenerationConfig(num_beams=3), ["num_beams3"]),
        (GenerationConfig(suppress_tokens=[4, 5], repetition_penalty=1.25), ["4, 5", "1.25"]),
        (KnowledgeBase(Path("kb"), manifest), ["10,033, of about 100 words", "recall@5 0.900"]),
        (retriever, ["documents a question3", "LazyIndex(passages_path="]),
    ):
        text = Page(thing._repr_html_()).text
        assert [fact for fact in [type(thing).__name__, *facts] if fact not in text] == []


def test_things_are_one_short_line():
    assert repr(PASSAGES[1]) == "Passage(id=4, title='', prior=0.200, posterior=0.075, text='')"
    hit = Hit(1, 7, 0.5, "Saturn", "It has rings. " * 20)
    assert repr(hit).endswith(
        "title='Saturn', text=" + repr("It has rings. " * 5 + "It has …") + ")"
    )
    assert repr(SEQUENCE).startswith(
        "Answer(question='Which spice?', text='Saffron', log_probability=-0.100, passages=[0.925 'C"
    )


def test_the_command_writes_what_the_model_answered(tmp_path, monkeypatch):
    asked = []

    def opened(cls, answers, options, **places):
        answers.notes.append("by authors")
        asked.append((options, places["kb"]))
        network = SimpleNamespace(answer=lambda questions, **_: [TOKEN, SEQUENCE])
        return cls(SimpleNamespace(), network, answers, options)

    monkeypatch.setattr(Answerer, "open", classmethod(opened))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["explain", "Which?", "--num-beams", "2", "--out", "a.json"])
    assert done.exit_code == 0 and "written: a.json" in done.stderr
    told = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert [answer["text"] for answer in told["answers"]] == [TOKEN.text, SEQUENCE.text]
    assert told["credit"] == "by authors" and asked == [({"num_beams": 2}, None)]
    for words, fault in (
        (["Which?", "--out", "a.pdf"], "path must end in"),
        (["Which?", "--n-docs", "0"], "--n-docs must be at least 1"),
        (["Which", "spice?"], "explain 'Which spice?'"),
    ):
        done = CliRunner().invoke(app, ["explain", *words])
        assert done.exit_code == 2 and fault in done.stderr
    assert len(asked) == 1 and [path.name for path in tmp_path.iterdir()] == ["a.json"]
