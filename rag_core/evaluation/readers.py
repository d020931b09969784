"""Files of questions, told apart by what they hold.

A reader gives pairs: the place ("file:line"), for errors, and the question.
"""

from __future__ import annotations

import ast
import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import regex

from rag_core.evaluation.json_stream import array_elements
from rag_core.evaluation.questions import Context, Gold, Question
from rag_core.hub import check_text, encoding_of, parse_object, read_lines

Placed = Iterator[tuple[str, Question]]

# The beginning of a file, which tells its format.
_HEAD = 1 << 16
_SNIPPET = 80
# How many lines are looked at for regular expressions.
_SNIFFED = 100
_ESCAPES = regex.compile(r"\\[sdwbSDW](?![a-z])")
_TREE = regex.compile(r'"(data|Data)"\s*:\s*\[')
_CONTEXTS = {
    "positive": "positive_ctxs",
    "negative": "negative_ctxs",
    "hard_negative": "hard_negative_ctxs",
}
_QRELS = ("test", "dev", "train")


def read_questions(path: str | Path, *, patterns: bool | None = None) -> list[Question]:
    """Read questions of any known format; see docs/evaluation.md for the table.

    Args:
        path: a file, or the folder of a BEIR data set. Nothing is fetched.
        patterns: whether the answers are regular expressions; None looks for `\\s`, `\\d` and the
            like in the first lists of answers of a jsonl.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no question in it, a bad line (the message starts with file:line), an unknown
            format, or an id that comes twice.
        OSError: it cannot be read.
    """
    return list(scan_questions(path, patterns=patterns))


def scan_questions(path: str | Path, *, patterns: bool | None = None) -> Iterator[Question]:
    """As `read_questions`, one after another: a file of any size is never in memory as a whole."""
    seen: set[str] = set()
    for place, question in open_reader(Path(path), patterns):
        if question.id in seen:
            raise ValueError(
                f"{place}: the id must be its question's alone, got {question.id!r:.60}, which "
                "came before. Number the questions anew, or remove what is there twice."
            )
        seen.add(question.id)
        yield question
    if not seen:
        raise ValueError(
            f"{path}: no question in it; expected lines like "
            '{"question": "...", "answer": ["..."]}'
        )


def open_reader(path: Path, patterns: bool | None = None) -> Placed:
    """The questions of a file or folder, with their places.

    Args:
        path: see `read_questions`.
        patterns: likewise.
    """
    if path.is_dir():
        return _beir(path)
    if path.suffix in (".source", ".target"):
        return _source_and_target(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a file of questions")
    with path.open("rb") as stream:
        data = stream.read(_HEAD)
    decoder = codecs.getincrementaldecoder(encoding_of(data))("replace")
    head = decoder.decode(data).lstrip(" \r\n")
    if head.startswith("["):
        return _entries(path, array_elements(path), _dpr)
    if head.startswith("{"):
        key = _tree_key(head, len(data) < _HEAD)
        if key == "data":
            return _squad(path)
        if key == "Data":
            return _entries(path, array_elements(path, key), _trivia)
        return _json_lines(path, patterns)
    return _table(path, bool(patterns))


def _tree_key(head: str, is_whole: bool) -> str | None:
    """The key of the array in a file that is one object; None of lines that are one each."""
    line, end, _ = head.partition("\n")
    match = _TREE.search(head)
    if end or is_whole:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            pass  # the object goes on in the next lines
        else:
            keys = [key for key in ("data", "Data") if isinstance(row.get(key), list)]
            return next(iter(keys), None)
    if match is None:
        return None
    return str(match[1])


# -- what a record must hold --------------------------------------------------------------------


class _Record:
    """A JSON object with checks that name the place and the field."""

    def __init__(self, values: Any, place: str) -> None:
        self.place = place
        if not isinstance(values, dict):
            raise ValueError(f"{place}: must be an object, got {values!r:.80}")
        self.values = values

    def fault(self, name: str, rule: str) -> ValueError:
        came = "nothing under that name"
        if name in self.values:
            came = f"{self.values[name]!r:.60}"
        line = json.dumps(self.values, ensure_ascii=False, default=str)
        return ValueError(
            f"{self.place}: {name!r} must {rule}, got {came}. The line begins {line[:_SNIPPET]}"
        )

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(name, "be a text that is not empty")
        return check_text(value, self.place, f'"{name}"').strip()

    def id(self, number: int, *names: str) -> str:
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
                raise self.fault(name, "be a text or a whole number")
            return str(value)
        return str(number)

    def texts(self, name: str) -> tuple[str, ...]:
        """A text or a list of texts, without blank ones; at least one."""
        value = self.values.get(name)
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.fault(name, "be a text or a list of texts")
        texts = distinct_texts(value, self.place, name)
        if not texts:
            raise self.fault(name, "hold a text that is not blank")
        return texts

    def objects(self, name: str) -> list[_Record]:
        """A list of objects; none where there is nothing."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self.fault(name, "be a list of objects")
        return [_Record(entry, self.place) for entry in value]

    def note(self, name: str) -> str | None:
        """A text, or a number as text; None where there is nothing."""
        value = self.values.get(name)
        if value is None or value == "":
            return None
        if not isinstance(value, str | int):
            raise self.fault(name, "be a text or a whole number")
        return check_text(str(value), self.place, f'"{name}"')


def distinct_texts(texts: Iterable[str], place: str, name: str) -> tuple[str, ...]:
    """The texts, each once, without blank ones."""
    checked = (check_text(text, place, f'"{name}"').strip() for text in texts)
    return tuple(dict.fromkeys(text for text in checked if text))


# -- a question a line or an entry --------------------------------------------------------------

Parse = Callable[[_Record, int], Question]


def _entries(path: Path, entries: Iterable[Any], parse: Parse) -> Placed:
    for number, entry in enumerate(entries, 1):
        place = f"{path}, entry {number}"
        yield place, parse(_Record(entry, place), number)


def _json_lines(path: Path, patterns: bool | None) -> Placed:
    parse: Parse | None = None
    if patterns is None:
        patterns = _hold_patterns(path)
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            values = parse_object(line, place, first=parse is None)
        except ValueError as error:
            raise ValueError(f"{error} It begins {line.strip()[:_SNIPPET]}") from None
        record = _Record(values, place)
        if parse is None:
            parse = _layout(record)
        question = parse(record, number)
        if patterns:
            question = _as_patterns(question, place)
        yield place, question


def _layout(record: _Record) -> Parse:
    """Who reads lines like the first one."""
    keys = record.values.keys()
    if "golden_answers" in keys:
        return _flash_rag
    if {"input", "output"} <= keys:
        return _kilt
    if "positive_ctxs" in keys:
        return _dpr
    if "question" in keys:
        return _own
    if {"_id", "text"} <= keys:
        raise ValueError(
            f"{record.place}: these are queries of BEIR without their relevant documents. Name the "
            "folder that holds queries.jsonl and qrels/"
        )
    raise record.fault(
        "question", 'stand in every line (or KILT\'s "input", FlashRAG\'s "golden_answers")'
    )


def _own(record: _Record, number: int) -> Question:
    name = "answer"
    if name not in record.values:
        name = "answers"
    gold = [Gold(id=text) for text in _optional(record, "gold_ids")]
    gold += [Gold(title=text) for text in _optional(record, "gold_titles")]
    contexts = []
    passage = record.values.get("passage")
    if passage is not None:
        if not isinstance(passage, dict):
            raise record.fault("passage", "be an object with title and text")
        contexts.append(_context(_Record(passage, record.place), "positive"))
    return Question(
        record.id(number, "id"),
        record.text("question"),
        record.texts(name),
        _one_set(gold),
        tuple(contexts),
    )


def _one_set(gold: Iterable[Gold]) -> tuple[tuple[Gold, ...], ...]:
    """Documents that are no alternatives to each other, each once; none where there are none."""
    documents = tuple(dict.fromkeys(gold))
    if not documents:
        return ()
    return (documents,)


def _optional(record: _Record, name: str) -> tuple[str, ...]:
    if record.values.get(name) is None:
        return ()
    return record.texts(name)


def _flash_rag(record: _Record, number: int) -> Question:
    return Question(
        record.id(number, "id"), record.text("question"), record.texts("golden_answers")
    )


def _kilt(record: _Record, number: int) -> Question:
    answers = []
    gold = []
    for output in record.objects("output"):
        if output.values.get("answer") is not None:
            answers.append(output.text("answer"))
        pages = [
            Gold(entry.note("wikipedia_id"), entry.note("title"))
            for entry in output.objects("provenance")
        ]
        if pages:
            gold.append(tuple(dict.fromkeys(pages)))
    texts = distinct_texts(answers, record.place, "answer")
    return Question(
        record.id(number, "id"), record.text("input"), texts, tuple(dict.fromkeys(gold))
    )


def _dpr(record: _Record, number: int) -> Question:
    contexts = [
        _context(entry, kind) for kind, name in _CONTEXTS.items() for entry in record.objects(name)
    ]
    gold = [
        Gold(context.id, context.title or None)
        for context in contexts
        if context.kind == "positive"
    ]
    return Question(
        record.id(number, "id"),
        record.text("question"),
        record.texts("answers"),
        _one_set(gold),
        tuple(contexts),
    )


def _context(record: _Record, kind: str) -> Context:
    name = "passage_id"
    if name not in record.values:
        name = "psg_id"
    return Context(kind, record.note("title") or "", record.text("text"), record.note(name))


def _trivia(record: _Record, number: int) -> Question:
    answers: tuple[str, ...] = ()
    if record.values.get("Answer") is not None:
        answer = _Record(record.values["Answer"], record.place)
        names = ("Value", "Aliases", "HumanAnswers")
        texts = [text for name in names for text in _optional(answer, name)]
        answers = distinct_texts(texts, record.place, "Answer")
    pages = [Gold(title=entry.note("Title")) for entry in record.objects("EntityPages")]
    return Question(
        record.id(number, "QuestionId"), record.text("Question"), answers, _one_set(pages)
    )


def _squad(path: Path) -> Placed:
    number = 0
    for article, values in enumerate(array_elements(path, "data"), 1):
        place = f"{path}, article {article}"
        record = _Record(values, place)
        title = (record.note("title") or "").replace("_", " ")
        for paragraph in record.objects("paragraphs"):
            context = Context("positive", title, paragraph.text("context"))
            gold = ((Gold(title=title),),)
            for entry in paragraph.objects("qas"):
                number += 1
                answers = [answer.text("text") for answer in entry.objects("answers")]
                yield (
                    place,
                    Question(
                        entry.id(number, "id"),
                        entry.text("question"),
                        distinct_texts(answers, place, "text"),
                        gold,
                        (context,),
                    ),
                )


# -- regular expressions ------------------------------------------------------------------------


def _hold_patterns(path: Path) -> bool:
    """Whether the first answers of our own jsonl read like regular expressions."""
    for _, line in islice(read_lines(path), _SNIFFED):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        answers = isinstance(row, dict) and row.get("answer", row.get("answers"))
        if not isinstance(answers, list):
            continue
        if any(isinstance(text, str) and _ESCAPES.search(text) for text in answers):
            return True
    return False


def _as_patterns(question: Question, place: str) -> Question:
    for answer in question.answers:
        try:
            regex.compile(answer)
        except regex.error as error:
            raise ValueError(
                f"{place}: 'answer' must be a regular expression, as others of the file are, got "
                f"{answer!r:.80} ({error})"
            ) from None
    return Question(
        question.id,
        question.question,
        question.answers,
        question.gold,
        question.contexts,
        patterns=True,
    )


# -- tables and pairs of files ------------------------------------------------------------------


def _table(path: Path, patterns: bool) -> Placed:
    """Lines of a question, a tab and a Python list of answers (NQ-open; DPR's csv quotes some)."""
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        text, tab, answers = line.rstrip("\r\n").rpartition("\t")
        if not tab:
            raise ValueError(
                f"{place}: must be a question, a tab and a list of answers, got no tab in "
                f"{line.strip()[:_SNIPPET]!r}. Which formats are read stands in docs/evaluation.md."
            )
        question = _unquoted(text.strip()).strip()
        if not question:
            raise ValueError(f"{place}: 'question' must not be empty, got {line[:_SNIPPET]!r}")
        found = Question(str(number), question, _listed(_unquoted(answers.strip()), place))
        if patterns:
            found = _as_patterns(found, place)
        yield place, found


def _unquoted(field: str) -> str:
    """A field without the quotes of a csv, as often as it was quoted.

    A field that merely begins and ends with a quote is left as it is: a csv quotes none without
    need, and then doubles the quotes inside.
    """
    while len(field) > 1 and field[0] == field[-1] == '"':
        inner = field[1:-1]
        if '"' in inner.replace('""', "") or ('"' not in inner and "\t" not in inner):
            return field
        field = inner.replace('""', '"')
    return field


def _listed(text: str, place: str) -> tuple[str, ...]:
    try:
        values = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        values = None
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise ValueError(
            f"{place}: 'answers' must be a list such as ['one', 'another'], got {text[:_SNIPPET]!r}"
        )
    answers = distinct_texts(values, place, "answers")
    if not answers:
        raise ValueError(f"{place}: 'answers' must not be empty, got {text[:_SNIPPET]!r}")
    return answers


def _source_and_target(path: Path) -> Placed:
    """Two files with a line a question.

    Lines of `.target` are answers, or titles with tabs between them, as the old example's
    retrieval needs them.
    """
    source, target = path.with_suffix(".source"), path.with_suffix(".target")
    for file in (source, target):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; {path} needs it beside it")
    holds_titles = any("\t" in line.strip() for _, line in read_lines(target))
    targets = read_lines(target)
    number = 0
    for number, line in read_lines(source):
        place = f"{source}:{number}"
        _, wanted = next(targets, (0, None))
        if wanted is None:
            raise ValueError(f"{place}: {target} must have as many lines, got {number - 1}")
        texts = distinct_texts(wanted.split("\t"), f"{target}:{number}", "target")
        if not line.strip() or not texts:
            raise ValueError(
                f"{place}: question and target must not be empty, got {line.strip()[:_SNIPPET]!r} "
                f"and {wanted.strip()[:_SNIPPET]!r}"
            )
        if holds_titles:
            gold = (tuple(Gold(title=text) for text in texts),)
            yield place, Question(str(number), line.strip(), (), gold)
        else:
            yield place, Question(str(number), line.strip(), texts)
    if next(targets, None) is not None:
        raise ValueError(f"{target}: must have as many lines as {source}, {number}, got more")


def _beir(folder: Path) -> Placed:
    queries = folder / "queries.jsonl"
    if not queries.is_file():
        raise FileNotFoundError(
            f"{folder}: a folder must be a BEIR data set with queries.jsonl and qrels/, got no "
            "queries.jsonl. Name a file of questions, or that folder."
        )
    relevant = _qrels(folder)
    titles = _titles(folder / "corpus.jsonl", {id for ids in relevant.values() for id in ids})
    for number, line in read_lines(queries):
        if not line.strip():
            continue
        place = f"{queries}:{number}"
        record = _Record(parse_object(line, place, first=number == 1), place)
        id = record.id(number, "_id")
        if id in relevant:
            gold = tuple(Gold(document, titles.get(document)) for document in relevant[id])
            yield place, Question(id, record.text("text"), (), (gold,))


def _qrels(folder: Path) -> dict[str, list[str]]:
    """Query id -> ids of documents with a score above 0; of the test questions if there are."""
    files = {file.stem: file for file in sorted((folder / "qrels").glob("*.tsv"))}
    names = [name for name in _QRELS if name in files]
    if not names:
        raise FileNotFoundError(f"{folder}: a BEIR data set must have qrels/test.tsv, got none")
    path = files[names[0]]
    relevant: dict[str, list[str]] = {}
    for number, line in read_lines(path):
        fields = line.split()
        if not fields or (number == 1 and fields[-1] == "score"):
            continue
        if len(fields) != 3 or not fields[2].lstrip("-").isdigit():
            raise ValueError(
                f"{path}:{number}: must be query-id, corpus-id and score, got "
                f"{line.strip()[:_SNIPPET]!r}"
            )
        if int(fields[2]) > 0:
            relevant.setdefault(fields[0], []).append(fields[1])
    return relevant


def _titles(path: Path, wanted: set[str]) -> dict[str, str]:
    titles: dict[str, str] = {}
    if not path.is_file():
        return titles
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        record = _Record(parse_object(line, place), place)
        id = record.id(number, "_id")
        title = record.note("title")
        if id in wanted and title:
            titles[id] = title
    return titles
