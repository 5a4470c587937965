"""Scores what a language model replied when it was asked for labels.

Invalid replies tell as much about the asking and the parsing as about the model, so every score
stands beside the rate of them, and is given with and without them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy import language as languages
from understudy.errors import InvalidInput
from understudy.prompts import UnusableReply, parse_reply
from understudy.sample import read_rows
from understudy.statistics import macro_f1
from understudy.task import Task


@dataclass(frozen=True)
class Scores:
    """Accuracy and macro-F1 over some of the replies."""

    n: int
    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class LanguageScores:
    """How the replies of one language fare."""

    language: str
    #: Every reply; an invalid one counts as wrong.
    all: Scores
    #: The replies that name a label.
    valid: Scores
    no_label: int
    several_labels: int

    @property
    def n(self) -> int:
        return self.all.n

    @property
    def invalid_rate(self) -> float:
        return (self.no_label + self.several_labels) / self.n

    @property
    def no_label_rate(self) -> float:
        return self.no_label / self.n

    @property
    def several_labels_rate(self) -> float:
        return self.several_labels / self.n


@dataclass(frozen=True)
class MeanScores:
    """The mean of the languages, each weighing the same whatever its number of replies."""

    n: int
    accuracy: float
    macro_f1: float
    valid_accuracy: float
    valid_macro_f1: float
    no_label_rate: float
    several_labels_rate: float

    @property
    def invalid_rate(self) -> float:
        return self.no_label_rate + self.several_labels_rate


@dataclass(frozen=True)
class RepliesReport:
    """The scores of a set of replies to one task."""

    task: str
    #: In alphabetical order of the languages.
    rows: tuple[LanguageScores, ...]

    @property
    def mean(self) -> MeanScores:
        def mean(values: Iterable[float]) -> float:
            listed = list(values)
            return sum(listed) / len(listed)

        return MeanScores(
            n=sum(row.n for row in self.rows),
            accuracy=mean(row.all.accuracy for row in self.rows),
            macro_f1=mean(row.all.macro_f1 for row in self.rows),
            valid_accuracy=mean(row.valid.accuracy for row in self.rows),
            valid_macro_f1=mean(row.valid.macro_f1 for row in self.rows),
            no_label_rate=mean(row.no_label_rate for row in self.rows),
            several_labels_rate=mean(row.several_labels_rate for row in self.rows),
        )


def score_replies(task: Task, paths: Sequence[Path]) -> RepliesReport:
    """Parse and score JSON Lines files of ``{"text", "label", "reply"}``.

    The language is the row's ``language``, or else the file's name (``sw.jsonl``).

    Raises:
        NotFound: no such file, or a language that the task doesn't cover.
        InvalidInput: a row is broken, or there are none; the message gives path and line.
    """
    truth: dict[str, list[str]] = {}
    answers: dict[str, list[str | None]] = {}
    invalid: dict[str, Counter[str]] = {}
    for path in paths:
        for where, row in read_rows(path):
            label, reply = _label(row, where, task), _reply(row, where)
            language = _language(row, path, where, task)
            try:
                answer = parse_reply(reply, task.label_names)
            except UnusableReply as error:
                answer = None
                invalid.setdefault(language, Counter())[error.reason] += 1
            truth.setdefault(language, []).append(label)
            answers.setdefault(language, []).append(answer)
    if not truth:
        raise InvalidInput(
            f"no rows in {', '.join(map(str, paths)) or 'no files'}",
            expected='rows such as {"text": …, "label": …, "reply": …}',
        )
    rows = [
        LanguageScores(
            language=language,
            all=_scores(truth[language], answers[language], task),
            valid=_scores(
                *_without_invalid(truth[language], answers[language]),
                task,
            ),
            no_label=invalid.get(language, Counter())["no_label"],
            several_labels=invalid.get(language, Counter())["several_labels"],
        )
        for language in sorted(truth)
    ]
    return RepliesReport(task.name, tuple(rows))


def _scores(truth: list[str], answers: list[str | None], task: Task) -> Scores:
    n = len(truth)
    right = sum(true == answer for true, answer in zip(truth, answers, strict=True))
    return Scores(n, right / n if n else 0.0, macro_f1(truth, answers, task.label_names))


def _without_invalid(
    truth: list[str], answers: list[str | None]
) -> tuple[list[str], list[str | None]]:
    valid = [i for i, answer in enumerate(answers) if answer is not None]
    return [truth[i] for i in valid], [answers[i] for i in valid]


def _label(row: dict[str, Any], where: str, task: Task) -> str:
    label = row.get("label")
    if not isinstance(label, str) or label not in task.label_names:
        shown = repr(label) if isinstance(label, str) else "missing or not a string"
        raise InvalidInput(
            f"{where}: the label is {shown}",
            field="label",
            expected=f"one of: {', '.join(task.label_names)}",
        )
    return label


def _reply(row: dict[str, Any], where: str) -> str:
    reply = row.get("reply")
    if not isinstance(reply, str):
        raise InvalidInput(
            f"{where}: the reply is missing or not a string",
            field="reply",
            expected='rows such as {"text": …, "label": …, "reply": …}',
        )
    return reply


def _language(row: dict[str, Any], path: Path, where: str, task: Task) -> str:
    try:
        tag = languages.canonical(row.get("language", path.stem))
    except InvalidInput as error:
        raise InvalidInput(
            f"{where}: neither the row nor the file's name says which language",
            field="language",
            expected=f'{error.expected}, as "language" or as the name of the file (sw.jsonl)',
        ) from None
    return task.language(tag)
