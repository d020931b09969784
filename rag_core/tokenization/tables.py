"""A tokenizer as plain tables, for graphs that read and write text where no Python runs.

The tables say what the `tokenizers` library does with every character, since it was asked about
each: no second copy of Unicode's properties can disagree. Letters: V tokens, C characters, M merges.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.tokenization.truncation import check_side
from rag_core.tokenization.vocabulary import CLEAN_UP
from rag_core.tokenization.words import HIDDEN

if TYPE_CHECKING:
    import tokenizers

    from rag_core.tokenization.tokenizer import Tokenizer

# kinds of characters
SPACE, LETTER, DIGIT, OTHER = range(4)
# Python's str.isspace(), for what is taken off the ends of an answer
WHITESPACE = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

# Unicode ends there.
_LAST = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True)
class CharacterKinds:
    """The kind of every character, as runs of equals.

    Attributes:
        starts: the first character of each run, sorted; int32.
        kinds: of each run; int32.
    """

    starts: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class CharacterMap:
    """What a normalizer makes of single characters; those not named stay as they are.

    Attributes:
        characters: (C,) int32, sorted.
        values: what they become, one after another; int32.
        starts: (C + 1,) where in `values` each begins; int32.
    """

    characters: np.ndarray
    values: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class WordPieceTable:
    """BERT's model.

    Attributes:
        tokens: V tokens by id.
        unknown: the token of words that are not in it.
        longest: characters that a word may have.
        normal: the normalizer.
        kinds: SPACE, OTHER (a word of its own) or LETTER.
    """

    tokens: list[str]
    unknown: str
    longest: int
    normal: CharacterMap
    kinds: CharacterKinds


@dataclass(frozen=True)
class BytePairTable:
    """BART's model.

    Attributes:
        byte_ids: (256,) int32.
        pairs: (M, 2) int32, the first merge first.
        merged: (M,) int32, what each makes.
        lengths: (V,) bytes of each token; int32.
        kinds: SPACE, LETTER, DIGIT or OTHER, by which words are parted.
        spaced: whether a blank goes before a text that begins with none.
    """

    byte_ids: np.ndarray
    pairs: np.ndarray
    merged: np.ndarray
    lengths: np.ndarray
    kinds: CharacterKinds
    spaced: bool


@dataclass(frozen=True)
class UnigramTable:
    """T5's model.

    Attributes:
        model: a sentencepiece model, as spiece.model has it.
    """

    model: bytes


@dataclass(frozen=True)
class TextTables:
    """All that is needed to turn texts into ids and back.

    Attributes:
        model: tokens of plain text.
        added: ids of the tokens that are looked for in a text first, the longest first.
        swallows: those of `added` that take the blanks before them along.
        before, after: special ids around a text.
        limit: ids of a row, special ones included; None = any number.
        side: "right" or "left", where a row is cut.
        pad: id that fills rows.
        first, later: (V,) bytes of each id at the beginning of a text and after others.
        alone: (V,) the text of each id on its own.
        skipped: (V,) bool: left out of a text without special tokens.
        no_words: (V,) bool: special ids that are no word of a question.
        cleaned: pairs of what is written in another way, in order.
    """

    model: WordPieceTable | BytePairTable | UnigramTable
    added: dict[str, int]
    swallows: frozenset[str]
    before: list[int]
    after: list[int]
    limit: int | None
    side: str
    pad: int
    first: list[bytes]
    later: list[bytes]
    alone: list[bytes]
    skipped: np.ndarray
    no_words: np.ndarray
    cleaned: Sequence[tuple[str, str]]


def text_tables(tokenizer: Tokenizer, name: str, size: int) -> TextTables:
    """The tables of a tokenizer.

    Args:
        tokenizer: ours.
        name: how it is called in errors.
        size: V, ids that a model's table holds; ids beyond its tokenizer's are no text.

    Raises:
        TypeError: a tokenizer of another library.
        ValueError: a pipeline, or a setting, that tables cannot express.
    """
    if not hasattr(tokenizer, "backend_tokenizer") or not hasattr(tokenizer, "_files"):
        raise TypeError(
            f"{name} must be one of this package's, got {type(tokenizer).__name__}. Load it with "
            "AutoTokenizer of rag_tf"
        )
    backend = tokenizer.backend_tokenizer
    check_side(tokenizer.truncation_side)
    if tokenizer.padding_side != "right":
        raise ValueError(
            f"{name} must pad on the right to be part of a graph, got "
            f"padding_side={tokenizer.padding_side!r}. Set it to 'right'"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{name} must have a pad token, got none. Set pad_token")
    content = json.loads(backend.to_str())
    model = _model(tokenizer, name, content)
    added, swallows = _added(tokenizer, name, content)
    before, after = _frame(backend)
    within = _within(tokenizer, size)
    limit = None
    if tokenizer.model_max_length < 1 << 30:
        limit = tokenizer.model_max_length
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    skipped = {
        index for index, token in tokenizer.added_tokens_decoder.items() if token.special
    } | {*range(len(tokenizer), size)}
    first, later = _written(tokenizer, model, size)
    return TextTables(
        model=model,
        added={token: within.get(index, index) for token, index in added.items()},
        swallows=swallows,
        before=[within.get(index, index) for index in before],
        after=[within.get(index, index) for index in after],
        limit=limit,
        side=tokenizer.truncation_side,
        pad=tokenizer.pad_token_id,
        first=first,
        later=later,
        alone=[text.encode() for text in tokenizer.batch_decode([[i] for i in range(size)])],
        skipped=np.isin(np.arange(size), [*skipped]),
        no_words=np.isin(np.arange(size), [*special]),
        cleaned=CLEAN_UP if tokenizer.clean_up_tokenization_spaces else (),
    )


def _model(tokenizer: Any, name: str, content: dict[str, Any]) -> Any:
    kind = content["model"]["type"]
    if kind == "WordPiece":
        return _word_piece(tokenizer.backend_tokenizer, name, content)
    if kind == "BPE":
        return _byte_pair(tokenizer.backend_tokenizer, name, content)
    if kind == "Unigram":
        return UnigramTable(_sentencepiece(tokenizer, name, content))
    raise _other(name, f"a {kind} model")


def _other(name: str, got: str) -> ValueError:
    return ValueError(
        f"{name} must be BERT's WordPiece, BART's byte-level BPE or T5's unigrams to be part of a "
        f"graph, got {got}. Export the model without strings=True and tokenize outside"
    )


def _word_piece(backend: tokenizers.Tokenizer, name: str, content: dict[str, Any]) -> Any:
    model, normalizer = content["model"], content["normalizer"] or {}
    steps = normalizer.get("type"), (content["pre_tokenizer"] or {}).get("type")
    if steps != ("BertNormalizer", "BertPreTokenizer"):
        raise _other(name, f"WordPiece with {steps[0]} and {steps[1]}")
    if model["continuing_subword_prefix"] != "##":
        raise _other(name, f"WordPiece with the prefix {model['continuing_subword_prefix']!r}")
    tokens = [""] * (1 + max(model["vocab"].values()))
    for token, index in model["vocab"].items():
        tokens[index] = token
    return WordPieceTable(
        tokens,
        model["unk_token"],
        model["max_input_chars_per_word"],
        _character_map(backend.normalizer),
        _bert_kinds(backend.pre_tokenizer),
    )


def _byte_pair(backend: tokenizers.Tokenizer, name: str, content: dict[str, Any]) -> Any:
    model, splitter = content["model"], content["pre_tokenizer"] or {}
    is_plain = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    if content["normalizer"] or not is_plain:
        raise _other(name, "BPE with another normalizer or other words than GPT-2's")
    for option in (
        *("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"),
        *("byte_fallback", "ignore_merges"),
    ):
        if model.get(option):
            raise _other(name, f"BPE with {option}={model[option]!r}")
    vocabulary = model["vocab"]
    letters = _byte_letters()
    missing = [letter for letter in letters if letter not in vocabulary]
    if missing:
        raise _other(name, f"BPE without a token for {len(missing)} of the 256 bytes")
    merges = [
        pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]
    ]  # pairs of texts or texts with a blank, by release of the library
    lengths = np.zeros(1 + max(vocabulary.values()), np.int32)
    for token, index in vocabulary.items():
        lengths[index] = len(token)
    pairs = [[vocabulary[left], vocabulary[right]] for left, right in merges]
    return BytePairTable(
        np.array([vocabulary[letter] for letter in letters], np.int32),
        np.array(pairs, np.int32).reshape(-1, 2),
        np.array([vocabulary[left + right] for left, right in merges], np.int32),
        lengths,
        _gpt2_kinds(),
        bool(splitter["add_prefix_space"]),
    )


def _sentencepiece(tokenizer: Any, name: str, content: dict[str, Any]) -> bytes:
    """The bytes of spiece.model; without that file it cannot be told what its normalizer does."""
    model = tokenizer._files.sources.get("spiece.model")
    if model is None:
        raise ValueError(
            f"{name} must have its spiece.model to be part of a graph, got tokenizer.json alone. "
            "Put that file beside it"
        )
    return model


def _added(
    tokenizer: Any, name: str, content: dict[str, Any]
) -> tuple[dict[str, int], frozenset[str]]:
    """Ids of the tokens that are looked for in a text before all else."""
    looked_for = [
        token
        for token in content["added_tokens"]
        if not (tokenizer.split_special_tokens and token["special"])
    ]
    for token in looked_for:
        odd = [rule for rule in ("single_word", "rstrip") if token[rule]]
        if token["normalized"] and content["normalizer"]:
            odd.append("normalized")
        if odd:
            raise ValueError(
                f"{name} must look for its added tokens as they are written, got "
                f"{token['content']!r} with {', '.join(odd)}. Export the model without "
                "strings=True and tokenize outside"
            )
    looked_for.sort(key=lambda token: -len(token["content"]))
    return (
        {token["content"]: token["id"] for token in looked_for},
        frozenset(token["content"] for token in looked_for if token["lstrip"]),
    )


def _within(tokenizer: Any, size: int) -> dict[int, int]:
    """The unknown token's id for special ones that a model's table lacks, as `within_table` has
    it.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown >= size:
        return {}
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special.update(tokenizer.all_special_ids)
    return {index: unknown for index in special if index >= size}


def _frame(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Special ids before and after a text."""
    word = backend.encode("a", add_special_tokens=False).ids
    framed = backend.encode("a").ids
    start = next(i for i in range(len(framed)) if framed[i : i + len(word)] == word)
    return framed[:start], framed[start + len(word) :]


def _written(tokenizer: Any, model: Any, size: int) -> tuple[list[bytes], list[bytes]]:
    """The bytes of each id at the beginning of a text and later."""
    backend = tokenizer.backend_tokenizer
    if isinstance(model, BytePairTable):
        values = {letter: byte for byte, letter in enumerate(_byte_letters())}
        written = []
        for index in range(size):
            token = backend.id_to_token(index) or ""
            if all(letter in values for letter in token):
                written.append(bytes(values[letter] for letter in token))
            else:
                written.append(token.encode())
        return written, written
    # Behind a word what a token makes is what comes after that word.
    word = backend.encode("a", add_special_tokens=False).ids
    lead = len(backend.decode(word, skip_special_tokens=False))
    rows = [[index] for index in range(size)]
    first = backend.decode_batch(rows, skip_special_tokens=False)
    later = backend.decode_batch([word + row for row in rows], skip_special_tokens=False)
    return [text.encode() for text in first], [text[lead:].encode() for text in later]


# what the library does with every character


@functools.cache
def _characters() -> list[str]:
    return [chr(i) for i in range(_LAST + 1) if i not in _SURROGATES]


@functools.cache
def _told() -> str:
    """The characters that have properties: beyond are the unassigned and the private, all alike."""
    return "".join(c for c in _characters() if c < "\U00040000" or "\U000e0000" <= c < "\U000e1000")


def _runs(kinds: np.ndarray) -> CharacterKinds:
    """Kinds of the characters of `_told` as runs; all between and beyond are OTHER or LETTER, as
    the last of them is.
    """
    characters = np.array([ord(c) for c in _told()], np.int32)
    changes = np.flatnonzero(np.diff(kinds, prepend=-1))
    return CharacterKinds(characters[changes], kinds[changes].astype(np.int32))


def _character_map(normalizer: Any) -> CharacterMap:
    normalize = normalizer.normalize_str
    pairs = ((character, normalize(character)) for character in _characters())
    changed = [(ord(old), new) for old, new in pairs if old != new]
    starts = np.cumsum([0] + [len(new) for _, new in changed])
    values = [ord(letter) for _, new in changed for letter in new]
    return CharacterMap(
        np.array([old for old, _ in changed], np.int32),
        np.array(values, np.int32),
        starts.astype(np.int32),
    )


def _bert_kinds(splitter: Any) -> CharacterKinds:
    text = _told()
    kinds = np.full(len(text), SPACE)
    for _, (start, end) in splitter.pre_tokenize_str(text):
        kinds[start:end] = LETTER
        # a letter between others, or a word of its own?
        if end - start == 1 and len(splitter.pre_tokenize_str(f"a{text[start]}a")) == 3:
            kinds[start] = OTHER
    return _runs(kinds)


@functools.cache
def _gpt2_kinds() -> CharacterKinds:
    """By the expression that parts GPT-2's words, which the library has within."""
    from tokenizers import Regex, pre_tokenizers

    text = _told()
    kinds = np.full(len(text), OTHER)
    for kind, pattern in ((LETTER, r"\P{L}+"), (DIGIT, r"\P{N}+"), (SPACE, r"\S+")):
        left = pre_tokenizers.Split(Regex(pattern), "removed")
        for _, (start, end) in left.pre_tokenize_str(text):
            kinds[start:end] = kind
    return _runs(kinds)


def _byte_letters() -> list[str]:
    """The letters that byte-level BPE writes for the bytes 0 to 255."""
    return [chr(HIDDEN.get(byte, byte)) for byte in range(256)]
