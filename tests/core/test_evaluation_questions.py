"""Files of questions: every format as its authors write it, small, and what is wrong with them
told by file, line and field.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_core.evaluation import Gold, Question, read_questions
from rag_core.evaluation.json_stream import array_elements
from rag_core.hub import DamagedFileError
from rag_core.training import read_examples

DPR = {
    "dataset": "nq_dev",
    "question": "who sings does he love me with reba",
    "answers": ["Linda Davis"],
    "positive_ctxs": [
        {"title": "Does He Love You", "text": "A duet with Linda Davis.", "score": 1000,
         "title_score": 1, "passage_id": "11828866"},
        {"title": "Linda Davis", "text": "Linda Kaye Davis.", "psg_id": "7"},
    ],
    "negative_ctxs": [{"title": "Cormac McCarthy", "text": "A writer.", "passage_id": "1"}],
    "hard_negative_ctxs": [{"title": "Why Not Me", "text": "A song.", "passage_id": "2"}],
}  # fmt: skip
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Super_Bowl_50",
            "paragraphs": [
                {
                    "context": "Super Bowl 50 was an American football game.",
                    "qas": [
                        {
                            "id": "56be4db0",
                            "question": "Which sport?",
                            "answers": [
                                {"answer_start": 21, "text": "American football"},
                                {"answer_start": 30, "text": "football"},
                                {"answer_start": 30, "text": "football"},
                            ],
                        },
                        {"id": "x", "question": "Who?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}
TRIVIA = {
    "Data": [
        {
            "Answer": {
                "Aliases": ["Park Grove (1895)", "York UK"],
                "NormalizedAliases": ["york uk"],
                "Type": "WikipediaEntity",
                "Value": "York",
            },
            "EntityPages": [{"DocSource": "TagMe", "Filename": "York.txt", "Title": "York"}],
            "Question": "Where in England was Dame Judi Dench born?",
            "QuestionId": "tc_3",
            "QuestionSource": "http://www.triviacountry.com/",
        },
        {"Question": "Of a test set?", "QuestionId": "tc_4"},
    ],
    "Domain": "Web",
    "VerifiedEval": False,
    "Version": 1.0,
}
KILT = {
    "id": "5267",
    "input": "when did the show begin",
    "output": [
        {"answer": "1999", "provenance": [{"wikipedia_id": "12", "title": "A", "section": "s"}]},
        {"answer": "1998", "provenance": [{"wikipedia_id": "12", "title": "A"},
                                          {"wikipedia_id": "13", "title": "B"}]},
        {"provenance": [{"wikipedia_id": "12", "title": "A"}]},
    ],
    "meta": {},
}  # fmt: skip


def only(path) -> Question:
    (question,) = read_questions(path)
    return question


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_our_own_lines(tmp_path) -> None:
    path = lines(
        tmp_path / "qa.jsonl",
        {"question": " Who? ", "answer": "A"},
        {"id": "b", "question": "What?", "answers": ["B", "C", "B"], "gold_titles": "T",
         "gold_ids": ["7"], "passage": {"title": "T", "text": "words"}},
    )  # fmt: skip
    first, second = read_questions(path)
    assert first == Question("1", "Who?", ("A",))
    assert (second.id, second.answers) == ("b", ("B", "C"))
    assert (second.gold_ids, second.gold_titles) == (("7",), ("T",))
    assert second.contexts[0].text == "words" and json.dumps(second.to_dict())


def test_nq_open_and_the_csv_of_dpr(tmp_path) -> None:
    path = tmp_path / "nq.tsv"
    path.write_text(
        "who got it\t['Wilhelm Conrad R\u00f6ntgen']\n"
        'which sport?\t"[\'Boxing\', ""Gentleman\'s sport""]"\n'
        "\n"
        '"""What of the """"girl with eyes"""" in a song?"""\t[\'Lucy\', \'LUCY\']\n'
        '"I am the walrus" who sang\t["x\\ty"]\n'
        "\"quoted\"\t['y']\n",
        "utf-8",
    )
    found = read_questions(path)
    assert [question.question for question in found] == [
        "who got it",
        "which sport?",
        'What of the "girl with eyes" in a song?',
        '"I am the walrus" who sang',
        '"quoted"',
    ]
    assert found[1].answers == ("Boxing", "Gentleman's sport")
    assert [question.id for question in found] == ["1", "2", "4", "5", "6"]


def test_dpr(tmp_path) -> None:
    for path in (tmp_path / "array.json", tmp_path / "pretty.json"):
        path.write_text(json.dumps([DPR], indent=4 if path.stem == "pretty" else None))
        question = only(path)
        assert question.gold_ids == ("11828866", "7")
        assert question.gold_titles == ("Does He Love You", "Linda Davis")
        kinds = [context.kind for context in question.contexts]
        assert kinds == ["positive", "positive", "negative", "hard_negative"]
    assert only(lines(tmp_path / "dpr.jsonl", DPR)) == question


@pytest.mark.parametrize("indent", [None, 1])
def test_squad_and_trivia_qa(tmp_path, indent) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(SQUAD, indent=indent))
    first, second = read_questions(path)
    assert (first.id, first.answers) == ("56be4db0", ("American football", "football"))
    assert first.gold_titles == ("Super Bowl 50",) and second.answers == ()
    path.write_text(json.dumps(TRIVIA, indent=indent))
    first, second = read_questions(path)
    assert first.answers == ("York", "Park Grove (1895)", "York UK")
    assert (first.id, first.gold_titles, second.answers) == ("tc_3", ("York",), ())


def test_kilt_and_flash_rag(tmp_path) -> None:
    question = only(lines(tmp_path / "kilt.jsonl", KILT))
    assert (question.id, question.answers) == ("5267", ("1999", "1998"))
    assert question.gold == ((Gold("12", "A"),), (Gold("12", "A"), Gold("13", "B")))
    row = {"id": "test_0", "question": "Who?", "golden_answers": ["A", "B"], "metadata": {}}
    assert only(lines(tmp_path / "f.jsonl", row)) == Question("test_0", "Who?", ("A", "B"))


def test_beir(tmp_path) -> None:
    lines(
        tmp_path / "queries.jsonl",
        {"_id": "q1", "text": "What?", "metadata": {}},
        {"_id": "q2", "text": "Nothing is known of it?"},
    )
    lines(tmp_path / "corpus.jsonl", {"_id": "d1", "title": "T", "text": "x"},
          {"_id": "d2", "title": "", "text": "y"})  # fmt: skip
    (tmp_path / "qrels").mkdir()
    head = "query-id\tcorpus-id\tscore\n"
    (tmp_path / "qrels" / "test.tsv").write_text(head + "q1\td1\t2\nq1\td2\t1\nq1\td3\t0\n")
    (tmp_path / "qrels" / "train.tsv").write_text(head + "q2\td1\t1\n")
    question = only(tmp_path)
    assert question == Question("q1", "What?", (), ((Gold("d1", "T"), Gold("d2")),))
    with pytest.raises(ValueError, match=r"Name the folder that holds queries\.jsonl"):
        read_questions(tmp_path / "queries.jsonl")


def test_the_old_examples_pairs_of_files(tmp_path) -> None:
    (tmp_path / "test.source").write_text("Who?\nWhat?\n")
    (tmp_path / "test.target").write_text("A B\nC\n")
    assert [q.answers for q in read_questions(tmp_path / "test.source")] == [("A B",), ("C",)]
    (tmp_path / "test.target").write_text("A\tB\nC\n")  # titles, as its retrieval has them
    assert [q.gold_titles for q in read_questions(tmp_path / "test.target")] == [("A", "B"), ("C",)]
    (tmp_path / "test.target").write_text("A\n")
    with pytest.raises(ValueError, match=r"source:2: .*target must have as many lines, got 1"):
        read_questions(tmp_path / "test.source")
    (tmp_path / "test.target").write_text("A\nB\nC\n")
    with pytest.raises(ValueError, match=r"as many lines as .*, 2, got more"):
        read_questions(tmp_path / "test.source")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_a_file_of_any_format_is_written(tmp_path, encoding) -> None:
    asked = {"id": "1", "question": "été ?", "answers": [{"text": "a"}]}
    article = {"title": "T", "paragraphs": [{"context": "a", "qas": [asked]}]}
    contents = {
        "own.jsonl": '{"question": "été ?", "answer": "a"}\n',
        "dpr.json": json.dumps([{"question": "été ?", "answers": ["a"]}], ensure_ascii=False),
        "squad.json": json.dumps({"data": [article]}, ensure_ascii=False),
        "nq.tsv": "été ?\t['a']\n",
    }
    for name, text in contents.items():
        (tmp_path / name).write_bytes(text.encode(encoding))
        [question] = read_questions(tmp_path / name)
        assert (question.question, question.answers) == ("été ?", ("a",)), name
        [example] = read_examples(tmp_path / name)
        assert (example.question, example.answers) == ("été ?", ("a",)), name


def test_regular_expressions_are_seen_or_asked_for(tmp_path) -> None:
    path = tmp_path / "curated.txt"
    rows = [
        {"question": "Which play?", "answer": ["After the Fall|Finishing the Play"]},
        {"question": "How tall?", "answer": [r"20\s?,?\s?(32|40)0\s?f(ee|oo)t"]},
    ]
    assert all(question.patterns for question in read_questions(lines(path, *rows)))
    assert not read_questions(lines(path, rows[0]))[0].patterns
    assert read_questions(path, patterns=True)[0].patterns
    latex = {"question": "What is it?", "answer": [r"\sqrt{2}"]}
    assert not read_questions(lines(path, latex))[0].patterns
    with pytest.raises(ValueError, match=r"curated.txt:1: 'answer' must be a regular expression"):
        read_questions(lines(path, {"question": "?", "answer": "(a"}), patterns=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no question in it"),
        ("\n \n", "no question in it"),
        ("who is it\n", r"f:1: must be a question, a tab and a list of answers, got no tab in 'who"),
        ("a\t['x']\nb\tx\n", r"f:2: 'answers' must be a list such as .*, got 'x'"),
        ("a\t[]\n", r"f:1: 'answers' must not be empty"),
        ("a\t['']\n", r"f:1: 'answers' must not be empty"),
        ("\t['x']\n", r"f:1: 'question' must not be empty"),
        ("a\t[__import__('os').getcwd()]\n", r"f:1: 'answers' must be a list"),
        ("a\t" + "[" * 9999 + "\n", r"f:1: 'answers' must be a list"),
        ('{"question": "a"}\n', r"f:1: 'answers' must be a text .*nothing under that name. The "
                                r'line begins \{"question": "a"\}'),
        ('{"question": "a", "answer": "b"}\n{"question": 3, "answer": "b"}\n',
         r"f:2: 'question' must be a text that is not empty, got 3\. The line begins"),
        ('{"question": "a", "answer": "b"}\n{"question":\n', r"f:2: every line must be one JSON"),
        ('{"text": "a"}\n', r"f:1: 'question' must stand in every line"),
        ('{"question": "a", "answer": [" "]}\n', "f:1: 'answer' must hold a text"),
        ('{"question": "a\\u0000", "answer": "b"}\n', 'f:1: "question" must be text, but holds'),
        ('{"id": 1, "question": "a", "answer": "b"}\n' * 2, "f:2: the id must be .*'1', which"),
        ('[{"question": "a", "answers": ["b"]}, 3]', "f, entry 2: must be an object, got 3"),
        ('[{"question": "a", "answers": ["b"], "positive_ctxs": 3}]',
         "f, entry 1: 'positive_ctxs' must be a list of objects, got 3"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{"question": ""}]}]}]}',
         "f, article 1: 'question' must be a text that is not empty, got ''"),
        ('[{"question": "a"', "f is not valid json"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_line_and_field(tmp_path, monkeypatch, text, said) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").write_text(text)
    with pytest.raises((ValueError, DamagedFileError), match=said):
        read_questions("f")


def test_files_that_are_not_there(tmp_path) -> None:
    for path in (tmp_path / "none", tmp_path, tmp_path / "a.source"):
        with pytest.raises(FileNotFoundError):
            read_questions(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9999, 9999) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)


@settings(max_examples=30)
@given(values=st.lists(VALUES, max_size=6), chunk=st.integers(1, 40), indent=st.booleans())
def test_arrays_are_read_piece_by_piece(values, chunk, indent, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("json") / "f.json"
    entry = {"a": 12, "b": [1], "data": values, "c": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rag_core.evaluation.json_stream._CHUNK", chunk)
        path.write_text(json.dumps(entry, indent=indent or None, ensure_ascii=False), "utf-8")
        assert list(array_elements(path, "data")) == values
        path.write_text(json.dumps(values), "utf-8-sig")
        assert list(array_elements(path)) == values
        path.write_text(json.dumps(values)[:-1], "utf-8")
        with pytest.raises(DamagedFileError):
            list(array_elements(path))
