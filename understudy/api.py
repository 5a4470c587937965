"""The classification API without its transports: requests, answers, and who can give them.

HTTP and gRPC turn their messages into a `ClassifyRequest` and turn a `ClassifyResponse` back; what
is between them is a `Classifier`. A student and the generator implement it alike, so comparing them
is a matter of address.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from understudy import language as languages
from understudy.errors import InvalidInput, PayloadTooLarge, did_you_mean

_FIELDS = ("task", "texts", "language", "top_k")
_LONGEST_TASK = 128


@dataclass(frozen=True)
class Limits:
    """How much one request may bring. What is over a limit is refused, never cut in silence."""

    #: Bytes of an HTTP body or a gRPC message.
    body_bytes: int = 8 * 1024 * 1024
    texts: int = 1_000
    #: Characters of one text.
    characters: int = 100_000


@dataclass(frozen=True)
class ClassifyRequest:
    """Texts to classify. `checked` makes one from untrusted input.

    Attributes:
        language: canonical BCP-47 tag, or None where the caller leaves it to the service.
        top_k: how many labels to score, best first.
    """

    task: str
    texts: tuple[str, ...]
    language: str | None = None
    top_k: int = 1

    @classmethod
    def checked(
        cls,
        *,
        task: object,
        texts: object,
        language: object = None,
        top_k: object = None,
        limits: Limits = Limits(),
    ) -> ClassifyRequest:
        """Check every field of untrusted input.

        Raises:
            InvalidInput: a field is missing, empty, of a wrong type or not well-formed Unicode.
            PayloadTooLarge: too many texts, or one that is too long.
        """
        if not isinstance(task, str) or not task.strip():
            raise InvalidInput(
                f"the task is {_shape(task)}", field="task", expected="a task's name, as a string"
            )
        if len(task) > _LONGEST_TASK:
            raise InvalidInput(
                f"the task has {len(task):,} characters",
                field="task",
                expected=f"a task's name, at most {_LONGEST_TASK} characters",
            )
        _check_unicode(task, "task")
        if top_k is not None and (
            not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1
        ):
            shown = top_k if isinstance(top_k, int | float) else _shape(top_k)
            raise InvalidInput(
                f"top_k is {shown}", field="top_k", expected="a whole number of 1 or more"
            )
        return cls(
            task=task,
            texts=_checked_texts(texts, limits),
            language=None if language is None else languages.canonical(language),
            top_k=1 if top_k is None else top_k,
        )

    @classmethod
    def from_json(cls, body: object, limits: Limits = Limits()) -> ClassifyRequest:
        """Check a decoded JSON body.

        Raises:
            InvalidInput: it isn't an object, has an unknown key, or a field is wrong.
            PayloadTooLarge: too many texts, or one that is too long.
        """
        if not isinstance(body, Mapping):
            raise InvalidInput(
                f"the body is {_shape(body)}",
                field="body",
                expected='an object: {"task": …, "texts": […]}',
            )
        for key in body:
            if key not in _FIELDS:
                raise InvalidInput(
                    f"unknown field{did_you_mean(key, _FIELDS)}",
                    field=key.encode("utf-8", "replace").decode()[:40],
                    expected=f"one of: {', '.join(_FIELDS)}",
                )
        for key in ("task", "texts"):
            if key not in body:
                raise InvalidInput(
                    "the field is missing",
                    field=key,
                    expected='{"task": …, "texts": […]}',
                )
        return cls.checked(
            task=body["task"],
            texts=body["texts"],
            language=body.get("language"),
            top_k=body.get("top_k"),
            limits=limits,
        )


@dataclass(frozen=True)
class LabelScore:
    label: str
    #: Calibrated probability, 0 to 1.
    score: float


@dataclass(frozen=True)
class InvalidReplyInfo:
    """A generator's reply that can't be taken for one label."""

    #: ``no_label`` or ``several_labels``.
    reason: str
    reply: str


@dataclass(frozen=True)
class Prediction:
    """The answer for one text; without a label when the generator's reply was invalid."""

    label: str | None
    #: Calibrated probability of `label`; None where the model gives none.
    score: float | None = None
    scores: tuple[LabelScore, ...] = ()
    truncated: bool = False
    invalid_reply: InvalidReplyInfo | None = None


@dataclass(frozen=True)
class Timings:
    """Where the time of a request went, in milliseconds."""

    queue_ms: float = 0.0
    tokenize_ms: float = 0.0
    infer_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True)
class Usage:
    """What an answer cost at the language model."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: US dollars; None where the prices aren't known.
    cost_usd: float | None = None


def new_request_id() -> str:
    return secrets.token_hex(12)


@dataclass(frozen=True)
class ClassifyResponse:
    """Predictions in the order of the request's texts."""

    task: str
    language: str | None
    model: str
    model_version: str
    predictions: tuple[Prediction, ...]
    timings: Timings = Timings()
    usage: Usage | None = None
    request_id: str = field(default_factory=new_request_id)


@dataclass(frozen=True)
class ModelInfo:
    """One model that a service answers with."""

    task: str
    languages: tuple[str, ...]
    #: In the order of the model's logits.
    labels: tuple[str, ...]
    name: str
    version: str
    #: ``ngram``, ``encoder`` … or ``generator``.
    kind: str
    #: Longest input in tokens; 0 where unknown.
    max_length: int = 0


class Classifier(Protocol):
    """What a transport serves."""

    async def classify(self, request: ClassifyRequest) -> ClassifyResponse:
        """Answer a checked request. Cancelling the call drops its work.

        Raises:
            UnderstudyError: any of the family, as the cause is.
        """
        ...

    def models(self) -> Sequence[ModelInfo]: ...


def _checked_texts(texts: object, limits: Limits) -> tuple[str, ...]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidInput(f"texts is {_shape(texts)}", field="texts", expected="a list of strings")
    if not texts:
        raise InvalidInput("the list is empty", field="texts", expected="at least one text")
    if len(texts) > limits.texts:
        raise PayloadTooLarge(
            f"{len(texts):,} texts in one request",
            field="texts",
            expected=f"at most {limits.texts:,}; more in several requests or by ClassifyStream",
        )
    for position, text in enumerate(texts):
        _check_text(text, f"texts[{position}]", limits)
    return tuple(texts)


def _check_text(text: Any, where: str, limits: Limits) -> None:
    if not isinstance(text, str):
        raise InvalidInput(f"the text is {_shape(text)}", field=where, expected="a string")
    if len(text) > limits.characters:
        raise PayloadTooLarge(
            f"the text has {len(text):,} characters",
            field=where,
            expected=f"at most {limits.characters:,}",
        )
    if not text or text.isspace():
        raise InvalidInput("the text is empty", field=where, expected="some text")
    if "\0" in text:
        raise InvalidInput(
            f"the text has a NUL at character {text.index(chr(0))}",
            field=where,
            expected="text without U+0000",
        )
    _check_unicode(text, where)


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"lone surrogate U+{ord(text[error.start]):04X} at character {error.start}",
            field=where,
            expected="well-formed Unicode",
        ) from error


def _shape(value: object) -> str:
    """What a value is, in JSON's words, without showing it."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string" if value.strip() else "an empty string"
        case Mapping():
            return "an object"
        case Sequence():
            return "a list"
    return f"a {type(value).__name__}"
