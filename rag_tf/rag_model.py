"""RagModel in TensorFlow: how its networks are run, and the search between them.

The two networks run as graphs, with the search between them in Python; within a graph of the
caller's the search is a `tf.numpy_function`.

Letters: B questions, N documents a question, Q question length, D vector size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from rag_core.backends import to_numpy
from rag_core.config import RagConfig
from rag_core.modeling import RagModelBase, accepted
from rag_core.outputs import RetrievAugLMOutput
from rag_tf.call_arguments import Called
from rag_tf.components import RagPretrained
from rag_tf.contexts import rows_of_like_length, search_in_graph, to_device, used_length
from rag_tf.foreign import as_generator, encode_questions
from rag_tf.keras_model import KerasModel
from rag_tf.pretrained import PretrainedModel, warn_of_prefix

if TYPE_CHECKING:
    from rag_tf.bert import PooledEncoder
    from rag_tf.seq2seq import Generator

_TOKENIZED_DOCUMENTS = (
    "tokenized_doc_ids",
    "tokenized_doc_attention_mask",
    "tokenized_doc_token_type_ids",
)


class RagModel(
    Called[RetrievAugLMOutput[tf.Tensor]], RagModelBase[tf.Tensor], RagPretrained, KerasModel
):
    question_encoder: PooledEncoder

    if not TYPE_CHECKING:  # see `Called`
        forward = KerasModel.forward

    def __init__(
        self,
        config: RagConfig | None = None,
        question_encoder: Any = None,
        generator: Any = None,
        retriever: Any = None,
        **kwargs: Any,
    ) -> None:
        warn_of_prefix(kwargs.pop("load_weight_prefix", None))
        super().__init__(config, question_encoder, generator, retriever, **kwargs)

    @property
    def generator(self) -> Generator:
        return self.__dict__["_generator"]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "generator":
            self.__dict__["_generator"] = as_generator(value)
        else:
            super().__setattr__(name, value)

    def _set_generator(self, module: Any) -> None:
        self.__dict__["_generator"] = as_generator(module)

    def train(self, mode: bool = True) -> RagModel:
        """Dropout acts in all networks, in calls that leave `training` out; returns this model."""
        for part in self._parts().values():
            if isinstance(part, PretrainedModel):
                part.train(mode)
        return super().train(mode)

    def call(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        past_key_values: Any = None,
        doc_scores: Any = None,
        context_input_ids: Any = None,
        context_attention_mask: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_retrieved: bool | None = None,
        n_docs: int | None = None,
        *,
        question_text: Sequence[str] | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> RetrievAugLMOutput[tf.Tensor] | tuple[Any, ...]:
        """See `rag_core.modeling.RagModelBase.forward`."""
        return self._outputs(
            {"training": training},
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_outputs=encoder_outputs,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            past_key_values=past_key_values,
            doc_scores=doc_scores,
            context_input_ids=context_input_ids,
            context_attention_mask=context_attention_mask,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_retrieved=output_retrieved,
            n_docs=n_docs,
            question_text=question_text,
            return_dict=return_dict,
        )

    def score_documents(
        self, question_hidden_states: tf.Tensor, retrieved: Any, training: bool | None = None
    ) -> tf.Tensor:
        return self._scores(question_hidden_states, retrieved, training=training)

    def document_vectors(
        self, tokenized: Any, like: tf.Tensor | None = None, **mode: Any
    ) -> tf.Tensor:
        """See `RagModelBase.document_vectors`; outside of graphs, documents of like length are
        computed together: padded to the longest of all, attention would be several times as large.
        """
        encode = super().document_vectors
        if not tf.executing_eagerly():
            return encode(tokenized, like, **mode)
        arrays = {
            name: to_numpy(tokenized[name]) for name in _TOKENIZED_DOCUMENTS if name in tokenized
        }
        mask = arrays["tokenized_doc_attention_mask"]
        parts = rows_of_like_length(mask)
        if len(parts) < 2:
            return encode(tokenized, like, **mode)
        vectors = []
        for rows in parts:
            length = int(used_length(mask[rows]))
            part = {name: array[rows, :length] for name, array in arrays.items()}
            vectors.append(encode(part, like, **mode))
        return tf.dynamic_stitch(parts, vectors)  # (R, D)

    def _mode(self, part: Any, training: bool | None) -> bool | None:
        """A call's `training` for one network: ours resolve None themselves."""
        if isinstance(part, PretrainedModel):
            return training
        return self.in_training(training)

    def _encode(self, mode: dict[str, Any], encoder: Any, *inputs: Any) -> Any:
        options: dict[str, Any] = {"training": self._mode(encoder, mode.get("training"))}
        return encode_questions(encoder, *inputs, **options)

    def _retrieve(
        self, retriever: Any, questions: tf.Tensor, vectors: tf.Tensor, options: dict[str, Any]
    ) -> Any:
        if tf.executing_eagerly():
            arrays = tf.cast(vectors, tf.float32).numpy()
            return retriever(questions, arrays, return_tensors="tf", **options)
        return search_in_graph(
            retriever, questions, vectors, options, self.context_encoder_training
        )

    def _run_generator(self, mode: dict[str, Any], **inputs: Any) -> Any:
        generator = self.generator
        past = inputs["past_key_values"]
        if past is not None and not isinstance(past, str):
            inputs["past_key_values"] = tf.nest.map_structure(to_device, past)
        training = self._mode(generator, mode.get("training"))
        return generator(**inputs, **accepted(generator, {"training": training}))
