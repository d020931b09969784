"""Text to ids and back, for questions, prompts and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_core.tokenization.batch import BatchEncoding as BatchEncoding
    from rag_core.tokenization.rag import GENERATOR_FOLDER as GENERATOR_FOLDER
    from rag_core.tokenization.rag import QUESTION_FOLDER as QUESTION_FOLDER
    from rag_core.tokenization.rag import TOKENIZER_PATTERNS as TOKENIZER_PATTERNS
    from rag_core.tokenization.rag import AutoTokenizer as AutoTokenizer
    from rag_core.tokenization.rag import RagTokenizer as RagTokenizer
    from rag_core.tokenization.tables import WHITESPACE as WHITESPACE
    from rag_core.tokenization.tables import BytePairTable as BytePairTable
    from rag_core.tokenization.tables import CharacterKinds as CharacterKinds
    from rag_core.tokenization.tables import CharacterMap as CharacterMap
    from rag_core.tokenization.tables import TextTables as TextTables
    from rag_core.tokenization.tables import UnigramTable as UnigramTable
    from rag_core.tokenization.tables import WordPieceTable as WordPieceTable
    from rag_core.tokenization.tables import text_tables as text_tables
    from rag_core.tokenization.text_words import LONGEST_WORD as LONGEST_WORD
    from rag_core.tokenization.text_words import Word as Word
    from rag_core.tokenization.text_words import plain_words as plain_words
    from rag_core.tokenization.text_words import words_of as words_of
    from rag_core.tokenization.tokenizer import BartTokenizer as BartTokenizer
    from rag_core.tokenization.tokenizer import BartTokenizerFast as BartTokenizerFast
    from rag_core.tokenization.tokenizer import BertTokenizer as BertTokenizer
    from rag_core.tokenization.tokenizer import BertTokenizerFast as BertTokenizerFast
    from rag_core.tokenization.tokenizer import (
        DPRContextEncoderTokenizer as DPRContextEncoderTokenizer,
    )
    from rag_core.tokenization.tokenizer import (
        DPRContextEncoderTokenizerFast as DPRContextEncoderTokenizerFast,
    )
    from rag_core.tokenization.tokenizer import (
        DPRQuestionEncoderTokenizer as DPRQuestionEncoderTokenizer,
    )
    from rag_core.tokenization.tokenizer import (
        DPRQuestionEncoderTokenizerFast as DPRQuestionEncoderTokenizerFast,
    )
    from rag_core.tokenization.tokenizer import T5Tokenizer as T5Tokenizer
    from rag_core.tokenization.tokenizer import T5TokenizerFast as T5TokenizerFast
    from rag_core.tokenization.tokenizer import Tokenizer as Tokenizer
    from rag_core.tokenization.vocabulary import encoded_within as encoded_within
    from rag_core.tokenization.vocabulary import within_table as within_table

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "batch": ["BatchEncoding"],
        "rag": [
            "AutoTokenizer",
            "GENERATOR_FOLDER",
            "QUESTION_FOLDER",
            "RagTokenizer",
            "TOKENIZER_PATTERNS",
        ],
        "tables": [
            "BytePairTable",
            "CharacterKinds",
            "CharacterMap",
            "TextTables",
            "UnigramTable",
            "WHITESPACE",
            "WordPieceTable",
            "text_tables",
        ],
        "text_words": ["LONGEST_WORD", "Word", "plain_words", "words_of"],
        "tokenizer": [
            "BartTokenizer",
            "BartTokenizerFast",
            "BertTokenizer",
            "BertTokenizerFast",
            "DPRContextEncoderTokenizer",
            "DPRContextEncoderTokenizerFast",
            "DPRQuestionEncoderTokenizer",
            "DPRQuestionEncoderTokenizerFast",
            "T5Tokenizer",
            "T5TokenizerFast",
            "Tokenizer",
        ],
        "vocabulary": ["encoded_within", "within_table"],
    },
)
