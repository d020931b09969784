"""What the routes ask: a model that can be swapped, behind two queues."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rag_core.generation import SearchCancelledError
from rag_core.outputs import Answer, Hit
from rag_core.retrieval import ShardLostError
from rag_core.serving.batching import Batcher, Cancelled, QueueFullError, in_thread
from rag_core.serving.errors import ApiError, without_paths
from rag_core.serving.metrics import Metrics
from rag_core.serving.model import OpenModel, ServedModel
from rag_core.serving.options import check_limits, checked_names
from rag_core.serving.settings import ServerSettings

_LOG = logging.getLogger(__name__)
# Questions that are embedded and searched at once: cheap beside an answer.
_RETRIEVED_AT_ONCE = 64


@dataclass(frozen=True)
class Asked:
    """Questions that can be answered together.

    Attributes:
        questions: texts.
        options: of `generate` and of the call.
        key: what has to be equal of requests that are answered together.
        seconds: that they may take.
    """

    questions: Sequence[str]
    options: Mapping[str, Any]
    key: Hashable
    seconds: float


class Service:
    """Answers and passages for the routes, from whichever model is loaded.

    Args:
        open_model: loads model and knowledge base, again at each reload, in a thread.
        settings: limits.
    """

    def __init__(self, open_model: OpenModel, settings: ServerSettings) -> None:
        self.settings = settings
        self.metrics = Metrics(self)
        self.fault: Exception | None = None
        self.is_ending = False
        self._open = open_model
        self._model: ServedModel | None = None
        self._reloading = asyncio.Lock()
        wait, queue = settings.batch_wait, settings.queue
        self.answers = Batcher(
            self._answer,
            size=settings.batch_size,
            wait=wait,
            queue=queue,
            name="answers",
            observe=self.metrics.batch,
        )
        self.searches = Batcher(
            self._retrieve, size=_RETRIEVED_AT_ONCE, wait=wait, queue=queue, name="searches"
        )

    @property
    def model(self) -> ServedModel:
        """The model that answers now.

        Raises:
            ApiError: none is loaded yet.
        """
        if self._model is not None:
            return self._model
        if self.fault is not None:
            raise ApiError(
                503, "The model could not be loaded; the server's log says why.", code="not_loaded"
            )
        raise ApiError(
            503, "The model is still being loaded.", code="loading", headers=_in_seconds(2)
        )

    @property
    def is_ready(self) -> bool:
        """Whether questions are answered."""
        return self._model is not None and not self.is_ending

    async def start(self) -> None:
        """Begin to answer; the model is loaded first."""
        self.answers.start()
        self.searches.start()
        await self._load()

    async def close(self) -> None:
        """Answer no more."""
        await self.answers.close()
        await self.searches.close()

    def end_soon(self) -> None:
        """Take no more for ready; in `shutdown_seconds` stop what is not answered by then."""
        self.is_ending = True
        error = ApiError(503, "The server ends, and had no time left for this.", code="ending")

        def stop() -> None:
            for batcher in (self.answers, self.searches):
                batcher.stop(error)

        asyncio.get_running_loop().call_later(self.settings.shutdown_seconds, stop)

    async def reload(self) -> None:
        """Load model and knowledge base anew and put them in place of those that answer now.

        Batches that run finish with the old ones, what waits is answered by the new ones. Both are
        in memory for a while.

        Raises:
            ApiError: the new ones can't be loaded; those before go on answering.
        """
        try:
            await self._load()
        except Exception as error:
            _LOG.exception("model and knowledge base could not be loaded anew")
            raise ApiError(
                409,
                "The new model or knowledge base can't be loaded; those before go on answering: "
                f"{_sentence(error)}",
                code="not_reloaded",
            ) from None

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._reloading:
            self._model = await in_thread(self._open)
        await loop.run_in_executor(None, gc.collect)  # the one before is in circles

    async def answer(
        self,
        question: Any,
        options: Mapping[str, Any] | None = None,
        timeout: Any = None,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> list[Answer]:
        """The answers to one question, best first: `num_return_sequences` of them.

        Args:
            question: a text.
            options: those of `generate`, "n_docs" and "head".
            timeout: seconds; None and more than the server's is the server's.
            on_text: told the text so far, in another thread, where the search writes it in order.
                Such a question goes alone.

        Raises:
            ApiError: what is wrong with the request, or with the server.
        """
        (answers,) = await self.answer_all([question], options, timeout, on_text=on_text)
        return answers

    async def answer_all(
        self,
        questions: Sequence[Any],
        options: Mapping[str, Any] | None = None,
        timeout: Any = None,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> list[list[Answer]]:
        """As `answer`, for several questions: all are answered, or one error says why not."""
        return await self.answers_to(
            await self.checked(questions, options, timeout, on_text=on_text)
        )

    async def checked(
        self,
        questions: Sequence[Any],
        options: Mapping[str, Any] | None = None,
        timeout: Any = None,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Asked:
        """What `answers_to` takes, once all is seen to be as it must.

        Args:
            questions, options, timeout, on_text: as of `answer`.

        Raises:
            ApiError: what is wrong with the request, or that there is no model yet.
        """
        self.check_questions(questions, "question")
        options = checked_names(options or {})
        check_limits(options, self.settings)
        model = self.model

        def check() -> tuple[Hashable, bool]:
            key = model.check(options)
            return key, on_text is not None and model.writes_in_order(options)

        try:
            # in a thread: options may have a million letters, and others are served meanwhile
            key, is_written_in_order = await in_thread(check)
        except (ValueError, TypeError) as error:
            raise ApiError(422, _sentence(error)) from None
        if is_written_in_order:
            options["on_text"] = on_text
            key = None
        return Asked(questions, options, key, self.seconds(timeout))

    async def answers_to(self, asked: Asked) -> list[list[Answer]]:
        """The answers to what `checked` let pass.

        Raises:
            ApiError: there is no room or no time for it, or it fails.
        """
        return await self._all(
            self.answers, asked.questions, asked.options, asked.key, asked.seconds
        )

    async def retrieve(
        self, questions: Sequence[Any], k: Any = None, timeout: Any = None
    ) -> list[list[Hit]]:
        """The k nearest passages of each question; None is as many as the model reads."""
        self.check_questions(questions, "query")
        if k is None:
            k = self.model.n_docs
        if type(k) is not int or not 1 <= k <= self.settings.max_docs:
            raise ApiError(
                422,
                f"topk must be a whole number from 1 to {self.settings.max_docs}, got {k!r:.80}.",
                param="topk",
            )
        return await self._all(self.searches, questions, k, k, self.seconds(timeout))

    async def passage(self, row: int) -> dict[str, Any]:
        """One passage, by its row number; see `ServedModel.passage`.

        Raises:
            ApiError: there is none, or it can't be read.
        """
        try:
            found = await in_thread(self.model.passage, row)
        except OSError as error:
            raise _unreadable(error) from None
        if found is None:
            raise ApiError(404, f"There is no passage {row}.")
        return found

    def limits(self) -> dict[str, Any]:
        """The settings, without the key."""
        limits = asdict(self.settings)
        return {name: limits[name] for name in limits if name not in ("api_key", "hosts")}

    def check_questions(self, questions: Sequence[Any], noun: str) -> None:
        """See that texts can be asked.

        Raises:
            ApiError: none, too many, or one that is no text, empty or too long.
        """
        settings = self.settings
        if not questions:
            raise ApiError(422, f"There must be one {noun} or more, got none.")
        most = min(settings.max_questions, settings.queue)  # more never find room
        if len(questions) > most:
            raise ApiError(
                422,
                f"A request must hold at most {most} texts, got {len(questions)}. Send several "
                "requests.",
            )
        for text in questions:
            if not isinstance(text, str):
                raise ApiError(422, f"A {noun} must be a text, got {type(text).__name__}.")
            if not text.strip():
                raise ApiError(422, f"A {noun} must have at least one word, got an empty text.")
            if len(text) > settings.max_question_chars:
                raise ApiError(
                    422,
                    f"A {noun} must have at most {settings.max_question_chars:,} characters, got "
                    f"{len(text):,}.",
                )
            try:
                text.encode()
                self.model.check_question(text)
            except UnicodeEncodeError:
                raise ApiError(422, f"A {noun} must be Unicode, got half a character.") from None
            except ValueError as error:
                raise ApiError(422, _sentence(error)) from None

    def seconds(self, timeout: Any) -> float:
        """How long a request may take.

        Raises:
            ApiError: it asks for something else than a number above 0.
        """
        if timeout is None:
            return self.settings.timeout
        is_number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if not is_number or not math.isfinite(timeout) or timeout <= 0:
            raise ApiError(
                422, f"timeout must be seconds above 0, got {timeout!r:.80}.", param="timeout"
            )
        return min(timeout, self.settings.timeout)

    async def _all(
        self, batcher: Batcher, texts: Sequence[str], options: Any, key: Any, seconds: float
    ) -> list[Any]:
        """Results of all texts; if one fails, or they are no longer waited for, none goes on."""
        tasks = []
        try:
            batcher.check_room(len(texts))
            tasks = [
                asyncio.ensure_future(batcher(text, options, key=key, timeout=seconds))
                for text in texts
            ]
            return await asyncio.gather(*tasks)
        except QueueFullError as error:
            raise ApiError(
                429,
                f"The server is busy. Try again in {error.retry_after} s.",
                code="queue_full",
                headers=_in_seconds(error.retry_after),
            ) from None
        except (asyncio.TimeoutError, SearchCancelledError):
            raise ApiError(
                504, f"It took longer than {seconds:g} s, and was stopped.", code="timeout"
            ) from None
        except (ValueError, TypeError) as error:
            raise ApiError(422, _sentence(error)) from None
        except OSError as error:
            raise _unreadable(error) from None
        finally:
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.gather(*tasks, return_exceptions=True)

    def _answer(
        self, questions: list[str], options: Mapping[str, Any], cancelled: Cancelled
    ) -> list[list[Answer]]:
        return self.model.answer(questions, options, cancelled)

    def _retrieve(self, questions: list[str], k: int, cancelled: Cancelled) -> list[list[Hit]]:
        return self.model.retrieve(questions, k)


def _unreadable(error: OSError) -> ApiError:
    if isinstance(error, ShardLostError):
        _LOG.error("%s", error)
        return ApiError(
            503,
            "A part of the knowledge base can't be reached now. Try again in a while.",
            code="shard_lost",
            headers=_in_seconds(10),
        )
    _LOG.exception("a file could not be read")
    return ApiError(
        503,
        "The knowledge base can no longer be read. Restore it, and have the server load it anew.",
        code="unreadable",
    )


def _in_seconds(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}


def _sentence(error: Exception) -> str:
    text = without_paths(" ".join(str(error).split()))
    if not text.endswith((".", "!", "?")):
        text += "."
    return text
