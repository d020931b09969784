"""What a caller plugs into the loop of a `generate` call: processors, criteria, a seed, a streamer,
prompts.

Letters: B questions, P tokens of a prompt, Q searches, R rows, t tokens so far, S' length of a negative prompt,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_core import checks
from rag_core.arguments import checked_switch
from rag_core.backends import to_numpy
from rag_core.generation.inputs import UNREAD_BY_GENERATE
from rag_core.generation.logits_rules import start_tokens

if TYPE_CHECKING:
    from rag_core.generation.config import GenerationConfig
    from rag_core.generation.engine import Engine

ScoreFunction = Callable[[Any, Any], Any]  # (input_ids (R, t), scores) -> whatever it is for

# Arguments of `Hooks.of` that come among the keywords of a call.
_HOOKS = (
    "streamer",
    "decoder_input_ids",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "cancelled",
)
_SEED = checks.whole(optional=True)


class SearchCancelledError(Exception):
    """A search was stopped, as nobody waits for any of its questions any longer."""


@dataclass(frozen=True)
class Hooks:
    """What the caller plugs into the loop.

    Attributes:
        logits_processor: callables (input_ids (R, t), scores (R, V)) -> scores (R, V), after the
            built-in rules.
        stopping_criteria: callables (input_ids (R, t), scores so far) -> True to stop, or (R,)
            bools to end rows.
        prefix_allowed_tokens_fn: (question number, (t,) ids) -> ids allowed next.
        seed: of the sampling noise; drawn from the framework's global generator where None. The
            noise of row r (a question's, beam's or sample's place in the batch) in step i depends
            on seed, r and i alone.
        streamer: has `put(ids)`, called with the start tokens (1, P), then with each new token
            (1,), on the CPU, and `end()`; for one row without beams.
        decoder_input_ids: (B, P) what each question's sequences begin with; None = the start token.
        negative_prompt: ids (B, S') of the contexts that `guidance_scale` contrasts the documents
            with, and their mask; None = the generator's empty text.
        cancelled: called every few steps, from whichever thread generates, and returns (B,) bools:
            which questions nobody waits for any longer. Their searches end there; once that is all
            of them, `SearchCancelledError` ends the call.
        graph: whether the loop is to run in a graph, where the framework has such: at once or not
            at all (True), never (False), or as the engine sees fit (None).
    """

    logits_processor: tuple[ScoreFunction, ...] = ()
    stopping_criteria: tuple[ScoreFunction, ...] = ()
    prefix_allowed_tokens_fn: Callable[[int, Any], Iterable[int]] | None = None
    seed: int | None = None
    streamer: Any = None
    decoder_input_ids: np.ndarray | None = None
    negative_prompt: tuple[Any, Any] = (None, None)
    cancelled: Callable[[], Sequence[bool]] | None = None
    graph: bool | None = None

    @classmethod
    def of(
        cls,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Any = None,
        seed: Any = None,
        streamer: Any = None,
        decoder_input_ids: Any = None,
        negative_prompt_ids: Any = None,
        negative_prompt_attention_mask: Any = None,
        cancelled: Any = None,
        graph: Any = None,
    ) -> Hooks:
        """Checks what a `generate` call passed; one callable may stand for a list of one."""
        lists = []
        functions = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        for name, value in functions.items():
            items = _as_list(value)
            if not all(callable(item) for item in items):
                raise TypeError(f"{name} must be callables (input_ids, scores); got {value!r}")
            lists.append(tuple(items))
        if prefix_allowed_tokens_fn is not None and not callable(prefix_allowed_tokens_fn):
            raise TypeError(
                "prefix_allowed_tokens_fn must be a function (batch_id, input_ids) -> list of "
                "token ids"
            )
        seed = _SEED("seed", seed)
        if streamer is not None and not all(
            callable(getattr(streamer, name, None)) for name in ("put", "end")
        ):
            raise TypeError(
                f"streamer must have the methods put(ids) and end(); got {type(streamer).__name__}"
            )
        if negative_prompt_attention_mask is not None and negative_prompt_ids is None:
            raise ValueError("negative_prompt_attention_mask needs negative_prompt_ids beside it")
        if cancelled is not None and not callable(cancelled):
            raise TypeError(
                f"cancelled must be a function () -> a bool a question; got {cancelled!r}"
            )
        if graph is not None:
            graph = checked_switch("graph", graph, False)
        prompt = decoder_input_ids
        if prompt is not None:
            prompt = to_numpy(prompt)
        return cls(
            logits_processor=lists[0],
            stopping_criteria=lists[1],
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            seed=seed,
            streamer=streamer,
            decoder_input_ids=prompt,
            negative_prompt=(negative_prompt_ids, negative_prompt_attention_mask),
            cancelled=cancelled,
            graph=graph,
        )

    def given_up(self, searches: int) -> np.ndarray:
        """Which of so many searches nobody waits for any longer, (Q,) bool.

        Raises:
            SearchCancelledError: that is all of them.
        """
        if self.cancelled is None:
            return np.zeros(searches, bool)
        questions = np.asarray(self.cancelled(), bool)
        if questions.all():
            raise SearchCancelledError("the search was stopped: nobody waits for its answer")
        return questions.repeat(searches // len(questions))

    def begin(self, options: GenerationConfig, questions: int, rows: int) -> np.ndarray:
        """What so many questions, written in so many rows, start from, (B, P).

        Sets `max_length` to count it.
        """
        if self.streamer is not None and (options.num_beams > 1 or rows > 1):
            raise ValueError(
                f"streamer needs one row without beams; num_beams is {options.num_beams}, and "
                f"{rows} rows are written at once (RAG-Sequence writes one for each document "
                "before it can tell which is best)"
            )
        if self.negative_prompt[0] is not None and options.guidance_scale in (None, 1):
            raise ValueError(
                "negative_prompt_ids needs a guidance_scale other than 1 to have an effect"
            )
        return start_tokens(options, questions, self.decoder_input_ids)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) else [value]


def pop_hooks(kwargs: dict[str, Any], engine: Engine) -> dict[str, Any]:
    """Take the arguments of `Hooks.of` out of a `generate` call's keywords, and what is not
    read.
    """
    for name in UNREAD_BY_GENERATE:
        kwargs.pop(name, None)
    names = (*_HOOKS, "graph") if engine.has_graphs else _HOOKS
    return {name: kwargs.pop(name) for name in names if name in kwargs}
