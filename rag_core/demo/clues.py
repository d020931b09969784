"""The demo's questions: clues about Wikipedia articles whose answer is the article's title.

Each clue is made of an article's own description and sentences with the words of its title taken
out, so a model that has not seen the article can only answer from a retrieved passage. A thousand
articles are held out whole.
"""

from __future__ import annotations

import hashlib
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path

from rag_core.hub import parse_object, read_json, read_lines

# Of 10,033: enough for an interval of 3 points, and nine tenths are left to learn from.
HELD_OUT = 1000
SEED = 0
MAX_WORDS = 32

# A full stop after these ends no sentence; nor does one after an initial ("J. R. R. Tolkien").
_ABBREVIATIONS = frozenset(
    "c ca dr mr mrs ms st no vs jr sr lit fl b d r approx e.g i.e u.s u.k".split()
)
_FUNCTION_WORDS = frozenset("a an and at by de for from in la le of on or the to with".split())
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_SUBJECT_VERB = re.compile(
    r"\b(is|was|are|were)\s+(?:(an?|the|one of the|any of the|any|some)\s+)?", re.IGNORECASE
)
_PRONOUN = re.compile(
    r"^(?:(?:The|This|These)\s+(?=(?:is|was|are|were|has|have|had)\b)|It|He|She|They)\s+(?=[a-z])"
)


@dataclass(frozen=True)
class Article:
    """One lead paragraph of the corpus."""

    title: str
    text: str
    description: str
    topic: str


def read_articles(path: str | PathLike[str]) -> list[Article]:
    """Read the corpus file (a JSON object of records with title, extract, description and topic),
    ordered by title.

    Raises:
        ValueError: the file is not such an object.
    """
    try:
        records = read_json(Path(path))
        articles = [_article(record) for record in records.values()]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a JSON object of records with title, extract, description and "
            f"topic ({error!r})"
        ) from error
    return sorted(articles, key=lambda article: article.title)


def _article(record: dict[str, str]) -> Article:
    text = " ".join(record["extract"].split())
    description = " ".join(record["description"].split())
    return Article(record["title"], text, description, record["topic"])


def _digest(*parts: object) -> str:
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()


def held_out_titles(
    articles: Iterable[Article], count: int = HELD_OUT, seed: int = SEED
) -> frozenset[str]:
    """Choose the articles no clue of which is trained on: the `count` titles with the smallest
    seeded hash.

    A hash per title, and not a shuffled list, keeps the choice when other articles come or go.
    """
    titles = [article.title for article in articles]
    return frozenset(sorted(titles, key=lambda title: _digest(seed, title))[:count])


def sentences(text: str) -> list[str]:
    """Split a paragraph at sentence ends, leaving initials and common abbreviations whole."""
    pieces = []
    start = 0
    for match in re.finditer(r"[.!?][\"\u201d)]*\s+(?=[\"\u201c(]?[A-Z0-9])", text):
        last = text[start : match.start()].rsplit(None, 1)[-1:] or [""]
        word = last[0].strip('("\u201c').lower()
        if text[match.start()] == "." and (len(word) == 1 or word in _ABBREVIATIONS):
            continue
        pieces.append(text[start : match.end()].strip())
        start = match.end()
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece]


@lru_cache(maxsize=1 << 16)
def _plain(word: str) -> str:
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return bare.removesuffix("'s").removesuffix("\u2019s")


@lru_cache(maxsize=256)
def _title_words(title: str) -> tuple[str, ...]:
    words = [_plain(word) for word in _WORD.findall(title)]
    telling = [word for word in words if word not in _FUNCTION_WORDS]
    return tuple(telling or words)


def _of_title(word: str, title: str) -> bool:
    """Whether a word is one of the title's, or one of those with an ending (plurals and
    derivations).
    """
    plain = _plain(word)
    for own in _title_words(title):
        if plain == own:
            return True
        # Of shorter words too many begin others: "the" would hide "theatre".
        long_enough = min(len(plain), len(own)) >= 4
        if long_enough and (plain.startswith(own) or own.startswith(plain)):
            return True
    return False


def names_title(text: str, title: str) -> bool:
    """Whether a text uses one of the title's words: plurals and derivations count, function words
    do not.
    """
    return any(_of_title(word, title) for word in _WORD.findall(text))


def without_title(text: str, title: str) -> str:
    """Take the words of the title out of a text and mend the spacing and punctuation that this
    leaves.
    """
    rest = _WORD.sub(lambda match: "" if _of_title(match[0], title) else match[0], text)
    # brackets, quotation marks and dashes that hold nothing any more
    rest = re.sub(
        r"\(\s*[,;.\s]*\)|[\"\u201c]\s*[\"\u201d]|(?<=\s)[-\u2013'\u2019]+(?=\s)", " ", rest
    )
    rest = re.sub(r"\s+", " ", rest)
    rest = re.sub(r"\s+([,.;:!?)])", r"\1", rest)
    return re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", rest).strip(" ,;:")


def _clip(text: str, words: int = MAX_WORDS) -> str:
    """Cut a long clue where a clause ends, or else at `words` words."""
    if len(text.split()) <= words:
        return text
    head = " ".join(text.split()[:words])
    clause = head.rfind(",")
    if clause > len(head) // 2:
        return head[:clause]
    return head


def _first_question(sentence: str, rng: random.Random) -> str | None:
    """Turn "X is a river in Europe, ..." into "Which river in Europe, ...?", now and then its
    first clause only.
    """
    verb = _SUBJECT_VERB.search(sentence, 0, 200)
    if not verb:
        return None
    rest = sentence[verb.end() :].rstrip(".")
    clauses = re.split(r",\s+(?=and |or |who |which |that |located |known |best )|;\s", rest)
    if rng.random() < 0.5 and len(clauses[0].split()) >= 5:
        rest = clauses[0]
    if (verb[2] or "").lower() == "the":
        return f"What {verb[1].lower()} the {rest}?"
    return f"Which {rest}?"


def _later_question(sentence: str, title: str) -> str | None:
    """Turn "It flows ..." and "The Danube flows ..." into "What flows ...?"."""
    pronoun = _PRONOUN.match(sentence)
    subject = "What"
    if pronoun:
        rest = sentence[pronoun.end() :]
        if pronoun[0].strip() in ("He", "She"):
            subject = "Who"
    else:
        rest = without_title(re.sub(r"^(?:The|A|An)\s+", "", sentence), title)
    if not rest[:1].islower():  # what is left does not begin with a verb
        return None
    return f"{subject} {rest.rstrip('.')}?"


def clues(article: Article, seed: int = SEED) -> list[str]:
    """Make up to five clues to an article, always the same ones, none of which uses a word of its
    title.

    In order: the description; the description with the second sentence (the first, where there is
    one only); a question made of the first sentence; one made of a later sentence; a later sentence
    as it stands.
    """
    rng = random.Random(_digest(seed, "clues", article.title))
    parts = sentences(article.text)
    later = parts[1:] or parts
    pick = rng.choice(later)
    described = later[0]
    if article.description:
        described = f"{article.description}. {later[0]}"
    first = None
    if parts:
        first = _first_question(parts[0], rng)
    forms = [article.description, described, first, _later_question(pick, article.title), pick]
    made: list[str] = []
    for form in forms:
        if not form:
            continue
        clue = _clip(without_title(form, article.title))
        if len(_WORD.findall(clue)) < 3 or clue in made:
            continue
        # cutting may have taken it away
        if form.endswith("?") and not clue.endswith("?"):
            clue += "?"
        made.append(clue)
    return made


def description_clue(article: Article) -> str:
    """The clue that the reported figures are measured with.

    Description and second sentence, uncut.
    """
    parts = sentences(article.text) or [""]
    second = (parts[1:] or parts)[0]
    return without_title(f"{article.description}. {second}", article.title).lstrip(". ")


def questions(
    articles: Iterable[Article], held_out: frozenset[str], seed: int = SEED
) -> Iterator[dict[str, str]]:
    """Training questions: every clue of every article that is not held out, in a fixed shuffled
    order.

    Yields:
        `{"question": ..., "answer": title}`, the lines of a qa.jsonl.
    """
    pairs = []
    for article in articles:
        if article.title not in held_out:
            pairs += [(clue, article.title) for clue in clues(article, seed)]
    for clue, title in sorted(pairs, key=lambda pair: _digest(seed, *pair)):
        yield {"question": clue, "answer": title}


def natural_questions() -> list[dict[str, str]]:
    """The hundred questions written by hand, before any model had answered one."""
    path = Path(__file__).parent / "model" / "natural_questions.jsonl"
    return [parse_object(line, f"{path}:{number}") for number, line in read_lines(path)]
