"""The RAG models in TensorFlow; the mathematics of the two heads that marginalise over documents,
as graphs.

Letters: B questions, N documents a question, T target length, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from rag_core.modeling import RagHead, RagSequenceHead, RagTokenHead
from rag_core.outputs import RetrievAugLMMarginOutput
from rag_tf.call_arguments import Called
from rag_tf.components import RagPretrained
from rag_tf.keras_model import KerasModel
from rag_tf.marginalize import rows_marginal, rows_sequence_nll, rows_token_nll
from rag_tf.rag_model import RagModel

if TYPE_CHECKING:
    from rag_tf.bert import PooledEncoder
    from rag_tf.seq2seq import Generator

__all__ = ["RagModel", "RagSequenceForGeneration", "RagTokenForGeneration"]


class _Head(RagHead[tf.Tensor], RagPretrained, KerasModel):
    """What both heads add to those of `rag_core.modeling`."""

    rag: RagModel
    _rag_class = RagModel

    if TYPE_CHECKING:

        @property
        def generator(self) -> Generator: ...

        @property
        def question_encoder(self) -> PooledEncoder: ...

    _call_name = "call"
    _rows_nll: Any

    def train(self, mode: bool = True) -> Any:
        """See `RagModel.train`."""
        self.rag.train(mode)
        return super().train(mode)

    def _nll(
        self, logits: tf.Tensor, scores: tf.Tensor, target: tf.Tensor, n_docs: int, **options: Any
    ) -> tf.Tensor:
        # ids always int64, and N a tensor: another type or number would be another graph
        ids, documents = tf.cast(target, tf.int64), tf.constant(n_docs)
        graph = self.graph("nll", self._rows_nll)
        return graph(logits, scores, ids, documents, self._pad_token_id, options)


class RagSequenceForGeneration(
    Called[RetrievAugLMMarginOutput[tf.Tensor]], RagSequenceHead[tf.Tensor], _Head
):
    if not TYPE_CHECKING:  # see `Called`
        forward = KerasModel.forward
    _rows_nll = staticmethod(rows_sequence_nll)

    def call(
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
        training: bool | None = None,
        **kwargs: Any,
    ) -> RetrievAugLMMarginOutput[tf.Tensor] | tuple[Any, ...]:
        """See `rag_core.modeling.RagSequenceHead.forward`; `training` as in `RagModel`."""
        return RagSequenceHead.forward(
            self,
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
            exclude_bos_score=exclude_bos_score,
            reduce_loss=reduce_loss,
            labels=labels,
            n_docs=n_docs,
            return_dict=return_dict,
            training=training,
            **kwargs,
        )


class RagTokenForGeneration(
    Called[RetrievAugLMMarginOutput[tf.Tensor]], RagTokenHead[tf.Tensor], _Head
):
    if not TYPE_CHECKING:  # see `Called`
        forward = KerasModel.forward
    _rows_nll = staticmethod(rows_token_nll)

    def call(
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
        training: bool | None = None,
        **kwargs: Any,
    ) -> RetrievAugLMMarginOutput[tf.Tensor] | tuple[Any, ...]:
        """See `rag_core.modeling.RagTokenHead.forward`; `training` as in `RagModel`."""
        return RagTokenHead.forward(
            self,
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
            do_marginalize=do_marginalize,
            reduce_loss=reduce_loss,
            labels=labels,
            n_docs=n_docs,
            return_dict=return_dict,
            training=training,
            **kwargs,
        )

    def _marginal(self, logits: tf.Tensor, scores: tf.Tensor, n_docs: int) -> tf.Tensor:
        return self.graph("marginalize", rows_marginal)(logits, scores, tf.constant(n_docs))

    def _shifted(self, input_ids: tf.Tensor, start: int) -> tf.Tensor:
        first = tf.fill((tf.shape(input_ids)[0], 1), tf.cast(start, input_ids.dtype))
        return tf.concat([first, input_ids[:, :-1]], 1)
