"""RagModel: question encoder, retriever and generator as one (Lewis et al. 2020, arXiv 2005.11401).

Names, arguments and defaults are those of transformers 4.37.2's PyTorch class.
`docs/compatibility.md` lists where results differ. The two networks run as graphs, with the search
between them in Python; within a graph of the caller's the search is a `tf.numpy_function`.
Letters: B questions, N documents a question, Q question length, S context length, T target length,
V vocabulary, D vector size. Row b * N + d of everything with B*N rows belongs to document d of
question b.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from rag_core import arguments
from rag_core.arguments import check_parts, checked_n_docs, checked_switch
from rag_core.config import RagConfig
from rag_core.modeling import accepted
from rag_core.outputs import RetrievAugLMOutput
from rag_core.retrieval import within_table_of
from rag_tf import marginalize as marginal
from rag_tf.components import RagPretrained, build_generator, build_question_encoder, rag_config
from rag_tf.contexts import (
    Contexts,
    checked_ids,
    checked_mask,
    checked_questions,
    checked_tensor,
    differs,
    facts,
    given_contexts,
    given_scores,
    search_in_graph,
    shape_of,
    table_size,
    to_device,
)
from rag_tf.foreign import as_generator, encode_questions
from rag_tf.keras_model import KerasModel
from rag_tf.layers import as_encoder_output
from rag_tf.pretrained import PretrainedModel, warn_of_prefix


class RagModel(RagPretrained, KerasModel):
    """Question encoder, retriever and generator, without marginalisation.

    Args:
        config: a `RagConfig`; None = made from the two parts' configs and `kwargs`.
        question_encoder: a module returning a vector (B, D) as element 0; None = built from
            `config`.
        generator: a sequence-to-sequence module (see `rag_tf.foreign`); None = built from `config`.
        retriever: a `RagRetriever`, or any callable like it; None = contexts come with each call.
        **kwargs: fields of the config.

    Raises:
        ValueError: neither a config nor both modules are given.
    """

    config_class = RagConfig
    head = "model"

    def __init__(
        self,
        config: RagConfig | None = None,
        question_encoder: Any = None,
        generator: Any = None,
        retriever: Any = None,
        **kwargs: Any,
    ) -> None:
        warn_of_prefix(kwargs.pop("load_weight_prefix", None))
        check_parts(question_encoder, generator, retriever)
        config = rag_config(config, question_encoder, generator, kwargs)
        super().__init__(config)
        self.question_encoder = question_encoder or build_question_encoder(config.question_encoder)
        self.__dict__["_generator"] = as_generator(generator or build_generator(config.generator))
        self.retriever: Any = None
        self.set_retriever(retriever)
        self.ctx_encoder: Any = None
        self.context_encoder_training = False

    @property
    def generator(self) -> Any:
        """The generator; a module of another library comes wrapped in
        `rag_tf.foreign.ForeignGenerator`.
        """
        return self.__dict__["_generator"]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "generator":
            self.__dict__["_generator"] = as_generator(value)
        else:
            super().__setattr__(name, value)

    @property
    def rag(self) -> RagModel:
        """This model."""
        return self

    def train(self, mode: bool = True) -> RagModel:
        """Dropout acts in all networks, in calls that leave `training` out; returns this model."""
        for part in self._parts().values():
            if isinstance(part, PretrainedModel):
                part.train(mode)
        return super().train(mode)

    def set_retriever(self, retriever: Any) -> None:
        """Attach a retriever, or detach it with None.

        Raises:
            TypeError: it is not callable.
        """
        check_parts(retriever=retriever)
        self.retriever = retriever

    def set_context_encoder_for_training(self, ctx_encoder: Any) -> None:
        """Score documents with a live document encoder instead of the index's vectors, in call and
        generate alike.

        The retriever must return tokenized documents: `retriever.set_ctx_encoder_tokenizer(...)`.
        The encoder is saved and loaded with the model.

        Args:
            ctx_encoder: a module returning a vector for each document as element 0, e.g.
                `DPRContextEncoder`.
        """
        self.ctx_encoder = ctx_encoder
        self.context_encoder_training = True

    def _mode(self, part: Any, training: bool | None) -> bool | None:
        """A call's `training` for one network: ours resolve None themselves."""
        return training if isinstance(part, PretrainedModel) else self.in_training(training)

    def score_documents(
        self, question_hidden_states: tf.Tensor, retrieved: Any, training: bool | None = None
    ) -> Any:
        """Inner products of question vectors and retrieved documents; the one place where documents
        are scored.

        Args:
            question_hidden_states: (B, D).
            retrieved: what the retriever returned: `retrieved_doc_embeds` (B, N, D), optionally
                `doc_mask` (B, N), and with a live document encoder `tokenized_doc_ids` and
                `tokenized_doc_attention_mask` (B*N, L).
            training: whether dropout acts in the document encoder.

        Returns:
            (B, N) in float32 or wider, -inf where `doc_mask` is False.
        """
        embeds = to_device(retrieved["retrieved_doc_embeds"])
        if self.context_encoder_training:
            if self.ctx_encoder is None or "tokenized_doc_ids" not in retrieved:
                raise ValueError(
                    "a context encoder is set, but the retriever returned no tokenized_doc_ids: "
                    "call retriever.set_ctx_encoder_tokenizer(tokenizer), or set "
                    "context_encoder_training = False to use the index's vectors"
                )
            ids, mask = (
                to_device(retrieved[key])
                for key in ("tokenized_doc_ids", "tokenized_doc_attention_mask")
            )
            mode = self._mode(self.ctx_encoder, training)
            vectors = encode_questions(self.ctx_encoder, ids, mask, training=mode)[0]  # (B*N, D)
            embeds = tf.reshape(vectors, tf.concat([tf.shape(embeds)[:2], [-1]], 0))  # (B, N, D)
        mask = retrieved.get("doc_mask")
        return marginal.doc_scores(
            question_hidden_states, embeds, None if mask is None else to_device(mask)
        )

    def _contexts(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        context_input_ids: Any = None,
        context_attention_mask: Any = None,
        doc_scores: Any = None,
        n_docs: int | None = None,
        question_text: list[str] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        training: bool | None = None,
    ) -> Contexts:
        """The contexts to generate from: the caller's, or those retrieved for the questions.

        Raises:
            ValueError: neither can be had, or shapes disagree.
        """
        n_docs = checked_n_docs(n_docs, self.config.n_docs)
        vocabulary = table_size(self.generator)
        given = given_contexts(
            context_input_ids,
            context_attention_mask,
            doc_scores,
            n_docs,
            self.retriever is not None,
            vocabulary,
        )
        if given is not None:
            if question_text is not None:
                raise ValueError(
                    "question_text is for contexts that are retrieved; those given hold their "
                    "questions already. Leave it out, or leave out context_input_ids, "
                    "context_attention_mask and doc_scores"
                )
            return given
        questions = checked_questions(input_ids, attention_mask, table_size(self.question_encoder))
        attention_mask = None if attention_mask is None else to_device(attention_mask)
        mode = self._mode(self.question_encoder, training)
        outputs = encode_questions(
            self.question_encoder,
            questions,
            attention_mask,
            output_attentions,
            output_hidden_states,
            mode,
        )
        vectors = outputs[0]
        extra = {} if question_text is None else {"question_text": question_text}
        options = {
            "prefix": getattr(self.generator.config, "prefix", None),
            "n_docs": n_docs,
            **extra,
        }
        retriever = within_table_of(vocabulary, self.retriever)
        if tf.executing_eagerly():
            asked = tf.cast(vectors, tf.float32).numpy()
            retrieved = retriever(questions, asked, return_tensors="tf", **options)
        else:
            tokenized = self.context_encoder_training
            retrieved = search_in_graph(retriever, questions, vectors, options, tokenized)
        scores = self.score_documents(vectors, retrieved, training)
        ids, mask = (
            to_device(retrieved[key]) for key in ("context_input_ids", "context_attention_mask")
        )
        checked_ids("context_input_ids of the retriever's generator_tokenizer", ids, vocabulary)
        return Contexts(ids, mask, scores, n_docs, vectors, retrieved, outputs)

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
        question_text: list[str] | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> Any:
        """Encode the questions, retrieve, and run the generator over each document.

        Args:
            input_ids: question ids (B, Q) of the question encoder's tokenizer; or a dictionary of
                this and others of these arguments, or a list or tuple of the first of them. Also
                under the name of `inputs`.
            attention_mask: (B, Q), 1 = a real token.
            encoder_outputs: the generator's encoder output of these contexts, (B*N, S, d) as
                element 0, to spare it; then `doc_scores` must be given too.
            decoder_input_ids: target ids (B, T); None leaves it to the generator (BART shifts its
                context).
            decoder_attention_mask: (B, T), 1 = a real token.
            past_key_values: an earlier call's, to continue from it.
            doc_scores: (B, N); with the two context arguments instead of retrieval.
            context_input_ids: (B*N, S) of the generator's tokenizer.
            context_attention_mask: (B*N, S), 1 = a real token.
            use_cache: return `past_key_values`; None = the config's, as for all switches.
            output_attentions: return attentions of all three networks.
            output_hidden_states: return hidden states of all three networks.
            output_retrieved: return contexts and documents.
            n_docs: N; None = the config's.
            question_text: the questions as typed, for the prompt in place of the decoded ids.
            return_dict: False for a plain tuple.
            training: whether dropout acts; None = what `train()` and `eval()` set, in each network.

        Returns:
            `RetrievAugLMOutput` with `logits` (B*N, T, V).

        Raises:
            ValueError: no contexts and no retriever, only some context arguments, or shapes that
                disagree.
        """
        use_cache, attentions, hidden, return_dict = self.switches(
            use_cache, output_attentions, output_hidden_states, return_dict
        )
        output_retrieved = checked_switch(
            "output_retrieved", output_retrieved, self.config.output_retrieved
        )
        if encoder_outputs is None:
            contexts = self._contexts(
                input_ids,
                attention_mask,
                context_input_ids,
                context_attention_mask,
                doc_scores,
                n_docs,
                question_text,
                attentions,
                hidden,
                training,
            )
        else:
            n_docs = checked_n_docs(n_docs, self.config.n_docs)
            scores = given_scores(doc_scores, n_docs)
            given = (context_input_ids, context_attention_mask)
            ids, mask = (None if each is None else to_device(each) for each in given)
            contexts = Contexts(ids, mask, scores, n_docs)
            encoder_outputs = as_encoder_output(encoder_outputs)
            width = getattr(self.generator.config, "d_model", None)
            _check_states(encoder_outputs.last_hidden_state, contexts, width)
        vocabulary = table_size(self.generator)
        if past_key_values is not None and not isinstance(past_key_values, str):
            past_key_values = tf.nest.map_structure(to_device, past_key_values)
        outputs = self.generator(
            input_ids=contexts.context_input_ids,
            attention_mask=contexts.context_attention_mask,
            encoder_outputs=encoder_outputs,
            decoder_input_ids=_repeat("decoder_input_ids", decoder_input_ids, contexts, vocabulary),
            decoder_attention_mask=_repeat(
                "decoder_attention_mask", decoder_attention_mask, contexts
            ),
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=attentions,
            output_hidden_states=hidden,
            return_dict=True,
            **accepted(self.generator, {"training": self._mode(self.generator, training)}),
        )
        output = RetrievAugLMOutput(
            logits=outputs.logits,
            doc_scores=contexts.doc_scores,
            past_key_values=outputs.past_key_values,
            question_encoder_last_hidden_state=contexts.question_hidden_states,
            question_enc_hidden_states=getattr(contexts.question_outputs, "hidden_states", None),
            question_enc_attentions=getattr(contexts.question_outputs, "attentions", None),
            generator_enc_last_hidden_state=outputs.encoder_last_hidden_state,
            generator_enc_hidden_states=outputs.encoder_hidden_states,
            generator_enc_attentions=outputs.encoder_attentions,
            generator_dec_hidden_states=outputs.decoder_hidden_states,
            generator_dec_attentions=outputs.decoder_attentions,
            generator_cross_attentions=outputs.cross_attentions,
        )
        if output_retrieved and contexts.retrieved is not None:
            output.retrieved_doc_embeds = to_device(contexts.retrieved["retrieved_doc_embeds"])
            output.retrieved_doc_ids = to_device(contexts.retrieved["doc_ids"])
            output.context_input_ids = contexts.context_input_ids
            output.context_attention_mask = contexts.context_attention_mask
        return output if return_dict else output.to_tuple()


def _check_states(states: Any, contexts: Contexts, width: int | None) -> None:
    """Refuses encoder states that are not (B*N, S, d), and a mask that is not theirs."""
    states = checked_tensor("encoder_outputs", states)
    arguments.check_states(
        facts("encoder_outputs", states),
        facts("doc_scores", contexts.doc_scores),
        contexts.n_docs,
        width,
    )
    of = "encoder_outputs, (B * n_docs, S)"
    checked_mask(
        "context_attention_mask", contexts.context_attention_mask, shape_of(states[..., 0]), of
    )


def _repeat(
    name: str, value: Any, contexts: Contexts, vocabulary: int | None = None
) -> tf.Tensor | None:
    """(B, T) -> (B*N, T): each question's target beside each of its documents."""
    if value is None:
        return None
    if name == "decoder_input_ids":
        value = checked_ids(f"{name} (or labels)", value, vocabulary)
    value = checked_tensor(name, value)
    questions = contexts.doc_scores.shape[0]
    if differs(value, (questions, None)) or value.shape[1] == 0:
        raise ValueError(
            f"{name} must be (B, T) with B = {questions} (doc_scores are "
            f"{shape_of(contexts.doc_scores)}) and one token or more, got shape "
            f"{shape_of(value)}; labels take their place where they are not given"
        )
    return tf.repeat(value, contexts.n_docs, 0)
