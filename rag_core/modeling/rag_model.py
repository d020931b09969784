"""RagModel of both frameworks, but for its tensors: question encoder, retriever and generator as
one (Lewis et al. 2020, arXiv 2005.11401).

Names, arguments and defaults are those of transformers 4.37.2's PyTorch class;
`docs/compatibility.md` lists where results differ.

Letters: B questions, N documents a question, Q question length, S context length, T target length,
V vocabulary, D vector size, L document length, d width. Row b * N + d of everything with B*N rows
belongs to document d of question b.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rag_core.arguments import check_parts, checked_n_docs, checked_switch
from rag_core.config import RagConfig
from rag_core.modeling.components import RagComponents, rag_config
from rag_core.modeling.inputs import ContextsBase
from rag_core.outputs import EncoderOutput, RetrievAugLMOutput, Tensor, as_encoder_output
from rag_core.retrieval import within_table_of

if TYPE_CHECKING:
    from rag_core.modeling.encoder import PooledEncoderBase
    from rag_core.modeling.generator import GeneratorBase
    from rag_core.retrieval import RagRetriever


class RagModelBase(RagComponents[Tensor]):
    """Question encoder, retriever and generator, without marginalisation.

    Args:
        config: a `RagConfig`; None = made from the two parts' configs and `kwargs`.
        question_encoder: a module returning a vector (B, D) as element 0; None = built from
            `config`.
        generator: a sequence-to-sequence module (see `foreign.py` of the backend); None = built
            from `config`.
        retriever: a `RagRetriever`, or any callable like it; None = contexts come with each call.
        **kwargs: fields of the config.

    Raises:
        ValueError: neither a config nor both modules are given.
    """

    head = "model"
    question_encoder: PooledEncoderBase[Tensor]

    def __init__(
        self,
        config: RagConfig | None = None,
        question_encoder: Any = None,
        generator: Any = None,
        retriever: Any = None,
        **kwargs: Any,
    ) -> None:
        check_parts(question_encoder, generator, retriever)
        config = rag_config(config, question_encoder, generator, kwargs)
        super().__init__(config)
        if question_encoder is None:
            question_encoder = self._build("question_encoder", config.question_encoder)
        if generator is None:
            generator = self._build("generator", config.generator)
        self.question_encoder = question_encoder
        self._set_generator(generator)
        self.retriever: RagRetriever | None = None
        self.set_retriever(retriever)
        self.ctx_encoder: Any = None
        self.context_encoder_training = False

    # what a backend adds; `mode` holds what its calls take besides: {} in rag_torch, `training` in
    # rag_tf

    @property
    def generator(self) -> GeneratorBase[Tensor]:
        """The generator; a module of another library comes wrapped in the backend's
        `foreign.ForeignGenerator`.
        """
        raise NotImplementedError

    def _set_generator(self, module: Any) -> None:
        """Put a generator in place."""
        raise NotImplementedError

    def _encode(self, mode: dict[str, Any], encoder: Any, *inputs: Any) -> Any:
        """Run a question or document encoder; see the backend's `foreign.encode_questions`."""
        raise NotImplementedError

    def _retrieve(
        self, retriever: Any, questions: Tensor, vectors: Tensor, options: dict[str, Any]
    ) -> Any:
        """What a retriever returns for question ids (B, Q) and their vectors (B, D)."""
        raise NotImplementedError

    def _run_generator(self, mode: dict[str, Any], **inputs: Any) -> Any:
        """The generator's output record."""
        raise NotImplementedError

    # the same in both

    @property
    def rag(self) -> RagModelBase[Tensor]:
        """This model."""
        return self

    def set_retriever(self, retriever: RagRetriever | Callable[..., Any] | None) -> None:
        """Attach a retriever, or detach it with None.

        Raises:
            TypeError: it is not callable.
        """
        check_parts(retriever=retriever)
        self.retriever = retriever  # type: ignore[assignment]  # called all the same

    def set_context_encoder_for_training(self, ctx_encoder: Any) -> None:
        """Score documents with a live document encoder instead of the index's vectors, in calls
        and generate alike.

        The retriever must return tokenized documents: `retriever.set_ctx_encoder_tokenizer(...)`.
        The encoder is saved and loaded with the model.

        Args:
            ctx_encoder: a module returning a vector for each document as element 0, e.g.
                `DPRContextEncoder`; None takes it out, and the index's vectors count again.
        """
        self.ctx_encoder = ctx_encoder
        self.context_encoder_training = ctx_encoder is not None

    def score_documents(self, question_hidden_states: Tensor, retrieved: Any) -> Tensor:
        """Inner products of question vectors and retrieved documents; the one place where documents
        are scored.

        Args:
            question_hidden_states: (B, D).
            retrieved: what the retriever returned: `retrieved_doc_embeds` (B, N, D), optionally
                `doc_mask` (B, N), and with a live document encoder `tokenized_doc_ids`,
                `tokenized_doc_attention_mask` and possibly `tokenized_doc_token_type_ids` (B*N, L).
            training: in rag_tf, whether dropout acts in the document encoder.

        Returns:
            (B, N) in float32 or wider, -inf where `doc_mask` is False.
        """
        return self._scores(question_hidden_states, retrieved)

    def document_vectors(self, tokenized: Any, like: Tensor | None = None, **mode: Any) -> Tensor:
        """The context encoder's vectors of documents.

        Args:
            tokenized: `tokenized_doc_ids`, `tokenized_doc_attention_mask` and possibly
                `tokenized_doc_token_type_ids` (R, L), as `RagRetriever.tokenized_docs` gives them.
            like: a tensor on the device to compute on; None = as they come.
            training: in rag_tf, whether dropout acts.

        Returns:
            (R, D).
        """
        ids = self._checks.to_device(tokenized["tokenized_doc_ids"], like)
        mask = self._checks.to_device(tokenized["tokenized_doc_attention_mask"], like)
        inputs = [ids, mask]
        if "tokenized_doc_token_type_ids" in tokenized:
            segments = tokenized["tokenized_doc_token_type_ids"]
            inputs += [False, False, self._checks.to_device(segments, like)]
        return self._encode(mode, self.ctx_encoder, *inputs)[0]

    def _scores(self, questions: Tensor, retrieved: Any, **mode: Any) -> Tensor:
        embeds = self._checks.to_device(retrieved["retrieved_doc_embeds"], questions)
        if self.context_encoder_training:
            if self.ctx_encoder is None or "tokenized_doc_ids" not in retrieved:
                raise ValueError(
                    "a context encoder is set, but the retriever returned no tokenized_doc_ids: "
                    "call retriever.set_ctx_encoder_tokenizer(tokenizer), or set "
                    "context_encoder_training = False to use the index's vectors"
                )
            vectors = self.document_vectors(retrieved, questions, **mode)  # (B*N, D)
            embeds = self._math.split_docs(vectors, embeds.shape[1])  # (B, N, D)
        doc_mask = retrieved.get("doc_mask")
        if doc_mask is not None:
            doc_mask = self._checks.to_device(doc_mask, questions)
        return self._math.doc_scores(questions, embeds, doc_mask)

    def _contexts(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        context_input_ids: Any = None,
        context_attention_mask: Any = None,
        doc_scores: Any = None,
        n_docs: int | None = None,
        question_text: Sequence[str] | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        document_mode: dict[str, Any] | None = None,
        **mode: Any,
    ) -> ContextsBase:
        """The contexts to generate from: the caller's, or those retrieved for the questions.

        `document_mode` is the context encoder's mode where it is not the question encoder's.

        Raises:
            ValueError: neither can be had, or shapes disagree.
        """
        n_docs = checked_n_docs(n_docs, self.config.n_docs)
        self._check_places(
            input_ids=input_ids,
            attention_mask=attention_mask,
            context_input_ids=context_input_ids,
            context_attention_mask=context_attention_mask,
            doc_scores=doc_scores,
        )
        vocabulary = self._checks.table_size(self.generator)
        given = self._checks.given_contexts(
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
        encoder = self.question_encoder
        questions = self._checks.checked_questions(
            input_ids, attention_mask, self._checks.table_size(encoder)
        )
        if attention_mask is not None:
            attention_mask = self._checks.tensor("attention_mask", attention_mask)
        outputs = self._encode(
            mode, encoder, questions, attention_mask, output_attentions, output_hidden_states
        )
        vectors = outputs[0]
        options = {"prefix": getattr(self.generator.config, "prefix", None), "n_docs": n_docs}
        if question_text is not None:
            options["question_text"] = question_text
        retriever = within_table_of(vocabulary, self.retriever)
        retrieved = self._retrieve(retriever, questions, vectors, options)
        if document_mode is None:
            document_mode = mode
        scores = self.score_documents(vectors, retrieved, **document_mode)
        ids = self._checks.to_device(retrieved["context_input_ids"], vectors)
        mask = self._checks.to_device(retrieved["context_attention_mask"], vectors)
        self._checks.checked_ids(
            "context_input_ids of the retriever's generator_tokenizer", ids, vocabulary
        )
        return self._checks.contexts(ids, mask, scores, n_docs, vectors, retrieved, outputs)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        doc_scores: Tensor | None = None,
        context_input_ids: Tensor | None = None,
        context_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_retrieved: bool | None = None,
        n_docs: int | None = None,
        *,
        question_text: Sequence[str] | None = None,
        return_dict: bool | None = None,
    ) -> RetrievAugLMOutput[Tensor] | tuple[Any, ...]:
        """Encode the questions, retrieve, and run the generator over each document.

        Args:
            input_ids: question ids (B, Q) of the question encoder's tokenizer. In rag_tf also a
                dictionary of this and others of these arguments, or a list or tuple of the first of
                them; also under the name of `inputs`.
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
            training: in rag_tf, whether dropout acts; None = what `train()` and `eval()` set, in
                each network.

        Returns:
            `RetrievAugLMOutput` with `logits` (B*N, T, V).

        Raises:
            ValueError: no contexts and no retriever, only some context arguments, or shapes that
                disagree.
        """
        return self._outputs(
            {},
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

    if TYPE_CHECKING:

        def __call__(
            self,
            input_ids: Tensor | None = None,
            attention_mask: Tensor | None = None,
            encoder_outputs: Any = None,
            decoder_input_ids: Tensor | None = None,
            decoder_attention_mask: Tensor | None = None,
            past_key_values: Any = None,
            doc_scores: Tensor | None = None,
            context_input_ids: Tensor | None = None,
            context_attention_mask: Tensor | None = None,
            use_cache: bool | None = None,
            output_attentions: bool | None = None,
            output_hidden_states: bool | None = None,
            output_retrieved: bool | None = None,
            n_docs: int | None = None,
            *,
            question_text: Sequence[str] | None = None,
            return_dict: Literal[True] | None = None,
        ) -> RetrievAugLMOutput[Tensor]:
            """See `forward`. For a tuple, which `return_dict=False` gives, write `.to_tuple()`."""
            ...

    def _outputs(
        self,
        mode: dict[str, Any],
        *,
        input_ids: Any,
        attention_mask: Any,
        encoder_outputs: Any,
        decoder_input_ids: Any,
        decoder_attention_mask: Any,
        past_key_values: Any,
        doc_scores: Any,
        context_input_ids: Any,
        context_attention_mask: Any,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        output_retrieved: bool | None,
        n_docs: int | None,
        question_text: Sequence[str] | None,
        return_dict: bool | None,
    ) -> Any:
        """`forward` in a mode of the backend's calls."""
        use_cache, attentions, hidden, return_dict = self.switches(
            use_cache, output_attentions, output_hidden_states, return_dict
        )
        output_retrieved = checked_switch(
            "output_retrieved", output_retrieved, self.config.output_retrieved
        )
        with self._checks.looking_once():
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
                    **mode,
                )
            else:
                encoder_outputs = as_encoder_output(encoder_outputs)
                contexts = self._contexts_of_states(
                    encoder_outputs, context_input_ids, context_attention_mask, doc_scores, n_docs
                )
            outputs = self._run_generator(
                mode,
                input_ids=contexts.context_input_ids,
                attention_mask=contexts.context_attention_mask,
                encoder_outputs=encoder_outputs,
                decoder_input_ids=self._for_each_document(
                    "decoder_input_ids", decoder_input_ids, contexts
                ),
                decoder_attention_mask=self._for_each_document(
                    "decoder_attention_mask", decoder_attention_mask, contexts
                ),
                past_key_values=past_key_values,
                use_cache=use_cache,
                output_attentions=attentions,
                output_hidden_states=hidden,
                return_dict=True,
            )
        output = self._record(outputs, contexts, output_retrieved)
        return output if return_dict else output.to_tuple()

    def _record(
        self, outputs: Any, contexts: ContextsBase, output_retrieved: bool
    ) -> RetrievAugLMOutput:
        """What the generator returned, beside what was retrieved for it."""
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
            to_tensor = self._checks.to_device
            output.retrieved_doc_embeds = to_tensor(contexts.retrieved["retrieved_doc_embeds"])
            output.retrieved_doc_ids = to_tensor(contexts.retrieved["doc_ids"])
            output.context_input_ids = contexts.context_input_ids
            output.context_attention_mask = contexts.context_attention_mask
        return output

    def _contexts_of_states(
        self,
        encoder_outputs: EncoderOutput,
        context_input_ids: Any,
        context_attention_mask: Any,
        doc_scores: Any,
        n_docs: int | None,
    ) -> ContextsBase:
        """The contexts whose encoder states are given, checked."""
        n_docs = checked_n_docs(n_docs, self.config.n_docs)
        scores = self._checks.given_scores(doc_scores, n_docs)
        width = getattr(self.generator.config, "d_model", None)
        states = encoder_outputs.last_hidden_state
        self._checks.check_states(states, context_attention_mask, scores, n_docs, width)
        ids, mask = (
            None if value is None else self._checks.to_device(value)
            for value in (context_input_ids, context_attention_mask)
        )
        return self._checks.contexts(ids, mask, scores, n_docs)

    def _for_each_document(self, name: str, target: Any, contexts: ContextsBase) -> Tensor | None:
        """(B, T) -> (B*N, T): each question's target beside each of its documents."""
        if target is None:
            return None
        vocabulary = self._checks.table_size(self.generator)
        target = self._checks.checked_target(name, target, contexts.doc_scores, vocabulary)
        repeated = self._engine.repeat_rows(target, contexts.n_docs)
        self._checks.note_repeated(repeated, target, vocabulary)
        return repeated
