"""The demo's clues give no title away, the held-out articles stay out, and the shipped
checkpoint is whole.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_core.demo import material
from rag_core.demo.clues import (
    Article,
    clues,
    description_clue,
    held_out_titles,
    names_title,
    natural_questions,
    questions,
    read_articles,
    sentences,
    without_title,
)

ROOT = Path(__file__).parents[2]

DANUBE = Article(
    "Danube",
    "The Danube is a river in Europe, the second-longest after the Volga. It flows through "
    "Central and Southeastern Europe into the Black Sea. The Danubian plain was once a frontier "
    "of the Roman Empire.",
    "River in Europe, on whose Danube-side Romans lived",
    "Geography",
)
TOLSTOY = Article(
    "War and Peace",
    "War and Peace is an epic novel by L. N. Tolstoy. Set during the Napoleonic Wars, it was "
    "rewritten c. 1869.",
    "1869 novel by Tolstoy",
    "Arts",
)
PLAIN = Article("A", "The.", "", "")


def test_clues_are_of_every_kind_and_name_no_title():
    found = clues(DANUBE)
    assert found[0] == "River in Europe, on whose -side Romans lived"
    assert found[1].startswith("River in Europe, on whose -side Romans lived. It flows")
    assert any(re.match(r"Which river in Europe", clue) for clue in found)
    assert len(found) == len(set(found)) >= 4
    assert "Which epic novel by L. N. Tolstoy?" in clues(TOLSTOY)
    for article in (DANUBE, TOLSTOY):
        assert not any(names_title(clue, article.title) for clue in clues(article))
    assert clues(PLAIN) == []


def test_clues_never_change():
    assert clues(DANUBE) == clues(DANUBE)
    assert description_clue(DANUBE) == (
        "River in Europe, on whose -side Romans lived. "
        "It flows through Central and Southeastern Europe into the Black Sea."
    )


@given(st.text("abcdefgh -,.'()", max_size=60), st.text("abcdefgh ()", min_size=1, max_size=20))
def test_without_title_leaves_no_word_of_it(text, title):
    assert not names_title(without_title(text, title), title)


def test_plurals_derivations_accents_and_function_words():
    assert without_title("The penicillins of Penicillium", "Penicillin") == "The of Penicillium"
    assert without_title("Kings and wars of the peace", "War and Peace") == "Kings and wars of the"
    assert without_title("Café Pelé's goal", "Pele") == "Café goal"


def test_sentences_do_not_end_at_initials_and_abbreviations():
    assert sentences("By J. R. R. Tolkien, c. 1937. It sold well (U.S. Edition). So!") == [
        "By J. R. R. Tolkien, c. 1937.",
        "It sold well (U.S. Edition).",
        "So!",
    ]


def test_held_out_articles_are_fixed_and_never_asked_about():
    articles = [Article(f"Title {n}", DANUBE.text, DANUBE.description, "") for n in range(50)]
    held = held_out_titles(articles, 10)
    assert len(held) == 10
    assert held == held_out_titles(reversed(articles), 10) != held_out_titles(articles, 10, seed=1)
    assert held - {"Title 0"} <= held_out_titles([a for a in articles if a.title != "Title 0"], 10)
    asked = list(questions(articles, held))
    assert {each["answer"] for each in asked} == {a.title for a in articles} - held
    assert asked == list(questions(articles, held))


def test_corpus_is_read_in_order_and_bad_files_are_named(tmp_path):
    record = {"title": "B", "extract": "x\xa0y  z", "description": "d", "topic": "t"}
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps({"B": record, "A": {**record, "title": "A"}}))
    assert [a.title for a in read_articles(path)] == ["A", "B"]
    assert read_articles(path)[1].text == "x y z"
    for content in ("[1]", '{"A": {"title": "A"}}', "{"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"corpus\.json: expected a JSON object of records"):
            read_articles(path)


def test_passages_cite_pages_and_a_file_without_is_written_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("DUALRAG_HOME", str(tmp_path))
    record = {"extract": "x", "description": "d", "topic": "t"}
    titles = ["What? 100% C# & AC/DC", "Goethe's Faust (play)", "Brasília"]
    corpus = tmp_path / "corpus" / "summaries_en-us.json"
    corpus.parent.mkdir()
    corpus.write_text(json.dumps({title: {**record, "title": title} for title in titles}))
    path = material.passages_file()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["source"].rpartition("/wiki/")[2] for row in rows] == [
        "Bras%C3%ADlia",
        "Goethe's_Faust_(play)",
        "What%3F_100%25_C%23_%26_AC/DC",
    ]
    whole = path.read_bytes()
    path.write_text('{"title": "Brasília", "text": "x"}\n', encoding="utf-8")
    before = material.describe(path)["sha256"]
    monkeypatch.setattr(material, "PASSAGES_SHA256_BEFORE", before)
    assert material.passages_file().read_bytes() == whole


def test_natural_questions_do_not_contain_their_answer():
    found = natural_questions()
    assert len({q["question"] for q in found}) == len({q["answer"] for q in found}) == 100
    for each in found:
        bare = re.sub(r" \(.*\)$", "", each["answer"])
        assert bare.lower() not in each["question"].lower()
        assert each["question"].endswith("?")


def test_shipped_parts_and_stock_encoder_make_a_folder_that_loads(tmp_path):
    from safetensors.numpy import load_file

    from rag_core.backends import load_backend
    from rag_core.demo.checkpoint import SHIPPED, assemble_model, package_model

    encoder = tmp_path / "encoder"
    _stock_encoder(encoder)
    first = assemble_model(encoder, tmp_path / "model")
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert assemble_model(encoder, tmp_path / "model") == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written

    model = load_backend().RagTokenForGeneration.from_pretrained(first)
    assert model.config.question_encoder.projection_dim == 384
    assert model.config.generator.decoder_start_token_id == model.config.generator.bos_token_id
    package_model(first, encoder, tmp_path / "again")
    shipped, again = (
        load_file(folder / "model.safetensors") for folder in (SHIPPED, tmp_path / "again")
    )
    assert shipped.keys() == again.keys()
    assert {part.dtype for part in again.values()} == {np.dtype(np.float16)}
    second = assemble_model(encoder, tmp_path / "second", tmp_path / "again")
    once, twice = (load_file(folder / "model.safetensors") for folder in (first, second))
    stock = load_file(encoder / "model.safetensors")
    changed = 0
    for name, weight in once.items():
        if name.removeprefix("rag.question_encoder.") not in stock:
            assert np.array_equal(weight, twice[name]), name  # what ships as it is
        else:
            # a product of float16 factors, taken apart once more
            np.testing.assert_allclose(twice[name], weight, rtol=0, atol=2e-4, err_msg=name)
            change = np.abs(weight - stock[name.removeprefix("rag.question_encoder.")]).max()
            changed += change > 1e-3
    assert changed > 50  # far above what packing loses
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) <= 15_000_000
    with pytest.raises(FileNotFoundError, match="make demo-model"):
        assemble_model(encoder, tmp_path / "other", tmp_path)


def test_the_shipped_card_is_written_from_the_shipped_figures():
    from rag_core.demo.card import card
    from rag_core.demo.checkpoint import SHIPPED

    figures = json.loads((SHIPPED / "evaluation.json").read_text())
    assert card(figures) == (SHIPPED / "README.md").read_text("utf-8")


@pytest.mark.backend("torch")
def test_the_command_that_made_the_shipped_model_is_there_and_no_part_of_the_packages(capsys):
    from experiments import demo_training

    with pytest.raises(SystemExit, match="0"):
        demo_training.main(["--help"])
    assert "python -m experiments.demo_training" in capsys.readouterr().out
    assert not list((ROOT / "rag_torch").glob("demo*"))


def _stock_encoder(folder):
    """Files shaped like the stock encoder's, with weights of zero."""
    from safetensors.numpy import save_file

    from rag_core.checkpoint.shapes import expected_shapes
    from rag_core.config.rag import RagConfig
    from rag_core.demo.checkpoint import SHIPPED

    config = RagConfig.from_pretrained(SHIPPED).question_encoder
    folder.mkdir()
    weights = {
        name: np.zeros(shape, np.float16)
        for name, shape in expected_shapes(config).items()
        if not name.startswith("encode_proj")
    }
    save_file(weights, folder / "model.safetensors")
    config.save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river"]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
