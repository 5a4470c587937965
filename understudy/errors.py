"""The one family of errors, each with its HTTP status and its gRPC code.

::

    UnderstudyError                500  INTERNAL
    ├── InvalidInput               400  INVALID_ARGUMENT
    │   └── UnsupportedMediaType   415  INVALID_ARGUMENT
    ├── Unauthenticated            401  UNAUTHENTICATED
    ├── NotFound                   404  NOT_FOUND
    │   └── MethodNotAllowed       405  UNIMPLEMENTED
    ├── PayloadTooLarge            413  RESOURCE_EXHAUSTED
    ├── Overloaded                 429  RESOURCE_EXHAUSTED
    ├── InvalidReply               502  INTERNAL
    ├── NotReady                   503  UNAVAILABLE
    ├── GeneratorUnavailable       503  UNAVAILABLE
    ├── Unreachable                503  UNAVAILABLE
    ├── Timeout                    504  DEADLINE_EXCEEDED
    └── BundleError                500  FAILED_PRECONDITION

A transport turns any of them into its own form with `UnderstudyError.problem`, so the two can't
drift apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class UnderstudyError(Exception):
    """Something went wrong in a way that the caller can be told about.

    Args:
        detail: what was wrong, with what value, for a person to read. Never a user's text.
        field: path of the offending input (``texts[3]``, ``top_k``), where there is one.
        expected: what would have been right.
        retry_after: seconds after which trying again makes sense, where known.
    """

    http_status: ClassVar[int] = 500
    #: The name of a `grpc.StatusCode`; a name, so that this module needs no gRPC.
    grpc_code: ClassVar[str] = "INTERNAL"
    #: The last segment of the problem's type URI, and the machine-readable reason in gRPC.
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        field: str | None = None,
        expected: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.expected = expected
        self.retry_after = retry_after

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        mend = f"; expected {self.expected}" if self.expected else ""
        return f"{where}{self.detail}{mend}"

    def problem(self) -> dict[str, Any]:
        """The problem details object (RFC 9457) that HTTP sends and gRPC mirrors."""
        body: dict[str, Any] = {
            "type": f"urn:understudy:problem:{self.code}",
            "title": self.title,
            "status": self.http_status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.field is not None:
            body["field"] = self.field
        if self.expected is not None:
            body["expected"] = self.expected
        if self.retry_after is not None:
            body["retry_after"] = self.retry_after
        return body


class InvalidInput(UnderstudyError):
    """The caller sent something that can't be right."""

    http_status = 400
    grpc_code = "INVALID_ARGUMENT"
    code = "invalid_input"
    title = "Invalid input"


class UnsupportedMediaType(InvalidInput):
    """The body is of a content type that is not read here."""

    http_status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class Unauthenticated(UnderstudyError):
    """No key, or a wrong one."""

    http_status = 401
    grpc_code = "UNAUTHENTICATED"
    code = "unauthenticated"
    title = "Unauthenticated"


class NotFound(UnderstudyError):
    """No such task, language, model, route or recording."""

    http_status = 404
    grpc_code = "NOT_FOUND"
    code = "not_found"
    title = "Not found"


class MethodNotAllowed(NotFound):
    """The route exists, but not for this HTTP method."""

    http_status = 405
    grpc_code = "UNIMPLEMENTED"
    code = "method_not_allowed"
    title = "Method not allowed"


class PayloadTooLarge(UnderstudyError):
    """A body, a list or a text is over its limit."""

    http_status = 413
    grpc_code = "RESOURCE_EXHAUSTED"
    code = "payload_too_large"
    title = "Payload too large"


class Overloaded(UnderstudyError):
    """The queue is full; try again after `retry_after` seconds."""

    http_status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    code = "overloaded"
    title = "Overloaded"


class InvalidReply(UnderstudyError):
    """The generator answered, but not with one of the labels."""

    http_status = 502
    grpc_code = "INTERNAL"
    code = "invalid_reply"
    title = "Invalid reply of the generator"


class NotReady(UnderstudyError):
    """The service has not loaded its models yet."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    code = "not_ready"
    title = "Not ready"


class GeneratorUnavailable(UnderstudyError):
    """The generator's endpoint can't be reached or refuses to work."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    code = "generator_unavailable"
    title = "Generator unavailable"


class Unreachable(UnderstudyError):
    """A service that was to be asked can't be reached."""

    http_status = 503
    grpc_code = "UNAVAILABLE"
    code = "unreachable"
    title = "Service unreachable"


class Timeout(UnderstudyError):
    """The answer did not come in time."""

    http_status = 504
    grpc_code = "DEADLINE_EXCEEDED"
    code = "timeout"
    title = "Timeout"


class BundleError(UnderstudyError):
    """A student bundle is damaged, incomplete or of another format; it is never served."""

    grpc_code = "FAILED_PRECONDITION"
    code = "bundle"
    title = "Unusable student bundle"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'this'?)``, where one of the known names is close; empty otherwise."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
