"""What HTTP and gRPC have in common: one classifier, one set of limits, one account of requests."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from services.transport.metrics import Metrics
from understudy.api import Classifier, ClassifyRequest, ClassifyResponse, Limits, ModelInfo
from understudy.errors import NotReady, UnderstudyError

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Dataplane:
    """Stands between the transports and the classifier.

    Whatever goes wrong below comes out of here as an `UnderstudyError`, counted, and logged where
    it was unforeseen.
    """

    def __init__(self, role: str, limits: Limits = Limits()) -> None:
        self.role = role
        self.limits = limits
        self.metrics = Metrics(role)
        self._classifier: Classifier | None = None
        self._accepting = False

    @property
    def ready(self) -> bool:
        """Whether new requests should be sent here."""
        return self._accepting

    def open(self, classifier: Classifier) -> None:
        """Begin to answer with a classifier."""
        self.metrics.know(classifier.models())
        self._classifier = classifier
        self._accepting = True
        self.metrics.ready(True)

    def leave(self) -> None:
        """Stop being ready; what still arrives is answered all the same."""
        self._accepting = False
        self.metrics.ready(False)

    def models(self) -> Sequence[ModelInfo]:
        """What this process answers with.

        Raises:
            NotReady: nothing is loaded yet.
        """
        return self._served().models()

    async def classify(
        self,
        transport: str,
        read: Callable[[Limits], ClassifyRequest],
        write: Callable[[ClassifyResponse], T],
    ) -> T:
        """Read a request, answer it, write the answer. Cancelling it drops the work.

        Raises:
            UnderstudyError: any of the family, and nothing else.
        """
        started = time.perf_counter()
        request: ClassifyRequest | None = None
        response: ClassifyResponse | None = None
        outcome = "cancelled"
        self.metrics.began(transport)
        try:
            request = read(self.limits)
            answer = await self._served().classify(request)
            written = write(answer)
            response, outcome = answer, "ok"
            return written
        except UnderstudyError as error:
            outcome = error.code
            raise
        except Exception as error:
            outcome = UnderstudyError.code
            raise unforeseen(error) from None
        finally:
            seconds = time.perf_counter() - started
            self.metrics.ended(transport, outcome, seconds, request, response)

    def refused(self, transport: str, error: UnderstudyError) -> None:
        """Count a request that was refused before it could be read."""
        self.metrics.began(transport)
        self.metrics.ended(transport, error.code, 0.0, None, None)

    def _served(self) -> Classifier:
        if self._classifier is None:
            raise NotReady("the models are still loading", retry_after=1.0)
        return self._classifier


def unforeseen(error: BaseException) -> UnderstudyError:
    """Log an exception that nobody foresaw and return what the caller may know of it.

    The log gets its type and where it was raised, never its message, which may quote a text.
    """
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    _log.error("unforeseen %s\n%s", type(error).__name__, frames)
    return UnderstudyError("the service failed to answer; its log says where")


async def cancelled_and_awaited(*tasks: asyncio.Task[T]) -> None:
    """Cancel tasks and wait until they have let go of what they held."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
