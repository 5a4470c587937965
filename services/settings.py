"""What a serving process reads from its environment. Each setting's documentation is its
declaration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from understudy import language as languages
from understudy.api import Limits
from understudy.errors import InvalidInput, UnderstudyError

_DEFAULT = Limits()


@dataclass(frozen=True)
class Setting:
    """How one field of `ServeSettings` is read from the environment."""

    variable: str
    parse: Callable[[str], Any]
    doc: str


def _text(value: str) -> str:
    return value


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

    host: Annotated[
        str,
        Setting(
            "UNDERSTUDY_HOST",
            _text,
            "Address to listen on, 0.0.0.0 for every interface. Under 'bentoml serve' it is "
            "gRPC's alone; HTTP has '--host' there.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Setting(
            "UNDERSTUDY_PORT",
            _whole(0, 65535),
            "Port of HTTP, 0 for a free one. Under 'bentoml serve' it is '--port' instead.",
        ),
    ] = 3000
    grpc_port: Annotated[
        int, Setting("UNDERSTUDY_GRPC_PORT", _whole(0, 65535), "Port of gRPC, 0 for a free one.")
    ] = 50051
    language: Annotated[
        str | None,
        Setting(
            "UNDERSTUDY_LANGUAGE",
            languages.canonical,
            "BCP-47 tag of the language that a student serves.",
        ),
    ] = None
    bundles: Annotated[
        Path | None,
        Setting(
            "UNDERSTUDY_BUNDLES",
            _path,
            "Directory of student bundles: <language>/<task>/ or <task>/ below it, or one bundle.",
        ),
    ] = None
    replay: Annotated[
        tuple[Path, ...],
        Setting(
            "UNDERSTUDY_REPLAY",
            _paths,
            f"Recordings that the generator answers from, separated by {os.pathsep!r}.",
        ),
    ] = ()
    record: Annotated[
        Path | None,
        Setting("UNDERSTUDY_RECORD", _path, "File to which the generator appends every exchange."),
    ] = None
    body_bytes: Annotated[
        int,
        Setting(
            "UNDERSTUDY_MAX_BODY_BYTES",
            _whole(1),
            "Largest HTTP body or gRPC message, in bytes.",
        ),
    ] = _DEFAULT.body_bytes
    texts: Annotated[
        int, Setting("UNDERSTUDY_MAX_TEXTS", _whole(1), "Most texts in one request.")
    ] = _DEFAULT.texts
    characters: Annotated[
        int, Setting("UNDERSTUDY_MAX_CHARACTERS", _whole(1), "Longest text, in characters.")
    ] = _DEFAULT.characters
    queue_texts: Annotated[
        int,
        Setting(
            "UNDERSTUDY_QUEUE_TEXTS",
            _whole(1),
            "Texts that may wait for a student; past it a request is refused at once.",
        ),
    ] = 4_096
    timeout: Annotated[
        float,
        Setting(
            "UNDERSTUDY_TIMEOUT",
            _seconds,
            "Seconds in which a student answers a request, waiting included.",
        ),
    ] = 30.0
    threads: Annotated[
        int,
        Setting(
            "UNDERSTUDY_THREADS", _whole(1), "Threads with which a student computes one batch."
        ),
    ] = 1
    stream_window: Annotated[
        int,
        Setting(
            "UNDERSTUDY_STREAM_WINDOW",
            _whole(1),
            "Requests of one ClassifyStream that are answered at a time.",
        ),
    ] = 8
    grace: Annotated[
        float,
        Setting(
            "UNDERSTUDY_GRACE",
            _seconds,
            "Seconds that requests in flight have to finish after SIGTERM.",
        ),
    ] = 25.0

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> ServeSettings:
        """Read the settings; an unset or empty variable leaves its default.

        Raises:
            InvalidInput: a variable's value can't be right; the error names the variable.
        """
        values: dict[str, Any] = {}
        for name, setting in _declared():
            if text := environ.get(setting.variable, ""):
                try:
                    values[name] = setting.parse(text)
                except UnderstudyError as error:
                    raise InvalidInput(
                        f"{error.detail} can't be used",
                        field=setting.variable,
                        expected=error.expected,
                    ) from error
        return cls(**values)

    def to_environ(self) -> dict[str, str]:
        """The variables that make `from_environ` return these settings in another process."""
        variables = {}
        for name, setting in _declared():
            value = getattr(self, name)
            if isinstance(value, tuple):
                value = os.pathsep.join(str(part) for part in value)
            variables[setting.variable] = "" if value is None else str(value)
        return variables

    @classmethod
    def described(cls) -> list[tuple[str, str, str]]:
        """Variable, default and documentation of every setting, in order of declaration."""
        default = cls().to_environ()
        return [(s.variable, default[s.variable], s.doc) for _, s in _declared()]

    @property
    def limits(self) -> Limits:
        return Limits(body_bytes=self.body_bytes, texts=self.texts, characters=self.characters)


def _declared() -> list[tuple[str, Setting]]:
    hints = get_type_hints(ServeSettings, include_extras=True)
    return [(name, hint.__metadata__[0]) for name, hint in hints.items()]
