"""What models return: records read by attribute, key or index, which are dictionaries; answers with
their passages.

Letters: B questions, N documents a question, S context length, T target length, V vocabulary, D
vector size. The tensors in these fields belong to whichever framework the model runs in.
"""

from __future__ import annotations

import json
import textwrap
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from rag_core.display import Explanation

    # the framework's own; a record that names none holds those of any
    Tensor = TypeVar("Tensor", default=Any)
else:
    from typing import TypeVar

    Tensor = TypeVar("Tensor")

# Of fields that the models always fill.
_ABSENT: Any = None


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """A record: `out.logits`, `out["logits"]`, `out[0]`, `*out.to_tuple()`.

    It is a dictionary of those fields that are not None, in the order of the fields, so that what
    copies, gathers or moves dictionaries of tensors (nn.DataParallel, accelerate, Lightning) does
    so with it. Like a dictionary it can be made from a mapping or an iterator of pairs.
    """

    def __post_init__(self) -> None:
        first = next(iter(self.__dataclass_fields__), "")
        if not first or len(self) != 1:
            return
        pairs = _pairs(getattr(self, first))
        if pairs is not None:
            setattr(self, first, None)
            for name, value in pairs:
                self[name] = value

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in self.__dataclass_fields__:
            return
        late = name not in self
        if value is None:
            if not late:
                OrderedDict.__delitem__(self, name)  # pop of Python 3.10 comes back here
            return
        OrderedDict.__setitem__(self, name, value)
        if late:
            following = list(self.__dataclass_fields__)
            for other in following[following.index(name) + 1 :]:
                if other in self:
                    self.move_to_end(other)

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return OrderedDict.__getitem__(self, key)
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self.__dataclass_fields__:
            raise KeyError(f"{type(self).__name__} has no field {key!r}")
        setattr(self, key, value)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        setattr(self, key, None)

    def pop(self, key: str, *default: Any) -> Any:
        """Take a field out; afterwards it is None."""
        value = OrderedDict.get(self, key, *default) if default else self[key]
        if key in self:
            del self[key]
        return value

    def popitem(self, last: bool = True) -> tuple[str, Any]:
        """Take the last field that is present out, or the first."""
        if not self:
            raise KeyError(f"{type(self).__name__} is empty")
        order = reversed(self) if last else iter(self)
        key = next(order)
        return key, self.pop(key)

    def clear(self) -> None:
        """Set all fields to None."""
        for name in list(self):
            del self[name]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are present, as `return_dict=False` returns them."""
        return tuple(self.values())

    def __tf_flatten__(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """For TensorFlow: a record goes into a `tf.function` and comes out of it, absent fields
        too.
        """
        return (), tuple(getattr(self, f.name) for f in fields(self))

    @classmethod
    def __tf_unflatten__(cls, metadata: tuple[Any, ...], components: tuple[Any, ...]) -> Any:
        """The record that `__tf_flatten__` took apart."""
        return cls(*components)


def _pairs(value: Any) -> list[tuple[str, Any]] | None:
    """The entries of what a dictionary can be made from.

    None for anything else, a field's value.
    """
    if isinstance(value, Mapping):
        return list(value.items())
    if not isinstance(value, Iterator | list):
        return None
    entries = list(value)
    # A field may hold a list of tensors, but none that starts with a name.
    named = all(
        isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
        for entry in entries
    )
    return entries if entries and named else None


@dataclass
class RetrievAugLMOutput(ModelOutput, Generic[Tensor]):
    """Output of RagModel.

    Attributes:
        logits: (B*N, T, V), not marginalised.
        doc_scores: (B, N), inner products of question and document vectors.
        past_key_values: decoder cache, a tuple a layer.
        retrieved_doc_embeds: (B, N, D), with `output_retrieved`.
        retrieved_doc_ids: (B, N), row numbers in the index, with `output_retrieved`.
        context_input_ids: (B*N, S), with `output_retrieved`.
        context_attention_mask: (B*N, S), with `output_retrieved`.
        question_encoder_last_hidden_state: (B, D), the question vector.
        question_enc_hidden_states, question_enc_attentions: a tuple, a tensor a layer.
        generator_enc_last_hidden_state: (B*N, S, d).
        generator_enc_hidden_states, generator_enc_attentions: as above, of the generator's encoder.
        generator_dec_hidden_states, generator_dec_attentions, generator_cross_attentions: of its
            decoder.
    """

    logits: Tensor = _ABSENT
    doc_scores: Tensor = _ABSENT
    past_key_values: tuple[tuple[Tensor, ...], ...] | None = None
    retrieved_doc_embeds: Tensor | None = None
    retrieved_doc_ids: Tensor | None = None
    context_input_ids: Tensor | None = None
    context_attention_mask: Tensor | None = None
    question_encoder_last_hidden_state: Tensor | None = None
    question_enc_hidden_states: tuple[Tensor, ...] | None = None
    question_enc_attentions: tuple[Tensor, ...] | None = None
    generator_enc_last_hidden_state: Tensor | None = None
    generator_enc_hidden_states: tuple[Tensor, ...] | None = None
    generator_enc_attentions: tuple[Tensor, ...] | None = None
    generator_dec_hidden_states: tuple[Tensor, ...] | None = None
    generator_dec_attentions: tuple[Tensor, ...] | None = None
    generator_cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class _Loss(ModelOutput, Generic[Tensor]):
    loss: Tensor | None = None


@dataclass
class RetrievAugLMMarginOutput(RetrievAugLMOutput[Tensor], _Loss[Tensor]):
    """Output of the two generation heads: `loss` first, then the fields of `RetrievAugLMOutput`.

    `loss` is (B,), or a scalar with `reduce_loss`. RAG-Token's `logits` are (B, T, V) with
    `do_marginalize`.
    """


@dataclass
class EncoderOutput(ModelOutput, Generic[Tensor]):
    """Output of an encoder: (rows, S, d), and a tuple of tensors, one a layer."""

    last_hidden_state: Tensor = _ABSENT
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def as_encoder_output(value: Any) -> EncoderOutput:
    """An earlier call's encoder output in any shape users keep it: our record, another library's, a
    tuple, a tensor or array.

    Raises:
        TypeError: something else.
    """
    if isinstance(value, EncoderOutput):
        return value
    if isinstance(value, tuple | list):
        hidden, attentions = (*value[1:3], None, None)[:2]
        return EncoderOutput(
            last_hidden_state=value[0], hidden_states=hidden, attentions=attentions
        )
    if hasattr(value, "last_hidden_state"):
        return EncoderOutput(
            last_hidden_state=value.last_hidden_state,
            hidden_states=getattr(value, "hidden_states", None),
            attentions=getattr(value, "attentions", None),
        )
    if not hasattr(value, "shape"):
        raise TypeError(
            "encoder_outputs must be an encoder's output, a tuple or a tensor, got "
            f"{type(value).__name__}"
        )
    return EncoderOutput(last_hidden_state=value)


@dataclass
class DecoderOutput(ModelOutput, Generic[Tensor]):
    """Output of a decoder called by itself: (rows, T, d), its cache, and what it saw."""

    last_hidden_state: Tensor = _ABSENT
    past_key_values: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class PooledEncoderOutput(ModelOutput, Generic[Tensor]):
    """Output of a question or document encoder.

    Element 0 is the (B, D) vector (compatibility Q9).
    """

    pooler_output: Tensor = _ABSENT
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class Seq2SeqLMOutput(ModelOutput, Generic[Tensor]):
    """Output of a generator.

    With labels the loss, logits (rows, T, V), its cache, and what its two halves saw.
    """

    loss: Tensor | None = None
    logits: Tensor = _ABSENT
    past_key_values: tuple[tuple[Tensor, ...], ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


@dataclass
class GenerateOutput(ModelOutput, Generic[Tensor]):
    """Output of `generate(..., return_dict_in_generate=True)`.

    Attributes:
        sequences: (B * num_return_sequences, T) token ids, start token included, right-padded.
        sequences_scores: (B * num_return_sequences,), with beams or RAG-Sequence.
        scores: a tuple, one (B * K, V) a step, with `output_scores`.
        beam_indices: (B * num_return_sequences, T), which beam each token came from.
        encoder_attentions, encoder_hidden_states: a tuple, one a layer (one more of hidden states):
            (B*N, H, S, S) and (B*N, S, d), with `output_attentions` and `output_hidden_states`.
        decoder_attentions, cross_attentions: a tuple, one a step, of tuples, one a layer: (B*N*K,
            H, T, t) and (B*N*K, H, T, S). Row (b * N + n) * K + k belongs to document n and beam k
            (or sample k) of question b; beams stand as they did in that step, and rows of searches
            that had ended mean nothing. T is 1 with a cache, except for the start tokens in the
            first step; t counts all tokens so far, S is the longest context.
        decoder_hidden_states: as above, one more than layers: (B*N*K, T, d).
    """

    sequences: Tensor = _ABSENT
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    cross_attentions: tuple[tuple[Tensor, ...], ...] | None = None
    decoder_hidden_states: tuple[tuple[Tensor, ...], ...] | None = None


@dataclass(repr=False)
class Passage:
    """One passage behind an answer, with its prior p(z|x) and posterior p(z|x, y) (paper,
    section 2.1).

    Attributes:
        id: its row number in the index.
        title, text: as the generator read them.
        score: inner product of its vector and the question's.
        prior, posterior: probabilities.
        source: the file it comes from, below the folder that was indexed, or an address; None where
            that is unknown.
        metadata: where in the source it stands: "line" and "end_line", "page" and "end_page", "row"
            (of a table), "slide", "cell" (all from 1) and "headings" (outermost first), as far as
            there are such; and the further columns of a table.
    """

    id: int
    title: str
    text: str
    score: float
    prior: float
    posterior: float
    source: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Where the passage comes from, for people: "handbook/safety.md:12-20 · Fire › Wardens"."""
        return origin_of(self.source, self.metadata)

    def __repr__(self) -> str:
        return (
            f"Passage(id={self.id}, title={self.title!r}, prior={self.prior:.3f}, "
            f"posterior={self.posterior:.3f}, text={_beginning(self.text)!r})"
        )


@dataclass(repr=False)
class Hit:
    """One passage that a search found; all but the score as of a `Passage`.

    Attributes:
        rank: its place among those found, from 1.
        score: inner product of its vector and the question's.
    """

    rank: int
    id: int
    score: float
    title: str
    text: str
    source: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Where the passage comes from, for people: "handbook/safety.md:12-20 · Fire › Wardens"."""
        return origin_of(self.source, self.metadata)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, for JSON."""
        return {**asdict(self), "origin": self.origin}

    def __repr__(self) -> str:
        return (
            f"Hit(rank={self.rank}, id={self.id}, score={self.score:.3f}, title={self.title!r}, "
            f"text={_beginning(self.text)!r})"
        )


def _beginning(text: str) -> str:
    return shortened(text, 80)


def origin_of(source: str | None, metadata: Mapping[str, Any], encoding_ascii: bool = False) -> str:
    """Where a passage comes from, for people.

    Args:
        source: as of a `Passage`.
        metadata: as of a `Passage`.
        encoding_ascii: whether the signs between headings are of ASCII.

    Returns:
        For example "handbook/safety.md:12-20 · Fire › Wardens", "report.pdf p. 3-4", "people.csv
        row 7", or "source unknown".
    """
    if not source:
        return "source unknown"
    origin = source + _position(metadata, is_address="://" in source)
    dot, arrow = " · ", " › "
    if encoding_ascii:
        dot, arrow = " - ", " > "
    headings = metadata.get("headings")
    if isinstance(headings, list) and headings:
        origin += dot + arrow.join(map(str, headings))
    return origin


def _position(metadata: Mapping[str, Any], is_address: bool) -> str:
    """Where in its source a passage stands, by the first of its positions that people look for."""
    line = ":"
    if is_address:  # where a colon means something else
        line = " line "
    signs = {"row": " row ", "page": " p. ", "slide": " slide ", "cell": " cell ", "line": line}
    for name, sign in signs.items():
        first = metadata.get(name)
        if type(first) is not int:
            continue
        last = metadata.get(f"end_{name}", first)
        if type(last) is int and last > first:
            return f"{sign}{first}-{last}"
        return f"{sign}{first}"
    return ""


CITATION_THRESHOLD = 0.25


@dataclass(frozen=True)
class Citation:
    """A part of an answer and a passage that carries it.

    Attributes:
        passage: the passage's place among the answer's, from 0.
        id: its row number in the index.
        probability: that the part was written from this passage, see `Answer.citations`.
        start, end: the part is `answer.text[start:end]`; characters are Unicode code points.
        text: that part.
    """

    passage: int
    id: int
    probability: float
    start: int
    end: int
    text: str


@dataclass(repr=False)
class Answer:
    """An answer with its provenance.

    Attributes:
        question: as asked.
        text: the generated answer.
        log_probability: log p(y|x), marginalised over the passages.
        passages: in the order of retrieval.
        tokens: the answer's T tokens as text.
        token_posteriors: RAG-Token only: T rows of N probabilities p(z|x, y_<=i).
        token_spans: T pairs (start, end): the characters of `text` that a token wrote, all those
            of which it wrote a byte; (n, n) for one that wrote none, such as the end token.
        token_log_probs: T numbers log p(y_i|x, y_<i), marginalised over the passages; their sum is
            `log_probability`.
        confidence: the probability that the answer is right, where the model's config has an
            `answer_calibration`; else None.
    """

    question: str
    text: str
    log_probability: float
    passages: list[Passage] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    token_posteriors: list[list[float]] | None = None
    token_spans: list[tuple[int, int]] = field(default_factory=list)
    token_log_probs: list[float] = field(default_factory=list)
    confidence: float | None = None

    def citations(self, threshold: float = CITATION_THRESHOLD) -> list[Citation]:
        """Which passage carries which part of the text, computed from the model's probabilities.

        RAG-Token draws a passage for every token (paper, equation 2), so p(z|x, y_<=i) of the
        tokens of a part is the probability that passage z wrote each of them, and their mean the
        share of the part that it wrote. The least part is a word (of Chinese and Japanese a
        character); neighbouring words that a passage carries are one part. RAG-Sequence draws one
        passage for the whole answer (equation 1): the part is the whole text, its probability
        p(z|x, y). So it is, too, of an answer that has no `token_spans`.

        Args:
            threshold: the least probability of a word to be cited, above 0. By default a quarter:
                a passage among others that say the same is cited, too, one of chance is not.

        Returns:
            By their start, the likeliest first; parts of several passages may overlap.
        """
        from rag_core.modeling import citations_of

        return citations_of(self, threshold)

    def to_dict(self, threshold: float = CITATION_THRESHOLD) -> dict[str, Any]:
        """Plain dicts and lists, for JSON; each passage with its `origin`, and the citations.

        Args:
            threshold: as of `citations`.
        """
        answer = asdict(self)
        for values, passage in zip(answer["passages"], self.passages, strict=True):
            values["origin"] = passage.origin
        answer["citations"] = [asdict(citation) for citation in self.citations(threshold)]
        return answer

    def explain(self, threshold: float = CITATION_THRESHOLD) -> Explanation:
        """The answer to look at: which passage each token comes from, as a page, a picture or JSON.

        Args:
            threshold: as of `citations`.
        """
        from rag_core.display import Explanation

        return Explanation([self.to_dict(threshold)])

    def _repr_html_(self) -> str:
        return self.explain()._repr_html_()

    def __repr__(self) -> str:
        likeliest = sorted(self.passages, key=lambda passage: -passage.posterior)[:3]
        shares = [f"{passage.posterior:.3f} {passage.title!r}" for passage in likeliest]
        if len(self.passages) > len(shares):
            shares.append("...")
        return (
            f"Answer(question={self.question!r}, text={self.text!r}, "
            f"log_probability={self.log_probability:.3f}, passages=[{', '.join(shares)}])"
        )


class StateRecorder:
    """Hidden states and attentions gathered on the way through a network, as tuples at the end.

    None for what nobody asked.
    """

    def __init__(self, hidden: bool, attentions: bool) -> None:
        self.want_hidden = bool(hidden)
        self.want_attentions = bool(attentions)
        self._hidden: list[Any] = []
        self._attentions: list[Any] = []
        self._cross: list[Any] = []

    def hidden(self, x: Any) -> None:
        """Note a hidden state."""
        if self.want_hidden:
            self._hidden.append(x)

    def attentions(self, weights: Any, cross: Any = None) -> None:
        """Note a layer's attention weights, and those of its cross-attention; or None."""
        if not self.want_attentions:
            return
        if weights is not None:
            self._attentions.append(weights)
        if cross is not None:
            self._cross.append(cross)

    def note(self, seen: Sequence[Sequence[Any] | None]) -> None:
        """Note all that another recorder's `result` holds: what a graph hands out."""
        hidden, attentions, cross = seen
        self._hidden.extend(hidden or ())
        self._attentions.extend(attentions or ())
        self._cross.extend(cross or ())

    def result(self) -> list[tuple[Any, ...] | None]:
        """[hidden_states, attentions, cross_attentions]."""
        hidden = tuple(self._hidden) if self.want_hidden else None
        if not self.want_attentions:
            return [hidden, None, None]
        return [hidden, tuple(self._attentions), tuple(self._cross)]


def shortened(text: str, most: int) -> str:
    """A text in one line of at most so many characters: of whole words, unless a text without
    spaces (a path, or Chinese) would lose most of them.
    """
    line = " ".join(text.split())
    words = textwrap.shorten(line, most, placeholder=" …")
    if len(words) < min(len(line), most // 2):
        return line[: most - 2] + " …"
    return words


def json_text(values: Any, **style: Any) -> str:
    """Values as JSON, which has no word for numbers that are not finite: they are null.

    Args:
        values: dicts, lists, texts, numbers and None.
        **style: of `json.dumps`.
    """
    try:
        return json.dumps(values, allow_nan=False, **style)
    except ValueError:
        return json.dumps(finite(values), allow_nan=False, **style)


def finite(values: Any) -> Any:
    """The same values, with None for numbers that are not finite."""
    if isinstance(values, dict):
        return {name: finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    if isinstance(values, float) and not abs(values) < float("inf"):
        return None
    return values
