"""From question strings to answers with their passages in one graph: what `model.answer` does, where
no Python runs.

Letters: B questions, N documents a question, R = B*N contexts, n answers a question, S context
length, L tokens of a generated row, T those that count, M passages, U distinct vectors, D vector
size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from rag_core.arguments import checked_n_docs
from rag_core.generation import GenerationConfig
from rag_core.retrieval import TRUNCATE, IndexTables, document_cuts, document_of, index_tables
from rag_core.tokenization import BytePairTable, RagTokenizer, text_tables
from rag_tf.engine import ENGINE
from rag_tf.graph import Decoded, TextGraph, stripped, target_sums
from rag_tf.marginalize import doc_log_probs, doc_scores, logsumexp

Decoding = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Decoded]
_DOUBLE_BLANK = "  "


class StringGraph:
    """A model with its tokenizers and passages as operations of a graph.

    Args:
        model: a RagTokenForGeneration or RagSequenceForGeneration with a retriever.
        decode: contexts -> generated sequences.
        options: the sequences are made with.
        returned: n.
        n_docs: N; None = the retriever's.
        question_text: whether prompts hold the questions as typed; False: as the question encoder's
            tokenizer reads them.

    Attributes:
        parts: what a SavedModel has to keep besides the networks' weights.
    """

    def __init__(
        self,
        model: Any,
        decode: Decoding,
        options: GenerationConfig,
        returned: int,
        n_docs: int | None,
        question_text: bool,
    ) -> None:
        retriever = model.retriever
        if retriever is None:
            raise ValueError(
                "model must have a retriever for strings=True, got none. Pass retriever= to "
                "from_pretrained, or call set_retriever(...)"
            )
        if model.rag.context_encoder_training:
            raise ValueError(
                "model must score documents by the index's vectors for strings=True, got a context "
                "encoder. Set model.rag.context_encoder_training = False"
            )
        retriever.init_retrieval()
        self.n_docs = checked_n_docs(n_docs, retriever.n_docs)
        tables = index_tables(retriever.index)
        self._passages = _Passages(tables, self.n_docs)
        self._questions = _Questions(model, retriever.tokenizer)
        self._prompts = _Prompts(model, tables, self.n_docs)
        self.parts = [self._passages, self._questions, self._prompts]
        self._decode = decode
        self._options = options
        self._returned = returned
        self._as_typed = question_text
        self._model = model

    def __call__(self, questions: tf.Tensor) -> dict[str, tf.Tensor]:
        """The answers to questions (B,)."""
        model = self._model
        ids, mask = self._questions.encode(questions)
        read = model.rag._encode({"training": False}, model.question_encoder, ids, mask)
        vectors = read[0]  # (B, D)
        places = self._passages.search(tf.cast(vectors, tf.float32))  # (B, N)
        scores = doc_scores(vectors, self._passages.vectors_at(places))  # (B, N)
        texts = questions
        if not self._as_typed:
            texts = self._questions.texts(ids)
        context_ids, context_mask = self._prompts.encode(
            self._passages.titles_at(places), self._passages.texts_at(places), texts, places
        )
        decoded = self._decode(context_ids, context_mask, scores)
        output = self._weighed(decoded, scores)
        return {
            **output,
            "passage_id": self._passages.rows_at(places),
            "passage_title": self._passages.titles_at(places),
            "passage_text": self._passages.texts_at(places),
            "passage_source": self._passages.sources_at(places),
            "passage_score": scores,
            "prior": tf.exp(doc_log_probs(scores)),
        }

    def _weighed(self, decoded: Decoded, scores: tf.Tensor) -> dict[str, tf.Tensor]:
        """Texts and posteriors: the twin of rag_core.modeling.answers, in float64 as there."""
        model = self._model
        generator, returned, docs = model.generator, self._returned, self.n_docs
        sequences = decoded.output["sequences"]
        rows = tf.reshape(sequences, [-1, returned, tf.shape(sequences)[1]])  # (B, n, L)
        fed, targets = tf.repeat(rows, docs, axis=0), rows[..., 1:]
        [each] = target_sums(
            generator, decoded.hidden, decoded.mask, fed[..., :-1], fed[..., 1:], False
        )
        # (B, n, N, L-1) log p(y_i|x, z, y_<i)
        each = tf.reshape(each, [-1, docs, returned, tf.shape(targets)[2]])
        each = tf.cast(tf.transpose(each, [0, 2, 1, 3]), tf.float64)
        counted = self._counted(rows, model.config.generator.pad_token_id)  # (B, n, L-1)
        zero = tf.zeros([], tf.float64)
        each = tf.where(counted[:, :, None], each, zero)
        priors = tf.cast(doc_log_probs(scores), tf.float64)[:, None, :, None]  # (B, 1, N, 1)
        exists = tf.reduce_any(counted, axis=-1)  # (B, n): an answer, not a place left over
        tokens = tf.ragged.boolean_mask(targets, counted)
        output = {
            "answer": stripped(self._prompts.decode(tf.reshape(rows, [-1, tf.shape(rows)[2]]))),
            "tokens": self._prompts.decode_alone(tokens).to_tensor(""),  # (B, n, T)
        }
        output["answer"] = tf.reshape(output["answer"], [-1, returned])
        if model.head == "sequence":
            joint = tf.reduce_sum(each, 3) + priors[..., 0]  # (B, n, N)
            log_probability = logsumexp(joint, 2)
            posterior = tf.exp(joint - log_probability[..., None])
        else:
            joint = each + priors  # (B, n, N, L-1)
            marginal = tf.where(counted, logsumexp(joint, 2), zero)  # (B, n, L-1)
            shares = tf.where(counted[:, :, None], tf.exp(joint - marginal[:, :, None]), zero)
            count = tf.reduce_sum(tf.cast(counted, tf.float64), -1)[..., None]
            log_probability = tf.reduce_sum(marginal, -1)
            posterior = tf.reduce_sum(shares, -1) / tf.maximum(count, 1.0)
            by_token = tf.transpose(shares, [0, 1, 3, 2])  # (B, n, L-1, N)
            by_token = tf.ragged.boolean_mask(by_token, counted)
            by_token = by_token.to_tensor(shape=[None, None, None, docs])
            output["token_posterior"] = tf.cast(by_token, tf.float32)  # (B, n, T, N)
        log_probability = tf.where(exists, log_probability, tf.constant(-float("inf"), tf.float64))
        output["log_probability"] = tf.cast(log_probability, tf.float32)
        output["posterior"] = tf.cast(tf.where(exists[..., None], posterior, zero), tf.float32)
        return output

    def _counted(self, rows: tf.Tensor, generator_pad: int | None) -> tf.Tensor:
        """Which tokens count, (B, n, L-1) bool: the twin of the function in
        rag_core.modeling.answers.
        """
        options = self._options
        targets = rows[..., 1:]
        ends = tf.zeros_like(targets)
        for end in options.eos_token_ids:
            ends += tf.cast(targets == end, tf.int64)
        counted = tf.cumsum(ends, axis=-1) == ends
        if not options.eos_token_ids and options.pad_token_id is not None:
            counted &= targets != options.pad_token_id
        if generator_pad is not None:
            counted &= ~tf.reduce_all(rows == generator_pad, axis=-1, keepdims=True)
        if options.bos_token_id is not None:
            is_first = tf.range(tf.shape(targets)[2]) == 0
            counted &= ~(is_first & (targets == options.bos_token_id))
        return counted


class _Questions(tf.Module):
    """What the question encoder reads, and what a prompt repeats of it."""

    def __init__(self, model: Any, tokenizer: RagTokenizer) -> None:
        super().__init__()
        if tokenizer.query_lower_case:
            raise ValueError(
                "question_encoder's query_lower_case must be False for strings=True, got True. Set "
                "do_lower_case of its tokenizer, which lowers texts, too"
            )
        encoder = tokenizer.question_encoder
        size = ENGINE.table_size(model.question_encoder) or len(encoder)
        tables = text_tables(encoder, "question_encoder_tokenizer", size)
        self._text = TextGraph(tables, tokenizer.query_max_length)
        self._prompt = tokenizer.query_prompt
        self._prompt_ids: list[int] = []
        if self._prompt:
            encoded = tokenizer.encode_questions("", add_special_tokens=False)
            self._prompt_ids = list(encoded["input_ids"])
        self._start = len(tables.before)

    def encode(self, questions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Ids and mask (B, S)."""
        if self._prompt:
            questions = stripped(tf.strings.join([self._prompt, questions]))
        ids, mask = self._text.encode(questions)
        said = tf.reduce_all(self._text.has_words(self._asked(ids)))
        tf.debugging.Assert(said, ["every question must have a word or more"])
        return ids, mask

    def texts(self, ids: tf.Tensor) -> tf.Tensor:
        """What rows of ids say, without the encoder's prompt."""
        return self._text.decode(self._asked(ids))

    def _asked(self, ids: tf.Tensor) -> tf.Tensor:
        """Ids with pads in place of the encoder's prompt, where they begin with it."""
        if not self._prompt_ids:
            return ids
        end = self._start + len(self._prompt_ids)
        wide = tf.pad(ids, [[0, 0], [0, end]], constant_values=self._text.pad)
        begins = tf.reduce_all(wide[:, self._start : end] == self._prompt_ids, axis=1)
        is_prompt = begins[:, None] & (tf.range(tf.shape(ids)[1]) < end)
        return tf.where(is_prompt, tf.constant(self._text.pad, tf.int64), ids)


class _Passages(tf.Module):
    """The index: vectors that are compared, and the passages that they stand for."""

    def __init__(self, tables: IndexTables, n_docs: int) -> None:
        super().__init__()
        if len(tables.rows) < n_docs:
            raise ValueError(
                f"n_docs must be at most the passages of the index, {len(tables.rows)}, got "
                f"{n_docs}. Give a smaller n_docs"
            )
        self._n_docs = n_docs
        self._by_distance = tables.by_distance
        self._later_first = tables.later_first

        # Variables, not constants: a graph holds 2 GB at most.
        def kept(values: Any, dtype: tf.DType) -> tf.Variable:
            return tf.Variable(values, trainable=False, dtype=dtype)

        self._vectors = kept(tables.vectors, tf.float32)
        self._places = kept(tables.places, tf.int32)
        self._rows = kept(tables.rows, tf.int64)
        self._titles = kept(tables.titles, tf.string)
        self._texts = kept(tables.texts, tf.string)
        self._sources = kept(tables.sources, tf.string)

    def search(self, questions: tf.Tensor) -> tf.Tensor:
        """Places (B, N) of the best passages for vectors (B, D)."""
        scores = tf.matmul(questions, self._vectors, transpose_b=True)  # (B, U)
        if self._by_distance:
            scores = 2 * scores - tf.reduce_sum(self._vectors**2, 1)
        scores = tf.gather(scores, self._places, axis=1)  # (B, M)
        best, places = tf.math.top_k(scores, self._n_docs)  # of equals the earlier first
        if not self._later_first:
            return places
        # Faiss takes of those as good as the last one the first N that come, leaves the earliest of
        # these for each that is better, and names later rows first.
        least = best[:, -1:]
        is_least = scores == least
        number = tf.cumsum(tf.cast(scores >= least, tf.int32), axis=1)
        is_candidate = (scores > least) | (is_least & (number <= self._n_docs))
        lowest = tf.constant(-float("inf"), scores.dtype)
        scores = tf.reverse(tf.where(is_candidate, scores, lowest), [1])
        return tf.shape(scores)[1] - 1 - tf.math.top_k(scores, self._n_docs).indices

    def vectors_at(self, places: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._vectors, tf.gather(self._places, places))

    def rows_at(self, places: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._rows, places)

    def titles_at(self, places: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._titles, places)

    def texts_at(self, places: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._texts, places)

    def sources_at(self, places: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._sources, places)


class _Prompts(tf.Module):
    """What the generator reads: the twin of rag_core.retrieval.prompts."""

    def __init__(self, model: Any, tables: IndexTables, n_docs: int) -> None:
        super().__init__()
        retriever = model.retriever
        config = retriever.config
        tokenizer = retriever.generator_tokenizer
        size = ENGINE.table_size(model.generator) or len(tokenizer)
        text = text_tables(tokenizer, "generator_tokenizer", size)
        prefix = getattr(model.generator.config, "prefix", None)
        if prefix is None:
            prefix = getattr(config.generator, "prefix", None)
        self._prefix = prefix or ""
        self._title_sep, self._doc_sep = config.title_sep, config.doc_sep
        self._n_docs = n_docs
        self._most = int(config.max_combined_length)
        self._text = TextGraph(text, self._most)
        truncate = getattr(config, "prompt_truncation", None) or "compatible"
        if truncate not in TRUNCATE:
            raise ValueError(f"prompt_truncation must be one of {TRUNCATE}, got {truncate!r}.")
        self._cuts_documents = truncate == "document"
        if self._cuts_documents:
            self._keep_cuts(tables)
        self._token_bytes = None
        if isinstance(text.model, BytePairTable):
            size = len(text.first)
            lengths = np.zeros(size, np.int32)
            lengths[: len(text.model.lengths)] = text.model.lengths
            self._token_bytes = tf.constant(lengths)
            self._is_added = tf.constant(np.isin(np.arange(size), [*text.added.values()]))
        self.decode = self._text.decode
        self.decode_alone = self._text.decode_alone

    def _keep_cuts(self, tables: IndexTables) -> None:
        """Where each passage may end, in bytes: only Python knows where words of all scripts
        end.
        """
        keep_first = len(self._prefix.replace(_DOUBLE_BLANK, " "))
        values: list[int] = []
        starts = [0]
        for title, text in zip(tables.titles, tables.texts, strict=True):
            document = document_of(title, text, self._title_sep)
            head = f"{self._prefix}{document}".replace(_DOUBLE_BLANK, " ")
            last, size = 0, 0
            for cut in document_cuts(head, keep_first):
                size += len(head[last:cut].encode())
                last = cut
                values.append(size)
            starts.append(len(values))
        self._cuts = tf.Variable(values, trainable=False, dtype=tf.int32)
        self._cut_starts = tf.Variable(starts, trainable=False, dtype=tf.int32)

    def encode(
        self, titles: tf.Tensor, texts: tf.Tensor, questions: tf.Tensor, places: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Ids and mask (R, S) of passages (B, N) with questions (B,)."""
        titles = tf.strings.regex_replace(titles, '^"|"$', "")
        asked = tf.strings.join([self._doc_sep, questions])[:, None]
        prompts = tf.strings.join(
            [self._prefix, titles, self._title_sep, texts, tf.broadcast_to(asked, tf.shape(texts))]
        )
        prompts = tf.reshape(_single_blanks(prompts), [-1])  # (R,)
        ids = self._text.ids(prompts)
        if self._cuts_documents:
            tails = tf.repeat(_single_blanks(asked[:, 0]), self._n_docs)
            is_long = self._text.framed_lengths(ids) > self._most
            ids = tf.cond(
                tf.reduce_any(is_long),
                lambda: self._shortened(prompts, tails, ids, is_long, tf.reshape(places, [-1])),
                lambda: ids,
            )
        return self._text.framed(ids)

    def _shortened(
        self,
        prompts: tf.Tensor,
        tails: tf.Tensor,
        ids: tf.RaggedTensor,
        is_long: tf.Tensor,
        places: tf.Tensor,
    ) -> tf.RaggedTensor:
        """Ids of prompts (R,) with less of their documents: the twin of `shorten_documents`."""
        head_size = tf.strings.length(prompts) - tf.strings.length(tails)
        heads = tf.strings.substr(prompts, tf.zeros_like(head_size), head_size)
        start = tf.gather(self._cut_starts, places)
        count = tf.gather(self._cut_starts, places + 1) - start

        def cut(number: tf.Tensor) -> tf.Tensor:
            last = tf.shape(self._cuts)[0] - 1
            size = tf.gather(self._cuts, tf.clip_by_value(start + number, 0, last))
            short = tf.strings.substr(heads, tf.zeros_like(size), tf.minimum(size, head_size))
            return tf.strings.join([short, tails])

        high, is_guess = count, tf.zeros_like(is_long)
        if self._token_bytes is not None:
            guess = self._guess(ids, head_size, start, count)
            # a blank at the end may be a token of its own
            is_guess = ~tf.strings.regex_full_match(heads, r"(?s).*\s") & is_long
            # and added tokens may have taken blanks along
            is_guess &= ~tf.reduce_any(tf.gather(self._is_added, ids), axis=1)
            high = tf.where(is_guess, guess, high)
        low = tf.zeros_like(high)

        def goes_on(low: tf.Tensor, high: tf.Tensor, is_guess: tf.Tensor) -> tf.Tensor:
            return tf.reduce_any(is_guess | (is_long & (high - low > 1)))

        def halve(
            low: tf.Tensor, high: tf.Tensor, is_guess: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            number = tf.where(is_guess, high, (low + high) // 2)
            is_open = is_guess | (is_long & (high - low > 1))
            lengths = self._text.framed_lengths(self._text.ids(tf.where(is_open, cut(number), "")))
            fits = lengths <= self._most
            low = tf.where(is_open & fits, number, low)
            high = tf.where(is_open & ~fits, number, high)
            return low, high, tf.zeros_like(is_guess)

        low, _, _ = tf.while_loop(goes_on, halve, (low, high, is_guess))
        return self._text.ids(tf.where(is_long, cut(low), prompts))

    def _guess(
        self, ids: tf.RaggedTensor, head_size: tf.Tensor, start: tf.Tensor, count: tf.Tensor
    ) -> tf.Tensor:
        """The last cut before the first token that must go, (R,)."""
        sizes = tf.gather(self._token_bytes, ids)
        ends = sizes.with_values(tf.cumsum(sizes.values))
        before = tf.gather(tf.concat([[0], ends.values], 0), sizes.row_splits[:-1])
        token_starts = ends - sizes - before[:, None]  # (R, none)
        is_inside = token_starts < tf.cast(head_size, tf.int32)[:, None]
        inside = tf.reduce_sum(tf.cast(is_inside, tf.int32), axis=1)
        excess = tf.cast(self._text.framed_lengths(ids), tf.int32) - self._most
        number = tf.cast(ids.row_starts(), tf.int32) + tf.maximum(inside - excess, 0)
        last = tf.size(token_starts.values) - 1
        first_to_go = tf.gather(token_starts.values, tf.clip_by_value(number, 0, last))
        cuts = tf.RaggedTensor.from_row_lengths(
            tf.gather(self._cuts, tf.ragged.range(start, start + count).values),
            count,
            validate=False,
        )
        not_beyond = tf.cast(cuts <= first_to_go[:, None], tf.int32)
        guess = tf.reduce_sum(not_beyond, axis=1) - 1
        return tf.where(excess <= inside, tf.maximum(guess, 0), 0)


def _single_blanks(texts: tf.Tensor) -> tf.Tensor:
    return tf.strings.regex_replace(texts, _DOUBLE_BLANK, " ")
