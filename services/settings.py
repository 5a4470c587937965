"""What a serving process reads from its environment. Each setting's documentation is its
declaration.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy import language as languages
from understudy.api import Limits
from understudy.errors import InvalidInput, UnderstudyError

_DEFAULT = Limits()


def _setting(variable: str, default: Any, parse: Callable[[str], Any], doc: str) -> Any:
    return dataclasses.field(
        default=default, metadata={"variable": variable, "parse": parse, "doc": doc}
    )


def _text(value: str) -> str:
    return value


def _language(value: str) -> str:
    return languages.canonical(value)


def _whole(low: int, high: int | None = None) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number = int(value) if value.strip().isdecimal() else -1
        if number < low or (high is not None and number > high):
            span = f"{low} to {high}" if high is not None else f"{low} or more"
            raise InvalidInput(f"{value[:40]!r}", expected=f"a whole number, {span}")
        return number

    return parse


def _seconds(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise InvalidInput(f"{value[:40]!r}", expected="seconds, 0 or more")
    return number


def _path(value: str) -> Path:
    return Path(value).expanduser()


def _paths(value: str) -> tuple[Path, ...]:
    return tuple(_path(part) for part in value.split(os.pathsep) if part)


@dataclass(frozen=True)
class ServeSettings:
    """Settings of one serving process; `from_environ` reads them."""

    host: str = _setting(
        "UNDERSTUDY_HOST",
        "127.0.0.1",
        _text,
        "Address to listen on, 0.0.0.0 for every interface. Under 'bentoml serve' it is gRPC's "
        "alone; HTTP has '--host' there.",
    )
    port: int = _setting(
        "UNDERSTUDY_PORT",
        3000,
        _whole(0, 65535),
        "Port of HTTP, 0 for a free one. Under 'bentoml serve' it is '--port' instead.",
    )
    grpc_port: int = _setting(
        "UNDERSTUDY_GRPC_PORT", 50051, _whole(0, 65535), "Port of gRPC, 0 for a free one."
    )
    language: str | None = _setting(
        "UNDERSTUDY_LANGUAGE", None, _language, "BCP-47 tag of the language that a student serves."
    )
    bundles: Path | None = _setting(
        "UNDERSTUDY_BUNDLES",
        None,
        _path,
        "Directory of student bundles: <language>/<task>/ or <task>/ below it, or one bundle.",
    )
    replay: tuple[Path, ...] = _setting(
        "UNDERSTUDY_REPLAY",
        (),
        _paths,
        f"Recordings that the generator answers from, separated by {os.pathsep!r}.",
    )
    record: Path | None = _setting(
        "UNDERSTUDY_RECORD", None, _path, "File to which the generator appends every exchange."
    )
    body_bytes: int = _setting(
        "UNDERSTUDY_MAX_BODY_BYTES",
        _DEFAULT.body_bytes,
        _whole(1),
        "Largest HTTP body or gRPC message, in bytes.",
    )
    texts: int = _setting(
        "UNDERSTUDY_MAX_TEXTS", _DEFAULT.texts, _whole(1), "Most texts in one request."
    )
    characters: int = _setting(
        "UNDERSTUDY_MAX_CHARACTERS", _DEFAULT.characters, _whole(1), "Longest text, in characters."
    )
    queue_texts: int = _setting(
        "UNDERSTUDY_QUEUE_TEXTS",
        4_096,
        _whole(1),
        "Texts that may wait for a student; past it a request is refused at once.",
    )
    timeout: float = _setting(
        "UNDERSTUDY_TIMEOUT",
        30.0,
        _seconds,
        "Seconds in which a student answers a request, waiting included.",
    )
    threads: int = _setting(
        "UNDERSTUDY_THREADS", 1, _whole(1), "Threads with which a student computes one batch."
    )
    stream_window: int = _setting(
        "UNDERSTUDY_STREAM_WINDOW",
        8,
        _whole(1),
        "Requests of one ClassifyStream that are answered at a time.",
    )
    grace: float = _setting(
        "UNDERSTUDY_GRACE",
        25.0,
        _seconds,
        "Seconds that requests in flight have to finish after SIGTERM.",
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> ServeSettings:
        """Read the settings; an unset or empty variable leaves its default.

        Raises:
            InvalidInput: a variable's value can't be right; the error names the variable.
        """
        values: dict[str, Any] = {}
        for setting in dataclasses.fields(cls):
            variable = setting.metadata["variable"]
            if text := environ.get(variable, ""):
                try:
                    values[setting.name] = setting.metadata["parse"](text)
                except UnderstudyError as error:
                    raise InvalidInput(
                        f"{error.detail} can't be used", field=variable, expected=error.expected
                    ) from error
        return cls(**values)

    def to_environ(self) -> dict[str, str]:
        """The variables that make `from_environ` return these settings in another process."""
        variables = {}
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, tuple):
                value = os.pathsep.join(str(part) for part in value)
            variables[setting.metadata["variable"]] = "" if value is None else str(value)
        return variables

    @classmethod
    def described(cls) -> list[tuple[str, str, str]]:
        """Variable, default and documentation of every setting, in order of declaration."""
        return [
            (s.metadata["variable"], str(s.default or ""), s.metadata["doc"])
            for s in dataclasses.fields(cls)
        ]

    @property
    def limits(self) -> Limits:
        return Limits(body_bytes=self.body_bytes, texts=self.texts, characters=self.characters)
