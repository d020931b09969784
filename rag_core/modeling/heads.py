"""RAG-Sequence and RAG-Token of both frameworks, but for their tensors: the heads that marginalise
over documents (Lewis et al. 2020, arXiv 2005.11401, section 2.1).

Names, arguments and defaults are those of transformers 4.37.2's PyTorch classes;
`docs/compatibility.md` lists where results differ.

Letters: B questions, N documents a question, S context length, T target length, V vocabulary, d
width. Row b * N + d of everything with B*N rows belongs to document d of question b.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

from rag_core.arguments import checked_epsilon, checked_n_docs, checked_start, checked_switch
from rag_core.config import RagConfig
from rag_core.generation import (
    GenerationConfig,
    next_inputs,
    rag_sequence_generate,
    rag_token_generate,
    with_options,
)
from rag_core.modeling.answers import answer
from rag_core.modeling.components import RagComponents
from rag_core.modeling.inputs import ContextsBase
from rag_core.outputs import (
    Answer,
    GenerateOutput,
    RetrievAugLMMarginOutput,
    RetrievAugLMOutput,
    Tensor,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from rag_core.generation import AnswerKeywords, SequenceKeywords, TokenKeywords
    from rag_core.modeling.encoder import PooledEncoderBase
    from rag_core.modeling.generator import GeneratorBase
    from rag_core.modeling.rag_model import RagModelBase
    from rag_core.retrieval import RagRetriever
    from rag_core.tokenization import RagTokenizer


class RagHead(RagComponents[Tensor]):
    """What RAG-Sequence and RAG-Token share: a `RagModel` inside, and the run-up to a loss.

    Attributes:
        _rag_class: the backend's `RagModel`.
        _call_name: what errors call a head's call.
    """

    rag: RagModelBase[Tensor]
    _rag_class: ClassVar[Any]
    _call_name = "forward"

    def __init__(
        self,
        config: RagConfig | None = None,
        question_encoder: Any = None,
        generator: Any = None,
        retriever: Any = None,
        **kwargs: Any,
    ) -> None:
        rag = self._rag_class(config, question_encoder, generator, retriever, **kwargs)
        super().__init__(rag.config)
        self.rag = rag

    # what a backend adds

    def _nll(
        self, logits: Tensor, scores: Tensor, target: Tensor, n_docs: int, **options: Any
    ) -> Tensor:
        """The backend's `marginalize.sequence_nll` or `token_nll` of logits (B*N, T, V)."""
        raise NotImplementedError

    # the same in both

    @property
    def retriever(self) -> RagRetriever | None:
        """The retriever, or None."""
        return self.rag.retriever

    @property
    def generator(self) -> GeneratorBase[Tensor]:
        """The generator."""
        return self.rag.generator

    @property
    def question_encoder(self) -> PooledEncoderBase[Tensor]:
        """The question encoder."""
        return self.rag.question_encoder

    def set_retriever(self, retriever: RagRetriever | Callable[..., Any] | None) -> None:
        """Attach a retriever, or detach it with None.

        Raises:
            TypeError: it is not callable.
        """
        self.rag.set_retriever(retriever)

    def set_context_encoder_for_training(self, ctx_encoder: Any) -> None:
        """See `RagModelBase.set_context_encoder_for_training`."""
        self.rag.set_context_encoder_for_training(ctx_encoder)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RAG-Token's alone: RAG-Sequence scores whole answers, no next token.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no next token to prepare for: it scores whole answers. "
            "Call generate()"
        )

    @with_options
    def answer(
        self,
        questions: str | Iterable[str],
        *,
        n_docs: int | None = None,
        tokenizer: RagTokenizer | None = None,
        question_text: bool | Sequence[str] | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> list[Answer]:
        """Answer questions, each answer with its passages, their prior p(z|x) and their posterior
        p(z|x, y).

        RAG-Sequence draws one passage for the whole answer, so the posterior is p(z) p(y|x, z) /
        sum. RAG-Token draws one for every token: `token_posteriors` holds p(z_i|x, y_i, y_<i) for
        each token, and a passage's posterior is their mean, the share of the answer that it wrote.

        Args:
            questions: one question or several: a list, an array, a column of a table, a generator.
            n_docs: N, documents read for each question; by default the config's.
            tokenizer: a RagTokenizer; by default the retriever's two tokenizers.
            question_text: the questions as the prompt should hold them; True for as they were
                asked. By default they are decoded from the question encoder's ids, as 4.37.2 does.
            **options: any keyword of `generate`, e.g. `num_beams=4`, `max_new_tokens=20`.

        Returns:
            `num_return_sequences` answers for each question, best first, question after question;
            fewer where RAG-Sequence found fewer. `log_probability` is log p(y|x) of all tokens
            after the start token, the end token and those of a `decoder_input_ids` included.

        Raises:
            TypeError: questions that are not strings, or an unknown option.
            ValueError: an empty question, a model without a retriever, or an option that cannot be
                had.
        """
        return answer(
            self._engine,
            self,
            questions,
            n_docs=n_docs,
            tokenizer=tokenizer,
            question_text=question_text,
            **options,
        )

    def _contexts(self, *args: Any, **kwargs: Any) -> ContextsBase:
        return self.rag._contexts(*args, **kwargs)

    @property
    def _pad_token_id(self) -> int:
        pad = self.config.generator.pad_token_id
        if pad is None:
            raise ValueError(
                "config.generator.pad_token_id must be set: it says which labels are not scored"
            )
        return pad

    def _run(
        self, labels: Any, extra: dict[str, Any], *, decoder_input_ids: Any, **inputs: Any
    ) -> tuple[Any, Any, Any]:
        """RagModel's output, the labels with pads for -100, and what the decoder was fed.

        Args:
            labels: (B, T) or None.
            extra: the further keywords of a head's call.
            decoder_input_ids: (B, T); None for the labels.
            **inputs: all other arguments of `RagModel`.

        Raises:
            TypeError: an unknown keyword.
        """
        passed_on = {name: extra[name] for name in self._passed_on if name in extra}
        # tokenizers give the first; the second is RAG-Sequence's, RAG-Token scores every token
        known = {*self._passed_on, "token_type_ids", "exclude_bos_score"}
        # None asks for nothing: PEFT hands on every argument that a transformers model may have.
        unknown = sorted(name for name in extra if name not in known and extra[name] is not None)
        if unknown:
            raise TypeError(
                f"{type(self).__name__}.{self._call_name} got unknown arguments: "
                f"{', '.join(unknown)}"
            )
        if labels is not None:
            self._check_places(labels=labels)
            vocabulary = self._checks.table_size(self.generator)
            labels = self._checks.checked_labels(
                labels, decoder_input_ids, self._pad_token_id, vocabulary
            )
            if decoder_input_ids is None:
                decoder_input_ids = labels
            inputs["use_cache"] = False
        outputs = self.rag(
            decoder_input_ids=decoder_input_ids, return_dict=True, **inputs, **passed_on
        )
        return outputs, labels, decoder_input_ids

    def _result(
        self, outputs: RetrievAugLMOutput, loss: Tensor | None, return_dict: bool | None
    ) -> Any:
        return_dict = checked_switch("return_dict", return_dict, self.config.use_return_dict)
        output = RetrievAugLMMarginOutput(**{**vars(outputs), "loss": loss})
        return output if return_dict else output.to_tuple()


class RagSequenceHead(RagHead[Tensor]):
    """RAG-Sequence: one document explains the whole answer (paper, section 2.1).

    Arguments as `RagModel`.
    """

    head = "sequence"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_retrieved: bool | None = None,
        exclude_bos_score: bool | None = None,
        reduce_loss: bool | None = None,
        labels: Tensor | None = None,
        n_docs: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> RetrievAugLMMarginOutput[Tensor] | tuple[Any, ...]:
        """Run `RagModel`, and compute the loss.

        Args:
            input_ids: see `RagModel`'s for this and every argument not named here.
            exclude_bos_score: leave the first scored token out of the loss if it is BOS in every
                row.
            reduce_loss: sum the loss over the batch.
            labels: (B, T); also the decoder's input if none is given; pads and -100 are not scored.
                The loss is that of `decoder_input_ids` where both are given (kept: compatibility
                Q16).
            return_dict: False for a plain tuple.
            **kwargs: `question_text`, see `RagModel`.

        Returns:
            `RetrievAugLMMarginOutput` with `loss` (B,), or a scalar with `reduce_loss`, and
            `logits` (B*N, T, V).
        """
        config = self.config
        with self._checks.looking_once():
            outputs, labels, fed = self._run(
                labels,
                kwargs,
                input_ids=input_ids,
                attention_mask=attention_mask,
                encoder_outputs=encoder_outputs,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                past_key_values=past_key_values,
                context_input_ids=context_input_ids,
                context_attention_mask=context_attention_mask,
                doc_scores=doc_scores,
                use_cache=use_cache,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                output_retrieved=output_retrieved,
                n_docs=n_docs,
            )
            loss = None
            if labels is not None:
                loss = self.get_nll(
                    outputs.logits,
                    outputs.doc_scores,
                    fed,
                    checked_switch("reduce_loss", reduce_loss, config.reduce_loss),
                    config.label_smoothing,
                    checked_switch(
                        "exclude_bos_score", exclude_bos_score, config.exclude_bos_score
                    ),
                    n_docs,
                )
        return self._result(outputs, loss, return_dict)

    if TYPE_CHECKING:

        def __call__(
            self,
            input_ids: Tensor | None = None,
            attention_mask: Tensor | None = None,
            encoder_outputs: Any = None,
            decoder_input_ids: Tensor | None = None,
            decoder_attention_mask: Tensor | None = None,
            past_key_values: Any = None,
            context_input_ids: Tensor | None = None,
            context_attention_mask: Tensor | None = None,
            doc_scores: Tensor | None = None,
            use_cache: bool | None = None,
            output_attentions: bool | None = None,
            output_hidden_states: bool | None = None,
            output_retrieved: bool | None = None,
            exclude_bos_score: bool | None = None,
            reduce_loss: bool | None = None,
            labels: Tensor | None = None,
            n_docs: int | None = None,
            return_dict: Literal[True] | None = None,
            *,
            question_text: Sequence[str] | None = None,
            token_type_ids: Tensor | None = None,
        ) -> RetrievAugLMMarginOutput[Tensor]:
            """See `forward`. For a tuple, which `return_dict=False` gives, write `.to_tuple()`."""
            ...

    def get_nll(
        self,
        seq_logits: Tensor,
        doc_scores: Tensor,
        target: Tensor,
        reduce_loss: bool = False,
        epsilon: float = 0.0,
        exclude_bos_score: bool = False,
        n_docs: int | None = None,
    ) -> Tensor:
        """Negative log-likelihood of `target` (B, T) under logits (B*N, T, V) and scores (B, N).

        See `sequence_nll` in the backend's `marginalize.py`.
        """
        n_docs = checked_n_docs(n_docs, self.config.n_docs)
        logits, scores, target = self._checks.check_loss(seq_logits, doc_scores, n_docs, target)
        return self._nll(
            logits,
            scores,
            target,
            n_docs,
            bos_token_id=self.config.bos_token_id or self.config.generator.bos_token_id,
            exclude_bos_score=checked_switch("exclude_bos_score", exclude_bos_score, False),
            epsilon=checked_epsilon(epsilon),
            reduce_loss=checked_switch("reduce_loss", reduce_loss, False),
        )

    @overload
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        *,
        return_dict_in_generate: Literal[False] | None = None,
        **options: Unpack[SequenceKeywords],
    ) -> Tensor: ...

    @overload
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        *,
        return_dict_in_generate: Literal[True],
        **options: Unpack[SequenceKeywords],
    ) -> GenerateOutput[Tensor]: ...

    @with_options
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        do_deduplication: bool | None = None,
        num_return_sequences: int | None = None,
        num_beams: int | None = None,
        n_docs: int | None = None,
        **model_kwargs: Any,
    ) -> Tensor | GenerateOutput[Tensor]:
        """Generate answers: each document's own search finds candidates, and those that the
        documents together find likeliest come back (paper, section 2.5).

        Args:
            input_ids: (B, S) questions, to retrieve contexts for; or give the contexts:
            attention_mask: (B, S), 1 = a real token.
            context_input_ids: (B*N, S) document and question as the generator reads them.
            context_attention_mask: (B*N, S), 1 = a real token.
            doc_scores: (B, N), the documents' scores.
            do_deduplication: whether a candidate found twice counts once; None = the config's.
            num_return_sequences: answers for each question; None = the config's.
            num_beams: beams of the search of each document; None = the config's.
            n_docs: N; None = the config's.
            **model_kwargs: any option below, and
                `decoding`: "thorough" (the default) scores every candidate against every document;
                "fast" counts a document only where its own search found the candidate, and reuses
                that search's score;
                `generation_config`, `prefix_allowed_tokens_fn`, `logits_processor`,
                `stopping_criteria`: as of RAG-Token's `generate`;
                `seed`: of the sampling noise; None draws one from the framework's generator, so
                `torch.manual_seed` or `tf.random.set_seed` repeats a call. The same seed draws the
                same text only for the same place in the batch and number of samples;
                `question_text`: the questions as the prompt should hold them;
                `decoder_input_ids` (B, P): tokens each answer begins with. The start token is put
                in front where no row has it; `max_length` counts them, `max_new_tokens` and
                `length_penalty` do not;
                `streamer`: has `put(ids)` and `end()`, for one question without beams;
                `negative_prompt_ids` (B, S'), `negative_prompt_attention_mask`: with
                `guidance_scale` g, scores are g * log p(with documents) + (1 - g) * log p(read from
                these ids instead; by default the empty text);
                `graph`, of rag_tf alone: True runs all steps in one graph, which the first call of
                its kind waits seconds for; False runs them one by one; None (the default) makes the
                graph when a set of options is asked for the second time, and runs step by step what
                can't be in a graph (docs/tensorflow.md).
                The searches of all documents of a question begin with its `decoder_input_ids`,
                whose probability thorough decoding counts, so that documents weigh as these tokens
                say too; `guidance_scale` acts on the searches, not on the weighing; `streamer`
                needs one document.

        Returns:
            (B * num_return_sequences, T) token ids with the start token, right-padded; or with
            `return_dict_in_generate=True` a `GenerateOutput`, whose `sequences` they are.

        Raises:
            TypeError: an unknown option.
            ValueError: an option that cannot be had, inputs that do not fit, or `graph=True` for
                what can't run in a graph; the reason is named.
        """
        return rag_sequence_generate(
            self._engine,
            self,
            input_ids,
            attention_mask,
            context_input_ids,
            context_attention_mask,
            doc_scores,
            do_deduplication,
            num_return_sequences,
            num_beams,
            n_docs,
            **model_kwargs,
        )


class RagTokenHead(RagHead[Tensor]):
    """RAG-Token: each token may come from another document (paper, section 2.1).

    Arguments as `RagModel`.
    """

    head = "token"

    def _marginal(self, logits: Tensor, scores: Tensor, n_docs: int) -> Tensor:
        """The backend's `marginalize.token_log_probs` of logits (B*N, T, V) and scores (B, N)."""
        raise NotImplementedError

    def _shifted(self, input_ids: Tensor, start: int) -> Tensor:
        """Ids (B, T) with `start` in front and the last column gone."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_retrieved: bool | None = None,
        do_marginalize: bool | None = None,
        reduce_loss: bool | None = None,
        labels: Tensor | None = None,
        n_docs: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> RetrievAugLMMarginOutput[Tensor] | tuple[Any, ...]:
        """Run `RagModel`, and compute the marginal and the loss.

        Args:
            input_ids: see `RagModel`'s for this and every argument not named here.
            do_marginalize: return marginalised log-probabilities (B, T, V) as `logits`.
            reduce_loss: sum the loss over the batch.
            labels: (B, T); also the decoder's input if none is given; pads and -100 are not scored.
            return_dict: False for a plain tuple.
            **kwargs: `question_text`, see `RagModel`.

        Returns:
            `RetrievAugLMMarginOutput` with `loss` (B,), or a scalar with `reduce_loss`.
        """
        config = self.config
        with self._checks.looking_once():
            outputs, labels, _ = self._run(
                labels,
                kwargs,
                input_ids=input_ids,
                attention_mask=attention_mask,
                encoder_outputs=encoder_outputs,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                past_key_values=past_key_values,
                context_input_ids=context_input_ids,
                context_attention_mask=context_attention_mask,
                doc_scores=doc_scores,
                use_cache=use_cache,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                output_retrieved=output_retrieved,
                n_docs=n_docs,
            )
            loss = None
            if labels is not None:
                loss = self.get_nll(
                    outputs.logits,
                    outputs.doc_scores,
                    labels,
                    checked_switch("reduce_loss", reduce_loss, config.reduce_loss),
                    config.label_smoothing,
                    n_docs,
                )
            if checked_switch("do_marginalize", do_marginalize, config.do_marginalize):
                outputs.logits = self.marginalize(outputs.logits, outputs.doc_scores, n_docs)
        return self._result(outputs, loss, return_dict)

    if TYPE_CHECKING:

        def __call__(
            self,
            input_ids: Tensor | None = None,
            attention_mask: Tensor | None = None,
            encoder_outputs: Any = None,
            decoder_input_ids: Tensor | None = None,
            decoder_attention_mask: Tensor | None = None,
            past_key_values: Any = None,
            context_input_ids: Tensor | None = None,
            context_attention_mask: Tensor | None = None,
            doc_scores: Tensor | None = None,
            use_cache: bool | None = None,
            output_attentions: bool | None = None,
            output_hidden_states: bool | None = None,
            output_retrieved: bool | None = None,
            do_marginalize: bool | None = None,
            reduce_loss: bool | None = None,
            labels: Tensor | None = None,
            n_docs: int | None = None,
            return_dict: Literal[True] | None = None,
            *,
            question_text: Sequence[str] | None = None,
            token_type_ids: Tensor | None = None,
        ) -> RetrievAugLMMarginOutput[Tensor]:
            """See `forward`. For a tuple, which `return_dict=False` gives, write `.to_tuple()`."""
            ...

    def marginalize(
        self, seq_logits: Tensor, doc_scores: Tensor, n_docs: int | None = None
    ) -> Tensor:
        """log p(y_i|x, y_<i) over the vocabulary.

        Logits (B*N, T, V) and scores (B, N) -> (B, T, V).
        """
        n_docs = checked_n_docs(n_docs, self.config.n_docs)
        logits, scores, _ = self._checks.check_loss(seq_logits, doc_scores, n_docs)
        return self._marginal(logits, scores, n_docs)

    def get_nll(
        self,
        seq_logits: Tensor,
        doc_scores: Tensor,
        target: Tensor,
        reduce_loss: bool = False,
        epsilon: float = 0.0,
        n_docs: int | None = None,
    ) -> Tensor:
        """Negative log-likelihood of `target` (B, T) under logits (B*N, T, V) and scores (B, N).

        See `token_nll` in the backend's `marginalize.py`.
        """
        n_docs = checked_n_docs(n_docs, self.config.n_docs)
        logits, scores, target = self._checks.check_loss(seq_logits, doc_scores, n_docs, target)
        return self._nll(
            logits,
            scores,
            target,
            n_docs,
            epsilon=checked_epsilon(epsilon),
            reduce_loss=checked_switch("reduce_loss", reduce_loss, False),
        )

    def prepare_inputs_for_generation(
        self,
        decoder_input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_outputs: Any = None,
        doc_scores: Tensor | None = None,
        n_docs: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of the forward pass that scores the token after `decoder_input_ids` (B, t),
        marginalised.

        For loops of other libraries: `generate` here keeps its own state.

        Args:
            decoder_input_ids: the answers so far.
            past_key_values: of the last call, for those tokens but the last.
            attention_mask: that of the contexts (B*N, S).
            use_cache: return `past_key_values`.
            encoder_outputs: the generator's, of the contexts.
            doc_scores: (B, N).
            n_docs: N; None = the config's.
            **kwargs: not used.
        """
        return next_inputs(
            decoder_input_ids,
            past_key_values,
            context_attention_mask=attention_mask,
            encoder_outputs=encoder_outputs,
            doc_scores=doc_scores,
            n_docs=n_docs,
            use_cache=use_cache,
            do_marginalize=True,
        )

    def shift_tokens_right(self, input_ids: Tensor, start_token_id: int | None = None) -> Tensor:
        """(B, T) ids with a start token (the config's decoder start) in front and the last
        column gone.
        """
        start = checked_start(start_token_id, self.config.decoder_start_token_id)
        return self._shifted(self._checks.checked_ids("input_ids", input_ids), start)

    @overload
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        *,
        return_dict_in_generate: Literal[False] | None = None,
        **options: Unpack[TokenKeywords],
    ) -> Tensor: ...

    @overload
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        *,
        return_dict_in_generate: Literal[True],
        **options: Unpack[TokenKeywords],
    ) -> GenerateOutput[Tensor]: ...

    @with_options
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        n_docs: int | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], Iterable[int]] | None = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **kwargs: Any,
    ) -> Tensor | GenerateOutput[Tensor]:
        """Generate answers: one search a question, over scores that are marginalised over the
        documents at every token (paper, section 2.5).

        Args:
            input_ids: (B, S) questions, to retrieve contexts for; or give the contexts:
            attention_mask: (B, S), 1 = a real token.
            context_input_ids: (B*N, S) document and question as the generator reads them.
            context_attention_mask: (B*N, S), 1 = a real token.
            doc_scores: (B, N), the documents' scores.
            n_docs: N; None = the config's.
            generation_config: options of this call; keywords go before it, the model's own options
                after it.
            prefix_allowed_tokens_fn: (question number, (t,) ids) -> ids allowed next.
            logits_processor: callables (input_ids, scores) -> scores, after the built-in rules.
            stopping_criteria: callables (input_ids, scores) -> True to stop, or (rows,) bools.
            **kwargs: any option below, and
                `seed`: of the sampling noise; None draws one from the framework's generator, so
                `torch.manual_seed` or `tf.random.set_seed` repeats a call. The same seed draws the
                same text only for the same place in the batch and number of samples;
                `question_text`: the questions as the prompt should hold them;
                `decoder_input_ids` (B, P): tokens each answer begins with. The start token is put
                in front where no row has it; `max_length` counts them, `max_new_tokens` and
                `length_penalty` do not;
                `streamer`: has `put(ids)` and `end()`, for one question without beams;
                `negative_prompt_ids` (B, S'), `negative_prompt_attention_mask`: with
                `guidance_scale` g, scores are g * log p(with documents) + (1 - g) * log p(read from
                these ids instead; by default the empty text);
                `graph`, of rag_tf alone: True runs all steps in one graph, which the first call of
                its kind waits seconds for; False runs them one by one; None (the default) makes the
                graph when a set of options is asked for the second time, and runs step by step what
                can't be in a graph (docs/tensorflow.md);
                `do_deduplication` changes nothing: no two rows of a search are equal.

        Returns:
            (B * num_return_sequences, T) token ids with the start token, right-padded; or with
            `return_dict_in_generate=True` a `GenerateOutput`, whose `sequences` they are.

        Raises:
            TypeError: an unknown option.
            ValueError: an option that cannot be had, inputs that do not fit, or `graph=True` for
                what can't run in a graph; the reason is named.
        """
        return rag_token_generate(
            self._engine,
            self,
            input_ids,
            attention_mask,
            context_input_ids,
            context_attention_mask,
            doc_scores,
            n_docs,
            generation_config,
            prefix_allowed_tokens_fn,
            logits_processor,
            stopping_criteria,
            **kwargs,
        )
