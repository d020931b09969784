"""RagRetriever: question vectors in, generator inputs out.

Letters: B questions, N documents a question, S context length, D vector size. Row ``b * N + d`` of
everything with B*N rows belongs to document d of question b. Lewis et al. 2020, section 2.2;
reference behaviour: transformers 4.37.2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core.arguments import checked_n_docs
from rag_core.backends import to_numpy, to_tensor
from rag_core.checks import warn
from rag_core.hub import Pushable
from rag_core.retrieval.index import Index
from rag_core.retrieval.own_scores import needs_text
from rag_core.retrieval.prompts import TRUNCATE, build_prompts, shorten_documents
from rag_core.retrieval.search import read_docs, search
from rag_core.tokenization import Tokenizer, encoded_within

if TYPE_CHECKING:
    from rag_core.tokenization import BatchEncoding, RagTokenizer


class RagRetriever(Pushable):
    """Finds documents for question vectors and joins them with the questions for the generator.

    The index can be exchanged at any time: ``retriever.index = other``; the next call uses it.

    Args:
        config: a `RagConfig`; it is copied, never changed. Besides its retrieval fields these
            foreign keys count: ``prompt_truncation`` ("compatible" or "document", see
            `postprocess_docs`), ``index_rerank`` (candidates a document that an approximate index
            ranks exactly), and for ``wiki_dpr`` those that `WikiDprIndex` names.
        question_encoder_tokenizer: turns question ids back into text for the prompt; ours or
            transformers'.
        generator_tokenizer: encodes prompts; ours or transformers'.
        index: any `Index`, or "ray://ADDRESS/NAME" for shards on a cluster (`RayIndex`); by default
            the one `config` describes.
        init_retrieval: load the index now; False leaves it to the first search.

    Raises:
        ValueError: the configuration asks for a pickle, or its fields do not fit.
        OSError: files of the index are missing or damaged.
    """

    def __init__(
        self,
        config: Any,
        question_encoder_tokenizer: Any,
        generator_tokenizer: Any,
        index: Index | str | None = None,
        init_retrieval: bool = True,
    ) -> None:
        from rag_core.retrieval.retriever_files import open_index

        self.config = copy.deepcopy(config)
        self.question_encoder_tokenizer: Tokenizer = question_encoder_tokenizer
        self.generator_tokenizer: Tokenizer = generator_tokenizer
        self.index = open_index(self.config) if index is None else index
        self.ctx_encoder_tokenizer: Any = None
        self.return_tokenized_docs = False
        self._warned_of_prompt = False
        if init_retrieval:
            self.init_retrieval()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n_docs={self.n_docs}, index={self.index!r})"

    def _repr_html_(self) -> str:
        from rag_core.display import facts_html

        facts = {
            "documents a question": self.n_docs,
            "index": repr(self.index),
            "questions": repr(self.question_encoder_tokenizer),
            "prompts": repr(self.generator_tokenizer),
        }
        return facts_html(type(self).__name__, facts)

    @property
    def n_docs(self) -> int:
        """N unless a call says otherwise."""
        return int(self.config.n_docs)

    @property
    def batch_size(self) -> int:
        """Questions searched at a time."""
        return int(self.config.retrieval_batch_size)

    @property
    def tokenizer(self) -> RagTokenizer:
        """Both tokenizers, as the question encoder wants its questions (see `RagTokenizer`)."""
        from rag_core.tokenization import RagTokenizer

        return RagTokenizer(self.question_encoder_tokenizer, self.generator_tokenizer, self.config)

    @property
    def index(self) -> Index:
        """The index in use; assign another to exchange it."""
        return self._index

    @index.setter
    def index(self, index: Index | str) -> None:
        if isinstance(index, str):
            from rag_core.retrieval.ray_index import RayIndex

            index = RayIndex(index)
        needed = ("get_top_docs", "get_doc_dicts", "is_initialized", "init_index")
        missing = [name for name in needed if not callable(getattr(index, name, None))]
        if missing:
            raise TypeError(
                f"index must have the methods {list(needed)}; {type(index).__name__} lacks "
                f"{missing}. For a knowledge base give its index(), for a data set with a faiss "
                "index indexed_dataset= or rag_core.retrieval.FaissIndex(dataset)."
            )
        self._index = index

    @classmethod
    def from_pretrained(
        cls,
        retriever_name_or_path: str | Path,
        indexed_dataset: Any = None,
        *,
        index: Index | str | None = None,
        config: Any = None,
        question_encoder_tokenizer: Any = None,
        generator_tokenizer: Any = None,
        init_retrieval: bool = True,
        memory_map: bool | None = None,
        **kwargs: Any,
    ) -> RagRetriever:
        """Load a retriever from a RAG folder or hub repository.

        Args:
            retriever_name_or_path: folder or repository with a RAG config.json and both tokenizers.
            indexed_dataset: a `datasets.Dataset` with columns title, text, embeddings and a faiss
                index on embeddings.
            index: any `Index` or "ray://ADDRESS/NAME", instead of the one the configuration
                describes.
            config: a `RagConfig` to use instead of the saved one, or the folder or repository of
                one.
            question_encoder_tokenizer: instead of the saved one.
            generator_tokenizer: instead of the saved one.
            init_retrieval: False opens the index at the first search.
            memory_map: map the faiss file instead of reading it into memory; None if it has more
                than 1 GB.
            **kwargs: hub options (cache_dir, token, revision, local_files_only, force_download,
                subfolder); all others override config fields, e.g. ``use_dummy_dataset=True,
                index_name="exact"``.

        Raises:
            ValueError: not a RAG configuration (the message says what to write), or arguments that
                exclude each other.
            OSError: something is missing or damaged.
        """
        from rag_core.retrieval.retriever_files import load_parts

        config, tokenizers, index = load_parts(
            retriever_name_or_path,
            config=config,
            indexed_dataset=indexed_dataset,
            index=index,
            tokenizers=(question_encoder_tokenizer, generator_tokenizer),
            memory_map=memory_map,
            kwargs=kwargs,
        )
        return cls(config, *tokenizers, index=index, init_retrieval=init_retrieval)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write config.json, both tokenizers and the index (passages and faiss file), all or
        nothing.

        Paths in the written config.json are relative to the folder. A `wiki_dpr` index is named,
        not copied; an index of a class of one's own is saved if the class has ``save(folder) ->
        dict of config entries``.

        Args:
            save_directory: the folder, created if need be; the model's files in it stay.
            **kwargs: `push_to_hub`, and then arguments of `rag_core.hub.push_folder`; see
                `rag_core.hub.Saving`.

        Raises:
            OSError: nothing could be written; what was there before is unchanged.
        """
        from rag_core.hub import Saving
        from rag_core.retrieval.retriever_files import save_parts

        saving = Saving.of(**kwargs)
        if saving.here:
            save_parts(self, Path(save_directory))
            saving.finish(save_directory, self)

    def init_retrieval(self) -> None:
        """Load the index into memory, if it is not loaded."""
        if not self.index.is_initialized():
            self.index.init_index()

    def set_ctx_encoder_tokenizer(self, ctx_encoder_tokenizer: Any) -> None:
        """Make calls also return the documents tokenized for a context encoder (end-to-end
        training).

        Args:
            ctx_encoder_tokenizer: the tokenizer; None turns it off again.
        """
        self.ctx_encoder_tokenizer = ctx_encoder_tokenizer
        self.return_tokenized_docs = ctx_encoder_tokenizer is not None

    def retrieve(
        self,
        question_hidden_states: Any,
        n_docs: int | None = None,
        question_text: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Find documents.

        Args:
            question_hidden_states: (B, D) array or tensor.
            n_docs: N, by default the configuration's.
            question_text: B questions, for an index that reads them (BM25).

        Returns:
            ``retrieved_doc_embeds`` (B, N, D) float32, ``doc_ids`` (B, N) int64 row numbers of the
            index in its order, and B dictionaries with lists "title", "text", ("id", other columns)
            and the array "embeddings" (N, D). A missing hit (the index holds fewer than N
            documents, or faiss found fewer) has doc_id -1, a zero vector and empty texts:
            ``doc_mask = doc_ids >= 0``.

        Raises:
            ValueError: wrong shape, a vector size that is not the index's, a question without any
                hit, or an index that reads questions and no `question_text`.
        """
        n_docs = checked_n_docs(n_docs, self.n_docs)
        self.init_retrieval()
        texts = self._for_search(question_text)
        doc_ids, vectors = self._main_retrieve(question_hidden_states, n_docs, **texts)
        return vectors, doc_ids, read_docs(self.index, doc_ids, vectors)

    def _for_search(self, question_text: Sequence[str] | None) -> dict[str, Any]:
        """What a search is told besides vectors: methods of somebody's own need not know of it."""
        if needs_text(self.index):
            return {"question_text": question_text}
        return {}

    # What transformers' retrievers for several processes (its research projects) call of their base
    # class.

    def _main_retrieve(
        self,
        question_hidden_states: Any,
        n_docs: int,
        question_text: Sequence[str] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search in this process: doc_ids (B, N) and vectors (B, N, D)."""
        queries = np.asarray(to_numpy(question_hidden_states))
        return search(self.index, queries, n_docs, self.batch_size, question_text)

    def _chunk_tensor(self, t: Any, chunk_size: int) -> list[Any]:
        """Consecutive slices of `chunk_size` rows; the last may be shorter."""
        return [t[start : start + chunk_size] for start in range(0, len(t), chunk_size)]

    @staticmethod
    def _build_index(config: Any) -> Index:
        """The index that a configuration describes, not loaded yet."""
        from rag_core.retrieval.retriever_files import open_index

        return open_index(config)

    def postprocess_docs(
        self,
        docs: Sequence[dict[str, Any]],
        input_strings: Sequence[str],
        prefix: str | None,
        n_docs: int,
        return_tensors: str | None = None,
        truncate: str | None = None,
    ) -> tuple[Any, Any]:
        """Join documents and questions and encode them for the generator.

        Args:
            docs: what `retrieve` returned third.
            input_strings: B questions.
            prefix: text in front (T5); None is no text.
            n_docs: N.
            return_tensors: None (lists), "np", "pt" or "tf".
            truncate: "compatible" cuts on the right at `max_combined_length`, as transformers does,
                which loses the question after a long document; "document" cuts the document and
                keeps the question whole. By default ``config.prompt_truncation``, or "compatible".

        Returns:
            input_ids and attention_mask, (B*N, max_combined_length), row ``b * n_docs + d``.

        Raises:
            ValueError: sizes that do not fit, or an unknown `truncate`.
        """
        truncate = truncate or getattr(self.config, "prompt_truncation", None) or "compatible"
        if truncate not in TRUNCATE:
            raise ValueError(f"truncate must be one of {TRUNCATE}, got {truncate!r}.")
        if len(docs) != len(input_strings):
            raise ValueError(
                f"docs must be as many as input_strings, {len(input_strings)}, got {len(docs)}. "
                "Give a dictionary a question."
            )
        short = [
            row for row, doc in enumerate(docs) if min(len(doc["title"]), len(doc["text"])) < n_docs
        ]
        if short:
            raise ValueError(
                f"docs must hold n_docs={n_docs} documents a question, got fewer in rows {short}. "
                "Retrieve as many."
            )
        prefix = prefix or ""
        separators = (self.config.title_sep, self.config.doc_sep)
        prompts = build_prompts(docs, input_strings, prefix, n_docs, *separators)
        if truncate == "document":
            prompts = self._shortened(prompts, input_strings, prefix, n_docs)
        options: dict[str, Any] = {}
        if return_tensors is not None:
            options["return_tensors"] = "np"  # of lists tensors are made a number at a time
        encoded = self.generator_tokenizer(
            prompts,
            max_length=self.config.max_combined_length,
            padding="max_length",
            truncation=True,
            **options,
        )
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        return _convert(ids, return_tensors), _convert(mask, return_tensors)

    def _shortened(
        self, prompts: list[str], questions: Sequence[str], prefix: str, n_docs: int
    ) -> list[str]:
        tokenizer = self.generator_tokenizer

        def count_tokens(texts: list[str]) -> list[int]:
            encoded = tokenizer(texts, truncation=False, verbose=False)
            return [len(ids) for ids in encoded["input_ids"]]

        keep_last = []
        for question in questions:
            tail = (self.config.doc_sep + question).replace("  ", " ")
            keep_last += [len(tail)] * n_docs
        return shorten_documents(
            prompts,
            keep_last,
            len(prefix.replace("  ", " ")),
            self.config.max_combined_length,
            count_tokens,
            tokenizer.token_starts if isinstance(tokenizer, Tokenizer) else None,
        )

    def __call__(
        self,
        question_input_ids: Any,
        question_hidden_states: Any,
        prefix: str | None = None,
        n_docs: int | None = None,
        return_tensors: str | None = None,
        question_text: Sequence[str] | None = None,
        truncate: str | None = None,
    ) -> BatchEncoding:
        """Retrieve, and encode documents with questions for the generator.

        Args:
            question_input_ids: (B, Q) ids of the question encoder's tokenizer; may be None with
                `question_text`.
            question_hidden_states: (B, D) question vectors, array or tensor.
            prefix: text in front of each prompt (T5); None takes the generator configuration's, or
                nothing.
            n_docs: N, by default the configuration's.
            return_tensors: None (ids as lists, vectors as arrays), "np", "pt" or "tf".
            question_text: the questions as written; by default they are decoded from
                `question_input_ids`, which for BERT gives lower case.
            truncate: as in `postprocess_docs`.

        Returns:
            A `BatchEncoding` with context_input_ids and context_attention_mask (B*N, S),
            retrieved_doc_embeds (B, N, D), doc_ids (B, N), doc_mask (B, N; False where there was no
            hit) and, after `set_ctx_encoder_tokenizer`, tokenized_doc_ids and
            tokenized_doc_attention_mask (B*N, longest), of an encoder's `passage_tokenizer` also
            tokenized_doc_token_type_ids.

        Raises:
            ValueError: shapes that do not fit each other, and what `retrieve` raises.
        """
        from rag_core.tokenization import BatchEncoding

        # Everything of the caller's is looked at before the search, which may take long.
        n_docs = checked_n_docs(n_docs, self.n_docs)
        questions = self._questions(question_input_ids, question_text)
        question_hidden_states = np.asarray(to_numpy(question_hidden_states))
        if question_hidden_states.ndim != 2 or question_hidden_states.dtype.kind not in "fiu":
            raise ValueError(
                "question_hidden_states must be numbers of shape (batch, vector size), got "
                f"{question_hidden_states.dtype} {question_hidden_states.shape}."
            )
        if len(questions) != len(question_hidden_states):
            raise ValueError(
                f"{len(questions)} questions (question_text or question_input_ids), but "
                f"question_hidden_states has {len(question_hidden_states)} rows."
            )
        if prefix is None:
            prefix = getattr(self.config.generator, "prefix", None)
        asked = self._for_search(questions)
        vectors, doc_ids, docs = self.retrieve(question_hidden_states, n_docs, **asked)
        ids, mask = self.postprocess_docs(docs, questions, prefix, n_docs, return_tensors, truncate)
        output = {
            "context_input_ids": ids,
            "context_attention_mask": mask,
            "retrieved_doc_embeds": to_tensor(vectors, return_tensors),
            "doc_ids": to_tensor(doc_ids, return_tensors),
            "doc_mask": to_tensor(doc_ids >= 0, return_tensors),
        }
        if self.return_tokenized_docs:
            titles = [title for doc in docs for title in doc["title"]]
            texts = [text for doc in docs for text in doc["text"]]
            output |= self.tokenized_docs(titles, texts, return_tensors)
        return BatchEncoding(output)

    def tokenized_docs(
        self, titles: list[str], texts: list[str], return_tensors: str | None = None
    ) -> dict[str, Any]:
        """Documents tokenized for the context encoder; see `set_ctx_encoder_tokenizer`.

        Args:
            titles: R titles.
            texts: R texts.
            return_tensors: None (lists), "np", "pt" or "tf".

        Returns:
            tokenized_doc_ids and tokenized_doc_attention_mask (R, longest), of an encoder's
            `passage_tokenizer` also tokenized_doc_token_type_ids.

        Raises:
            ValueError: there is no tokenizer.
        """
        if self.ctx_encoder_tokenizer is None:
            raise ValueError(
                "a context encoder needs its tokenizer in the retriever, got none: call "
                "retriever.set_ctx_encoder_tokenizer(tokenizer)"
            )
        tokens = self.ctx_encoder_tokenizer(titles, texts, truncation=True, padding="longest")
        mask = tokens["attention_mask"]
        output = {
            "tokenized_doc_ids": _convert(tokens["input_ids"], return_tensors),
            "tokenized_doc_attention_mask": _convert(mask, return_tensors),
        }
        if getattr(self.ctx_encoder_tokenizer, "keeps_segments", False):
            segments = tokens.get("token_type_ids", np.zeros_like(mask))
            output["tokenized_doc_token_type_ids"] = _convert(segments, return_tensors)
        return output

    def _questions(self, question_input_ids: Any, question_text: Sequence[str] | None) -> list[str]:
        if question_text is not None:
            is_list = isinstance(question_text, list | tuple)
            if not is_list or not all(isinstance(text, str) for text in question_text):
                raise TypeError(
                    "question_text must be a list of strings, one a question, got "
                    f"{question_text!r:.80}."
                )
            _refuse_empty("question_text", [not text.strip() for text in question_text])
            return list(question_text)
        if question_input_ids is None:
            raise ValueError(
                "question_input_ids must be (B, Q) token ids, got None. Give them or question_text."
            )
        if not isinstance(question_input_ids, list | tuple):
            question_input_ids = to_numpy(question_input_ids).tolist()
        is_list = isinstance(question_input_ids, list | tuple)
        if not is_list or not all(hasattr(row, "__len__") for row in question_input_ids):
            raise ValueError(
                f"question_input_ids must be (B, Q) token ids, got {question_input_ids!r:.80}."
            )
        return self.decode_questions(question_input_ids)

    def decode_questions(self, question_input_ids: Sequence[Sequence[int]]) -> list[str]:
        """The texts of B rows of question ids, without the question encoder's prompt.

        Raises:
            ValueError: a question without a word.
        """
        tokenizer = self.question_encoder_tokenizer
        # Words the vocabulary lacks are a question still, so its [UNK] does not count as nothing.
        no_words = set(getattr(tokenizer, "all_special_ids", ()))
        no_words.discard(getattr(tokenizer, "unk_token_id", None))
        _refuse_empty(
            "question_input_ids", [no_words.issuperset(row) for row in question_input_ids]
        )
        rows = self._without_prompt(question_input_ids)
        return tokenizer.batch_decode(rows, skip_special_tokens=True)

    def _without_prompt(self, rows: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
        """Rows of question ids less the question encoder's prompt, which is no part of what is
        asked.
        """
        if not getattr(getattr(self.config, "question_encoder", None), "query_prompt", None):
            return rows
        rag_tokenizer = self.tokenizer
        prompt = list(rag_tokenizer.encode_questions("", add_special_tokens=False)["input_ids"])
        special = {*getattr(self.question_encoder_tokenizer, "all_special_ids", ())}
        shortened = []
        for row in rows:
            start = next((place for place, token in enumerate(row) if token not in special), 0)
            if list(row[start : start + len(prompt)]) == prompt:
                row = [*row[:start], *row[start + len(prompt) :]]
            elif not self._warned_of_prompt:
                # Once: training may retrieve thousands of times.
                self._warned_of_prompt = True
                warn(
                    f"question_input_ids do not begin with {rag_tokenizer.query_prompt!r}, the "
                    "prompt that the question encoder was trained with "
                    "(config.question_encoder.query_prompt), so less fitting documents may be "
                    "found. Tokenize questions with the retriever's `tokenizer`, or "
                    "RagTokenizer(..., config=config)."
                )
            shortened.append(row)
        return shortened


def _refuse_empty(name: str, empty: list[bool]) -> None:
    if any(empty):
        rows = [row for row, is_empty in enumerate(empty) if is_empty]
        raise ValueError(
            f"{name}: every question must have a word or more, rows {rows} are empty; leave them "
            "out."
        )


def _convert(ids: Any, return_tensors: str | None) -> Any:
    """Token ids as the caller wants them; integers are 64 bits wide in every kind."""
    if return_tensors is None:
        return ids
    return to_tensor(np.asarray(ids, dtype=np.int64), return_tensors)


def within_table_of(size: int | None, retriever: Any) -> Callable[..., Any]:
    """A retriever, or any callable like it, whose contexts hold no special tokens that a
    generator's table lacks.

    Args:
        size: ids that the table holds; None if it does not say.
        retriever: what is called.
    """

    def retrieve(*args: Any, return_tensors: str | None = None, **options: Any) -> Any:
        contexts = retriever(*args, return_tensors=return_tensors, **options)
        tokenizer = getattr(retriever, "generator_tokenizer", None)
        return encoded_within(contexts, size, tokenizer, return_tensors, "context_input_ids")

    retrieve.ctx_encoder_tokenizer = getattr(  # type: ignore[attr-defined]
        retriever, "ctx_encoder_tokenizer", None
    )
    return retrieve
