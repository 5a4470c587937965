"""Samples: texts with their labels, as JSON Lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from understudy.errors import InvalidInput, NotFound, did_you_mean
from understudy.resources import bundled
from understudy.task import Task

Kind = Literal["sentence", "keyword"]

#: One text in so many is held out of training.
HELD_OUT_ONE_IN = 8


@dataclass(frozen=True)
class Sample:
    """A labelled text.

    `kind` tells a running text from a word or short phrase that is typical of its label;
    `provenance` keeps whatever else the row said (model, prompt version …).
    """

    text: str
    label: str
    kind: Kind = "sentence"
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def held_out(self) -> bool:
        return is_held_out(self.text)


def is_held_out(text: str) -> bool:
    """Whether a text belongs to the held-out part, by its SHA-256 alone.

    The same text falls on the same side in every data set, run and machine.
    """
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def read_samples(path: Path, labels: Sequence[str] = ()) -> list[Sample]:
    """Read JSON Lines with ``text`` and ``label``; more keys are kept as provenance.

    Args:
        labels: when given, every label must be one of them.

    Raises:
        NotFound: no such file.
        InvalidInput: a row is broken; the message gives path, line and the mend.
    """
    samples = [_sample(row, where, labels) for where, row in read_rows(path)]
    if not samples:
        raise InvalidInput(f"{path}: no rows", expected='rows such as {"text": …, "label": …}')
    return samples


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON Lines file, each with its ``path:line``; blank lines are passed over.

    Raises:
        NotFound: no such file.
        InvalidInput: a line isn't UTF-8 or isn't a JSON object.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}", expected="a JSON Lines file") from error
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", expected="a readable file") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise InvalidInput(
                    f"{where}: not UTF-8: {error.reason}", expected="UTF-8"
                ) from error
            except (ValueError, RecursionError) as error:
                raise InvalidInput(
                    f"{where}: not JSON: {getattr(error, 'msg', 'nested too deep')}",
                    expected="one JSON object a line",
                ) from error
            if not isinstance(row, dict):
                raise InvalidInput(f"{where}: not an object", expected='{"text": …, "label": …}')
            yield where, row


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write JSON Lines that `read_samples` reads."""
    with path.open("w", encoding="utf-8") as file:
        for sample in samples:
            row: dict[str, Any] = {"text": sample.text, "label": sample.label}
            if sample.kind != "sentence":
                row["kind"] = sample.kind
            file.write(json.dumps(row | sample.provenance, ensure_ascii=False) + "\n")


def bundled_samples(task: Task, language: str, *, keywords: bool = True) -> list[Sample]:
    """The generator data that comes with Understudy, its keyword lists included or not.

    Raises:
        NotFound: there is none for this task and language.
    """
    paths = bundled_paths(task.name, language, keywords=keywords)
    return [sample for path in paths for sample in read_samples(path, task.label_names)]


def has_bundled(task: str, language: str) -> bool:
    """Whether data for the task and language comes with Understudy."""
    try:
        return bool(bundled_paths(task, language))
    except NotFound:
        return False


def bundled_paths(task: str, language: str, *, keywords: bool = True) -> list[Path]:
    """The files of `bundled_samples`.

    Raises:
        NotFound: there is none for this task and language.
    """
    data = bundled("data")
    paths = [data / task / f"{language}.jsonl"]
    if keywords:
        paths.append(data / "keywords" / task / f"{language}.jsonl")
    found = [path for path in paths if path.is_file()]
    if not found:
        raise NotFound(
            f"no bundled data for task {task!r} in {language!r}",
            expected="--data FILE.jsonl, or one of the bundled sets: see 'understudy data'",
        )
    return found


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256 over texts, labels and kinds, whatever their order."""
    digest = hashlib.sha256()
    for row in sorted(json.dumps([s.text, s.label, s.kind]) for s in samples):
        digest.update(row.encode() + b"\n")
    return digest.hexdigest()


def _sample(row: dict[str, Any], where: str, labels: Sequence[str]) -> Sample:
    values = {}
    for key in ("text", "label"):
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            raise InvalidInput(
                f"{where}: {key!r} is {'missing' if key not in row else 'empty or not a string'}",
                field=key,
                expected='rows such as {"text": …, "label": …}',
            )
        values[key] = value
    try:
        values["text"].encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"{where}: the text has a lone surrogate at character {error.start}",
            field="text",
            expected="well-formed Unicode",
        ) from error
    if labels and values["label"] not in labels:
        raise InvalidInput(
            f"{where}: unknown label {values['label']!r}{did_you_mean(values['label'], labels)}",
            field="label",
            expected=f"one of: {', '.join(labels)}",
        )
    kind = row.get("kind", "sentence")
    if kind not in ("sentence", "keyword"):
        raise InvalidInput(
            f"{where}: unknown kind {kind!r}", field="kind", expected="'sentence' or 'keyword'"
        )
    rest = {k: v for k, v in row.items() if k not in ("text", "label", "kind")}
    return Sample(values["text"], values["label"], kind, rest)
