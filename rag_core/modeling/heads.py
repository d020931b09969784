"""RAG-Sequence and RAG-Token of both frameworks, but for their tensors: the heads that marginalise
over documents (Lewis et al. 2020, arXiv 2005.11401, section 2.1).

Names, arguments and defaults are those of transformers 4.37.2's PyTorch classes;
`docs/compatibility.md` lists where results differ.

Letters: B questions, N documents a question, S context length, T target length, V vocabulary, d
width. Row b * N + d of everything with B*N rows belongs to document d of question b.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rag_core.arguments import checked_epsilon, checked_n_docs, checked_start, checked_switch
from rag_core.config import RagConfig
from rag_core.generation import next_inputs, rag_sequence_generate, rag_token_generate
from rag_core.modeling.answers import answer
from rag_core.modeling.components import RagComponents
from rag_core.modeling.inputs import ContextsBase, Tensor
from rag_core.outputs import RetrievAugLMMarginOutput, RetrievAugLMOutput


class RagHead(RagComponents):
    """What RAG-Sequence and RAG-Token share: a `RagModel` inside, and the run-up to a loss.

    Attributes:
        _rag_class: the backend's `RagModel`.
        _call_name: what errors call a head's call.
    """

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
    def retriever(self) -> Any:
        """The retriever, or None."""
        return self.rag.retriever

    @property
    def generator(self) -> Any:
        """The generator."""
        return self.rag.generator

    @property
    def question_encoder(self) -> Any:
        """The question encoder."""
        return self.rag.question_encoder

    def set_retriever(self, retriever: Any) -> None:
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

    def answer(self, *args: Any, **kwargs: Any) -> Any:
        """Answers with the passages they come from; see `rag_core.modeling.answer`."""
        return answer(self._engine, self, *args, **kwargs)

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
    ) -> tuple[Any, Tensor | None, Any]:
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


class RagSequenceHead(RagHead):
    """RAG-Sequence: one document explains the whole answer (paper, section 2.1).

    Arguments as `RagModel`.
    """

    head = "sequence"

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        past_key_values: Any = None,
        context_input_ids: Any = None,
        context_attention_mask: Any = None,
        doc_scores: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_retrieved: bool | None = None,
        exclude_bos_score: bool | None = None,
        reduce_loss: bool | None = None,
        labels: Any = None,
        n_docs: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
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

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        context_input_ids: Any = None,
        context_attention_mask: Any = None,
        doc_scores: Any = None,
        do_deduplication: bool | None = None,
        num_return_sequences: int | None = None,
        num_beams: int | None = None,
        n_docs: int | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Generate answers; see `rag_core.generation.rag_sequence_generate`."""
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


class RagTokenHead(RagHead):
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
        input_ids: Any = None,
        attention_mask: Any = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        past_key_values: Any = None,
        context_input_ids: Any = None,
        context_attention_mask: Any = None,
        doc_scores: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_retrieved: bool | None = None,
        do_marginalize: bool | None = None,
        reduce_loss: bool | None = None,
        labels: Any = None,
        n_docs: int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
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

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        context_input_ids: Any = None,
        context_attention_mask: Any = None,
        doc_scores: Any = None,
        n_docs: int | None = None,
        generation_config: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Generate answers; see `rag_core.generation.rag_token_generate`."""
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
