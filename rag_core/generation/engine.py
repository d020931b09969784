"""What generation asks of a framework: the operations on tensors between two decisions.

Decoding, the search loop and the weighing of candidates are written once, in this wing. They decide
in NumPy, and leave to an `Engine` what has to stay on the device. Networks are no part of it: a
generator offers `encode`, `start` and `decode` (docs/design.md, "The Engine protocol"), and the
mathematics of a step lies in each backend's `step_scores.py` and `marginalize.py`. Tensors cross to
NumPy where an operation says that it returns an array, and where this wing calls
`rag_core.backends.to_numpy`; nowhere else.

Without an operation this wing asks of a tensor only what tensors of all frameworks can do: its
`shape`, slices and whole numbers in square brackets, `ids != pad`, and that `to_numpy` reads it.
Arrays that it makes tensors of are int64, bool, or float32 and wider.

Letters: B questions, N documents of a search, Q searches, q of them still active, K beams, R rows,
S context length, t tokens so far, T new tokens, C candidates, L candidate length, P beginnings of
candidates, d width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from rag_core.arguments import TensorFacts
    from rag_core.generation.beam import SearchResult
    from rag_core.generation.candidates import PrefixTree
    from rag_core.generation.config import GenerationConfig
    from rag_core.generation.hooks import Hooks
    from rag_core.generation.logits_rules import LogitsProcessor, LogitsWarper

Tensor = Any  # the framework's own


def is_native(generator: Any) -> bool:
    """Whether a generator is one of the backends' own, which can do more than the four methods that
    are asked of every generator (see `Generator.native`).
    """
    return getattr(type(generator), "native", False)


class Engine(Protocol):
    """A framework's tensor operations, one object a backend: `rag_torch.engine.ENGINE` and
    `rag_tf.engine.ENGINE`.

    What an operation is given stays as it is, unless `inplace` is True. The checks of arguments are
    the backend's `rag_core.modeling.InputChecks`, under the same names.

    Attributes:
        framework: "pt" or "tf", as `return_tensors` has it.
        shares_first_step: whether the backend's own generators decode one beam for all of a context
            as long as they are equal: their first `decode` gets K = 1, all later ones K beams.
        has_graphs: whether `generate` takes `graph`, which `search_in_graph` reads.
    """

    framework: str
    shares_first_step: bool
    has_graphs: bool

    # tensors

    def tensor(self, array: Any, like: Any = None) -> Tensor:
        """Make a tensor of an array or a tensor, where `like` (a tensor or a model) is; on the CPU
        without. It may share the array's memory.
        """
        ...

    def is_tensor(self, value: Any) -> bool:
        """Whether a value is one of this framework's tensors."""
        ...

    def facts(self, name: str, value: Any) -> TensorFacts:
        """Tell a tensor's shape and dtype without looking at its numbers.

        Raises:
            TypeError: no tensor.
        """
        ...

    def has_nan(self, x: Tensor) -> bool:
        """Whether any number is NaN."""
        ...

    def bool_mask(self, mask: Tensor | None, like: Tensor) -> Tensor:
        """A mask (R, S) as bools; without one True, where `like` is, in the shape that `like`
        (R, S, ...) begins with.
        """
        ...

    def used_width(self, mask: Tensor) -> int:
        """How many columns of a mask (R, S) are left without those at the end that are False in
        every row; 1 or more.
        """
        ...

    def same_mask(self, mask: Tensor, other: Tensor) -> bool:
        """Whether two bool masks (R, S) and (R, S'), S' <= S, agree, and the first is False beyond
        the second.
        """
        ...

    def take_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        """The rows (n,) of (R, ...) -> (n, ...)."""
        ...

    def repeat_rows(self, x: Tensor, times: int) -> Tensor:
        """Each row as often as `times` says, copies side by side: (R, ...) -> (R * times, ...)."""
        ...

    def scatter_rows(self, x: Tensor, rows: Tensor, count: int) -> Tensor:
        """Rows (n, ...) at their places (n,) among `count` rows of zeros: (count, ...)."""
        ...

    def buffer(self, shape: tuple[int, ...], like: Tensor) -> Any:
        """Zeros of `like`'s dtype that pieces can be written into, `buffer[at] = tensor`, and that
        have `reshape`: a tensor, or an array where tensors can't be written to. Only
        `candidate_scores` is given it.
        """
        ...

    # a call's arguments and surroundings

    def checked_ids(self, name: str, ids: Any, size: int | None = None) -> Tensor:
        """Token ids as a tensor, refused if a table of `size` rows can't look them up.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        ...

    def checked_mask(self, name: str, mask: Any, shape: tuple[int, ...], of: str) -> Tensor | None:
        """A mask as a tensor, refused if it is not of the shape that the argument `of` has, or
        holds other numbers than 0 and 1.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        ...

    def checked_questions(
        self, input_ids: Any, attention_mask: Any, vocabulary: int | None = None
    ) -> Tensor:
        """Contexts (R, S) as a tensor, refused if they or their mask can't be read.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        ...

    def table_size(self, module: Any) -> int | None:
        """How many ids the table of a module's `get_input_embeddings()` holds; None if it doesn't
        say.
        """
        ...

    def generation_context(self, model: Any) -> AbstractContextManager[Any]:
        """Within it a model generates: without gradients, in the precision of its calls.

        Raises:
            RuntimeError: in a graph, which cannot hold the decisions between the steps.
        """
        ...

    def on_device(self, module: Any) -> AbstractContextManager[Any]:
        """Within it the framework computes where the module's weights are."""
        ...

    def draw_seed(self) -> int:
        """A seed of 62 bits from the framework's global generator."""
        ...

    # scores of the next token

    def encode_distinct(self, generator: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Encoder states (R, S, d) of contexts (R, S) and their bool mask; a context that occurs
        twice is encoded once.
        """
        ...

    def doc_log_probs(self, scores: Tensor) -> Tensor:
        """log p(z|x) of documents by their scores, (B, N) -> (B, N), in float32 or wider."""
        ...

    def decode_step(
        self,
        generator: Any,
        state: Any,
        tokens: Tensor,
        log_priors: Tensor | None,
        traced: tuple[bool, bool] | None = None,
    ) -> tuple[Tensor, Any]:
        """Feed tokens (q*N, K, T) to a generator, the new ones to a state that has a cache, all so
        far to one that has none.

        Args:
            generator: the generator.
            state: as its `start` or the state's `select` returned it; moves on.
            tokens: what `decode` is given.
            log_priors: (q, N) log p(z|x), over which the scores are marginalised; None for those of
                the generator alone.
            traced: whether to note hidden states and attentions; None = neither.

        Returns:
            Scores (q*K, V) of the token after the last one, logits or marginal log-probabilities,
            in float32 or wider, which nobody else keeps if the generator is the backend's own or
            they are marginalised. And what was noted, or None: the decoder's hidden states, its
            attentions and cross-attentions, each a tuple with a tensor a layer, or None.
        """
        ...

    def guided_scores(self, scores: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """log p(without) + scale * (log p(with documents) - log p(without)), of two (R, V), logits
        or log-probabilities; what is -inf with documents stays so.
        """
        ...

    def log_softmax(self, scores: Tensor, inplace: bool) -> Tensor:
        """log_softmax of (R, V); `inplace` allows to write over the scores."""
        ...

    def apply_processors(
        self, scores: Tensor, processors: Sequence[LogitsProcessor], inplace: bool
    ) -> Tensor:
        """Carry out processors, in order, on (R, V), as `LogitsProcessor` says; `inplace` allows to
        write over the scores. Without any the scores come back themselves.
        """
        ...

    def apply_warpers(
        self, scores: Tensor, warpers: Sequence[LogitsWarper], min_tokens_to_keep: int
    ) -> Tensor:
        """Carry out warpers, in order, on (R, V), as `LogitsWarper` says, which leave
        `min_tokens_to_keep` tokens or more a row.
        """
        ...

    def choose_tokens(
        self, scores: Tensor, noise: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The token of the largest score of each row (R, V), of equals the lowest.

        Args:
            scores: (R, V), logits or log-probabilities.
            noise: (R, V) float32, added before choosing only; or None.

        Returns:
            Arrays (R,): tokens, and their log-probabilities, log_softmax of the scores.
        """
        ...

    def choose_candidates(
        self,
        scores: Tensor,
        sums: np.ndarray,
        active: np.ndarray,
        noise: np.ndarray | None,
        count: int,
        inplace: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best continuations of each active search.

        Args:
            scores: (Q*K, V) log-probabilities.
            sums: (Q, K) what the beams' tokens so far sum up to; added in the scores' dtype.
            active: (q,) numbers of the searches to choose for.
            noise: (Q*K, V) float32, added before choosing only; or None.
            count: C, cut to K * V.
            inplace: whether the scores may be written over.

        Returns:
            Arrays (q, C), in no particular order: sums with the new token, and their places in the
            search's K * V; of equals the lowest places.
        """
        ...

    def search_in_graph(
        self, decoder: Any, options: GenerationConfig, hooks: Hooks, starts: np.ndarray
    ) -> SearchResult | None:
        """Run all searches to their end in one graph, from `starts` (Q, P); None where there is no
        such graph, and then nothing has changed.

        Raises:
            ValueError: there is none, and `hooks.graph` is True.
        """
        ...

    # probabilities of whole targets

    def block_size(self, like: Tensor) -> int:
        """How many numbers of a block of logits to hold at once, where `like` is."""
        ...

    def target_log_probs(
        self, generator: Any, state: Any, tokens: Tensor, targets: Tensor, smooth: bool
    ) -> tuple[Tensor, Tensor | None]:
        """log p of each target token, of rows decoded as a whole.

        Args:
            generator: the generator.
            state: as its `start` returned it, without a cache; serves several calls.
            tokens: (R, C, L) decoder inputs, as many as the state's beams or fewer.
            targets: (R, C, L).
            smooth: whether the second result is wanted.

        Returns:
            (R, C, L), and the sum over the vocabulary of all log-probabilities at each place.
        """
        ...

    def tree_log_probs(
        self,
        generator: Any,
        state: Any,
        rows: slice,
        width: int,
        tree: PrefixTree,
        targets: Tensor,
        block: int,
        smooth: bool,
    ) -> tuple[Tensor, Tensor]:
        """As `target_log_probs` for a backend's own generators and targets (C, L) that share their
        beginnings, each of which is decoded once.

        Args:
            generator: a `Generator`.
            state: of all contexts, perhaps one that searched before; of it only what was made of
                the contexts is read, and nothing is changed.
            rows: the contexts to score against, n of them.
            width: their columns, without padding at the end.
            tree: the beginnings of the decoder inputs.
            targets: (C, L); what comes back of those beyond a candidate's length is not read.
            block: how many logits to hold at once.
            smooth: whether the second result is wanted; zeros otherwise.

        Returns:
            Two (n, C, L).
        """
        ...

    def candidate_scores(
        self,
        each: Any,
        total: Any,
        log_priors: Tensor,
        pad_mask: Tensor,
        drop_first: Tensor | None,
        epsilon: float,
        vocab_size: int,
    ) -> np.ndarray:
        """RAG-Sequence's log sum_z p(z|x) p(y|x, z) of candidates.

        Args:
            each: (B, N, C, L) log-probability of each target token, a `buffer`.
            total: (B, N, C, L) another, summed over the vocabulary, for label smoothing; or None.
            log_priors: (B, N) log p(z|x).
            pad_mask: (B, C, L) bool, True = not scored.
            drop_first: (B, 1, 1) bool, where the first token is left out; None = nowhere.
            epsilon: the weight of label smoothing.
            vocab_size: what the smoothing is spread over; without any it is not asked for.

        Returns:
            An array (B, C).
        """
        ...
