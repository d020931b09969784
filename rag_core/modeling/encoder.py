"""Encoders of texts into vectors but for their arithmetic: what a call may say, tables, sizes.

Letters: B texts, S tokens, D vector size, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rag_core.config import BertConfig, DPRConfig, sentence_settings
from rag_core.generation import check_embeds, check_one_of
from rag_core.modeling.generator import check_positions
from rag_core.modeling.inputs import InputChecks
from rag_core.modeling.pretrained import PretrainedBase, check_table
from rag_core.outputs import EncoderOutput, PooledEncoderOutput, Tensor


@dataclass
class EncoderCall:
    """What a call of an encoder says, the arguments of `PooledEncoderBase.forward`; once it is
    checked, what its network reads.

    Attributes:
        training: in rag_tf, whether dropout acts.
    """

    input_ids: Any
    attention_mask: Any
    token_type_ids: Any
    inputs_embeds: Any
    output_attentions: Any
    output_hidden_states: Any
    return_dict: Any
    training: bool | None = None


class PooledEncoderBase(PretrainedBase[Tensor]):
    """What DPR's encoders and the sentence encoders share.

    Ids in, one vector a text out (element 0 of the output).

    Attributes:
        inputs: the backend's checks of arguments.
    """

    inputs: ClassVar[InputChecks]

    # what a backend writes

    def _ids(self, name: str, ids: Any, rows: int) -> Any:
        """Ids as a tensor, refused if a table of `rows` rows can't look them up."""
        return self.inputs.checked_ids(name, ids, rows)

    def _compute(self, call: EncoderCall) -> tuple[Tensor, EncoderOutput]:
        """The vectors (B, D), and what the layers returned."""
        raise NotImplementedError

    # parts

    @property
    def dimension(self) -> int:
        """D, the size of the vectors."""
        return self.config.projection_dim or self.config.hidden_size

    @property
    def _body(self) -> Any:
        """The module holding `embeddings` and `encoder`."""
        return self

    def get_input_embeddings(self) -> Any:
        """The token table."""
        return self._body.embeddings.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        """Put another token table in place, of the same size.

        See `PretrainedBase.set_input_embeddings`.
        """
        embeddings = self._body.embeddings
        embeddings.word_embeddings = check_table("value", value, embeddings.word_embeddings)
        self._weights_replaced()

    # a call

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> PooledEncoderOutput[Tensor] | tuple[Any, ...]:
        """One vector for each text.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S), 1 = a real token; None = every token that is not the pad token.
            token_type_ids: (B, S); None = zeros.
            inputs_embeds: (B, S, d) in place of `input_ids`.
            output_attentions: whether to return attentions; None = the config's.
            output_hidden_states: whether to return hidden states; None = the config's.
            return_dict: False for a plain tuple; None = the config's.

        Returns:
            `PooledEncoderOutput`; its element 0, `pooler_output`, is the vector (B, D).

        Raises:
            TypeError: ids that are no integers.
            ValueError: ids or embeddings that are missing, given twice, or do not fit.
        """
        return self._answer(
            EncoderCall(
                input_ids,
                attention_mask,
                token_type_ids,
                inputs_embeds,
                output_attentions,
                output_hidden_states,
                return_dict,
            )
        )

    if TYPE_CHECKING:

        def __call__(
            self,
            input_ids: Tensor | None = None,
            attention_mask: Tensor | None = None,
            token_type_ids: Tensor | None = None,
            inputs_embeds: Tensor | None = None,
            output_attentions: bool | None = None,
            output_hidden_states: bool | None = None,
            return_dict: Literal[True] | None = None,
        ) -> PooledEncoderOutput[Tensor]:
            """See `forward`. For a tuple, which `return_dict=False` gives, write `.to_tuple()`."""
            ...

    def _answer(self, call: EncoderCall) -> Any:
        self._check(call)
        vectors, states = self._compute(call)
        output = PooledEncoderOutput(
            pooler_output=vectors,
            hidden_states=states.hidden_states,
            attentions=states.attentions,
        )
        return output if call.return_dict else output.to_tuple()

    def _check(self, call: EncoderCall) -> None:
        """Refuse what the network can't read, and fill in what a call may leave out."""
        check_one_of("input_ids", call.input_ids, "inputs_embeds", call.inputs_embeds)
        _, call.output_attentions, call.output_hidden_states, call.return_dict = self.switches(
            False, call.output_attentions, call.output_hidden_states, call.return_dict
        )
        mask = call.attention_mask
        self.inputs.check_text(call.input_ids, call.inputs_embeds, mask, call.token_type_ids)
        embeddings = self._body.embeddings
        if call.inputs_embeds is None:
            rows = embeddings.word_embeddings.weight.shape[0]
            text = call.input_ids = self._ids("input_ids", call.input_ids, rows)
            if mask is None and self.config.pad_token_id is not None:
                call.attention_mask = text != self.config.pad_token_id
        else:
            text = call.inputs_embeds = self.inputs.tensor("inputs_embeds", call.inputs_embeds)
            check_embeds("inputs_embeds", text.shape, self.config.hidden_size)
        if call.token_type_ids is not None:
            kinds = embeddings.token_type_embeddings.weight.shape[0]
            call.token_type_ids = self._ids("token_type_ids", call.token_type_ids, kinds)
        limit = embeddings.position_embeddings.weight.shape[0]
        advice = f"; cut texts when they are tokenized: truncation=True, max_length={limit}"
        check_positions("BERT", limit, text.shape[1], advice)


class DPRBase(PooledEncoderBase[Tensor]):
    """One of DPR's two encoders: BERT and an optional projection of its first state.

    Args:
        config: a `DPRConfig`.

    Attributes:
        network: what makes the backend's network of a config.
    """

    config: DPRConfig
    config_class = DPRConfig
    network: ClassVar[Any]

    def __init__(self, config: DPRConfig) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.network(config))
        self.post_init()

    @property
    def _body(self) -> Any:
        return self.base_model.bert_model


class DPRQuestionBase(DPRBase[Tensor]):
    """DPR's question encoder.

    Args:
        config: a `DPRConfig`.
    """

    head = "question"
    base_model_prefix = "question_encoder"


class DPRContextBase(DPRBase[Tensor]):
    """DPR's passage encoder.

    Args:
        config: a `DPRConfig`.
    """

    head = "context"
    base_model_prefix = "ctx_encoder"


class BertBase(PooledEncoderBase[Tensor]):
    """A pooled BERT: sentence encoders, and any BERT as question or passage encoder.

    The vector is pool -> `encode_proj` (if `projection_dim` > 0) -> L2 normalisation (if
    `normalize`) -> times `scale`.

    Args:
        config: a `BertConfig`.
    """

    config: BertConfig
    config_class = BertConfig
    architecture = "BertModel"
    base_model_prefix = "bert"

    @classmethod
    def read_config(
        cls, name_or_path: str | Path, hub: dict[str, Any], overrides: dict[str, Any]
    ) -> BertConfig:
        """The config; of a sentence-transformers folder with all that changes its vectors."""
        settings = sentence_settings(name_or_path, **hub)
        if settings is not None:
            overrides = {**settings.config_fields(), **overrides}
        return super().read_config(name_or_path, hub, overrides)

    def _load(
        self,
        name_or_path: str | Path | None,
        hub: dict[str, Any],
        dtype: Any,
        device: Any,
        weights: Any,
        source: str,
    ) -> None:
        if name_or_path is not None and self.config.projection_dim:
            weights = _with_dense(name_or_path, hub, weights, source)
        super()._load(name_or_path, hub, dtype, device, weights, source)


def _with_dense(name_or_path: str | Path, hub: dict[str, Any], weights: Any, source: str) -> Any:
    """The weights with those of the Dense module that a folder of sentence-transformers has."""
    if "classifier.weight" in weights:  # a cross-encoder, whose projection that is
        return weights
    settings = sentence_settings(name_or_path, **hub)
    if settings is None or not settings.projection:
        return weights
    from rag_core.checkpoint import read_weights, with_projection

    place = f"{hub.get('subfolder') or ''}/{settings.projection}".strip("/")
    projection = read_weights(name_or_path, **{**hub, "subfolder": place})
    return with_projection(weights, projection, f"{source}/{settings.projection}")
