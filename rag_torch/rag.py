"""The RAG models; the two heads that marginalise over documents (Lewis et al. 2020, arXiv
2005.11401, section 2.1).

Names, arguments and defaults are those of transformers 4.37.2. `docs/compatibility.md` lists where
results differ. Letters: B questions, N documents a question, S context length, T target length, V
vocabulary. Row b * N + d of everything with B*N rows belongs to document d of question b.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rag_core.arguments import checked_epsilon, checked_n_docs, checked_start, checked_switch
from rag_core.config import RagConfig
from rag_core.generation import next_inputs
from rag_core.outputs import RetrievAugLMMarginOutput, RetrievAugLMOutput
from rag_torch import marginalize as marginal
from rag_torch.components import RagPretrained
from rag_torch.contexts import (
    Contexts,
    check_loss,
    check_places,
    checked_ids,
    checked_labels,
    table_size,
)
from rag_torch.engine import ENGINE
from rag_torch.rag_model import RagModel

__all__ = ["RagModel", "RagSequenceForGeneration", "RagTokenForGeneration"]

# in the order of `RagModel.forward`
_MODEL_ARGUMENTS = (
    "input_ids attention_mask encoder_outputs decoder_input_ids decoder_attention_mask "
    "past_key_values doc_scores context_input_ids context_attention_mask use_cache "
    "output_attentions output_hidden_states output_retrieved n_docs"
).split()


class _RagHead(RagPretrained):
    """What RAG-Sequence and RAG-Token share: a `RagModel` inside, and the run-up to a loss."""

    config_class = RagConfig

    def __init__(
        self,
        config: RagConfig | None = None,
        question_encoder: nn.Module | None = None,
        generator: nn.Module | None = None,
        retriever: Any = None,
        **kwargs: Any,
    ) -> None:
        rag = RagModel(config, question_encoder, generator, retriever, **kwargs)
        super().__init__(rag.config)
        self.rag = rag

    @property
    def retriever(self) -> Any:
        """The retriever, or None."""
        return self.rag.retriever

    @property
    def generator(self) -> Any:
        """The generator."""
        return self.rag.generator

    @property
    def question_encoder(self) -> nn.Module:
        """The question encoder."""
        return self.rag.question_encoder

    def set_retriever(self, retriever: Any) -> None:
        """Attach a retriever, or detach it with None."""
        self.rag.set_retriever(retriever)

    def set_context_encoder_for_training(self, ctx_encoder: nn.Module) -> None:
        """See `RagModel.set_context_encoder_for_training`."""
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
        from rag_core.modeling import answer

        return answer(ENGINE, self, *args, **kwargs)

    def _contexts(self, *args: Any, **kwargs: Any) -> Contexts:
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
        self, labels: Tensor | None, inputs: dict[str, Any], kwargs: dict[str, Any]
    ) -> tuple[Any, Tensor | None]:
        """RagModel's output, and the labels with pads for -100."""
        question_text = kwargs.pop("question_text", None)
        kwargs.pop("token_type_ids", None)
        # what is left of it is RAG-Token's, which scores every token
        kwargs.pop("exclude_bos_score", None)
        # None asks for nothing: PEFT hands on every argument that a transformers model may have.
        unknown = sorted(name for name, value in kwargs.items() if value is not None)
        if unknown:
            raise TypeError(
                f"{type(self).__name__}.forward got unknown arguments: {', '.join(unknown)}"
            )
        if labels is not None:
            fed = inputs["decoder_input_ids"]
            check_places(model=next(self.parameters()), labels=labels)
            labels = checked_labels(labels, fed, self._pad_token_id, table_size(self.generator))
            if fed is None:
                inputs["decoder_input_ids"] = labels
            inputs["use_cache"] = False
        return self.rag(**inputs, question_text=question_text, return_dict=True), labels

    def _result(
        self, outputs: RetrievAugLMOutput, loss: Tensor | None, return_dict: bool | None
    ) -> Any:
        output = RetrievAugLMMarginOutput(**{**vars(outputs), "loss": loss})
        wanted = checked_switch("return_dict", return_dict, self.config.use_return_dict)
        return output if wanted else output.to_tuple()


class RagSequenceForGeneration(_RagHead):
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
    ) -> Any:
        """`RagModel.forward`, and the loss.

        Args:
            input_ids: see `RagModel.forward` for this and every argument not named here.
            exclude_bos_score: leave the first scored token out of the loss if it is BOS in every
                row.
            reduce_loss: sum the loss over the batch.
            labels: (B, T); also the decoder's input if none is given; pads and -100 are not scored.
                The loss is that of `decoder_input_ids` where both are given (kept: compatibility
                Q16).
            return_dict: False for a plain tuple.
            **kwargs: `question_text`, see `RagModel.forward`.

        Returns:
            `RetrievAugLMMarginOutput` with `loss` (B,), or a scalar with `reduce_loss`, and
            `logits` (B*N, T, V).
        """
        config = self.config
        given = (
            input_ids,
            attention_mask,
            encoder_outputs,
            decoder_input_ids,
            decoder_attention_mask,
            past_key_values,
        )
        contexts = (doc_scores, context_input_ids, context_attention_mask)
        switches = (use_cache, output_attentions, output_hidden_states, output_retrieved, n_docs)
        inputs = dict(zip(_MODEL_ARGUMENTS, (*given, *contexts, *switches), strict=True))
        outputs, labels = self._run(labels, inputs, kwargs)
        loss = None
        if labels is not None:
            loss = self.get_nll(
                outputs.logits,
                outputs.doc_scores,
                inputs["decoder_input_ids"],
                checked_switch("reduce_loss", reduce_loss, config.reduce_loss),
                config.label_smoothing,
                checked_switch("exclude_bos_score", exclude_bos_score, config.exclude_bos_score),
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

        See `sequence_nll`.
        """
        n_docs = checked_n_docs(n_docs, self.config.n_docs)
        check_loss(seq_logits, doc_scores, n_docs, target)
        return marginal.sequence_nll(
            seq_logits.unflatten(0, (-1, n_docs)),
            doc_scores,
            target,
            self._pad_token_id,
            bos_token_id=self.config.bos_token_id or self.config.generator.bos_token_id,
            exclude_bos_score=checked_switch("exclude_bos_score", exclude_bos_score, False),
            epsilon=checked_epsilon(epsilon),
            reduce_loss=checked_switch("reduce_loss", reduce_loss, False),
        )

    @torch.no_grad()
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
    ) -> Any:
        """Generate answers; see `rag_core.generation.rag_sequence_generate`."""
        from rag_core.generation import rag_sequence_generate

        given = (input_ids, attention_mask, context_input_ids, context_attention_mask, doc_scores)
        options = (do_deduplication, num_return_sequences, num_beams, n_docs)
        return rag_sequence_generate(ENGINE, self, *given, *options, **model_kwargs)


class RagTokenForGeneration(_RagHead):
    """RAG-Token: each token may come from another document (paper, section 2.1).

    Arguments as `RagModel`.
    """

    head = "token"

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
    ) -> Any:
        """`RagModel.forward`, the marginal and the loss.

        Args:
            input_ids: see `RagModel.forward` for this and every argument not named here.
            do_marginalize: return marginalised log-probabilities (B, T, V) as `logits`.
            reduce_loss: sum the loss over the batch.
            labels: (B, T); also the decoder's input if none is given; pads and -100 are not scored.
            return_dict: False for a plain tuple.
            **kwargs: `question_text`, see `RagModel.forward`.

        Returns:
            `RetrievAugLMMarginOutput` with `loss` (B,), or a scalar with `reduce_loss`.
        """
        config = self.config
        given = (
            input_ids,
            attention_mask,
            encoder_outputs,
            decoder_input_ids,
            decoder_attention_mask,
            past_key_values,
        )
        contexts = (doc_scores, context_input_ids, context_attention_mask)
        switches = (use_cache, output_attentions, output_hidden_states, output_retrieved, n_docs)
        inputs = dict(zip(_MODEL_ARGUMENTS, (*given, *contexts, *switches), strict=True))
        outputs, labels = self._run(labels, inputs, kwargs)
        loss = None
        if labels is not None:
            reduce_loss = checked_switch("reduce_loss", reduce_loss, config.reduce_loss)
            epsilon = config.label_smoothing
            loss = self.get_nll(
                outputs.logits, outputs.doc_scores, labels, reduce_loss, epsilon, n_docs
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
        check_loss(seq_logits, doc_scores, n_docs)
        log_probs = marginal.doc_log_probs(doc_scores)
        return marginal.token_log_probs(seq_logits.unflatten(0, (-1, n_docs)), log_probs)

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

        See `token_nll`.
        """
        n_docs = checked_n_docs(n_docs, self.config.n_docs)
        check_loss(seq_logits, doc_scores, n_docs, target)
        logits = seq_logits.unflatten(0, (-1, n_docs))
        epsilon, reduce_loss = (
            checked_epsilon(epsilon),
            checked_switch("reduce_loss", reduce_loss, False),
        )
        pad = self._pad_token_id
        return marginal.token_nll(
            logits, doc_scores, target, pad, epsilon=epsilon, reduce_loss=reduce_loss
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
        checked_ids("input_ids", input_ids)
        return torch.cat([input_ids.new_full((input_ids.shape[0], 1), start), input_ids[:, :-1]], 1)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        doc_scores: Tensor | None = None,
        n_docs: int | None = None,
        generation_config: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Generate answers; see `rag_core.generation.rag_token_generate`."""
        from rag_core.generation import rag_token_generate

        given = (
            input_ids,
            attention_mask,
            context_input_ids,
            context_attention_mask,
            doc_scores,
            n_docs,
        )
        rules = (generation_config, prefix_allowed_tokens_fn, logits_processor, stopping_criteria)
        return rag_token_generate(ENGINE, self, *given, *rules, **kwargs)
