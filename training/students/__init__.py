"""Kinds of student: one module each, all with the same face.

A kind of student is a function that fits texts and gives back a `FittedStudent`; everything after
that — calibration, golden inputs, metrics, the bundle — is the same for all and lies in
`training.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from understudy.bundle import BundleInfo
from understudy.errors import NotFound
from understudy.task import Task


class FittedStudent(Protocol):
    """What a kind of student leaves: the artefacts of a bundle, and how they were made."""

    @property
    def model(self) -> bytes:
        """Serialised ONNX: input_ids, attention_mask [batch, length] → logits [batch, labels]."""
        ...

    @property
    def tokenizer(self) -> str:
        """Content of ``tokenizer.json``."""
        ...

    @property
    def max_length(self) -> int:
        """Longest input in tokens."""
        ...

    @property
    def batch_tokens(self) -> int:
        """Padded tokens that one run of the model should take."""
        ...

    @property
    def source(self) -> str:
        """What it was made from: ``embedded``, a hub name, a directory."""
        ...

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Hyper-parameters and counts, JSON-able."""
        ...


class Fit(Protocol):
    """Fits texts [n] with labels [n], each below `n_labels`, and kinds [n]."""

    def __call__(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        n_labels: int,
        *,
        kinds: Sequence[str] | None = None,
        seed: int = 0,
        progress: Callable[[float], None] | None = None,
    ) -> FittedStudent: ...


def unmeasured(task: Task, language: str, kind: str, fitted: FittedStudent) -> BundleInfo:
    """What is known of a student's bundle before anything is measured."""
    return BundleInfo(
        task=task.name,
        language=language,
        labels=task.label_names,
        kind=kind,
        source=fitted.source,
        max_length=fitted.max_length,
        batch_tokens=fitted.batch_tokens,
        golden=(),
    )


def kinds_of_student() -> tuple[str, ...]:
    return ("ngram",)


def fit_function(kind: str) -> Fit:
    """The fit function of a kind of student, its module imported only now.

    Raises:
        NotFound: there is no such kind.
    """
    if kind == "ngram":
        from training.students.ngram import fit

        return fit
    raise NotFound(
        f"there is no kind of student {kind!r}",
        field="student",
        expected=f"one of: {', '.join(kinds_of_student())}",
    )
