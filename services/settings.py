"""What a serving process reads from its environment."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from understudy import environment
from understudy import language as languages
from understudy.api import Limits
from understudy.environment import number, setting

_DEFAULT = Limits()


def _path(value: str) -> Path:
    return Path(value).expanduser()


def _paths(value: str) -> tuple[Path, ...]:
    return tuple(_path(part) for part in value.split(os.pathsep) if part)


@dataclass(frozen=True)
class ServeSettings:
    """Settings of one serving process; `from_environ` reads them."""

    host: str = setting(
        "UNDERSTUDY_HOST",
        "127.0.0.1",
        str,
        "Address to listen on, 0.0.0.0 for every interface. Under 'bentoml serve' it is "
        "gRPC's alone; HTTP has '--host' there.",
    )
    port: int = setting(
        "UNDERSTUDY_PORT",
        3000,
        number(0, 65535, whole=True),
        "Port of HTTP, 0 for a free one. Under 'bentoml serve' it is '--port' instead.",
    )
    grpc_port: int = setting(
        "UNDERSTUDY_GRPC_PORT",
        50051,
        number(0, 65535, whole=True),
        "Port of gRPC, 0 for a free one.",
    )
    language: str | None = setting(
        "UNDERSTUDY_LANGUAGE",
        None,
        languages.canonical,
        "BCP-47 tag of the language that a student serves.",
    )
    bundles: Path | None = setting(
        "UNDERSTUDY_BUNDLES",
        None,
        _path,
        "Directory of student bundles: <language>/<task>/ or <task>/ below it, or one bundle.",
    )
    replay: tuple[Path, ...] = setting(
        "UNDERSTUDY_REPLAY",
        (),
        _paths,
        f"Recordings that the generator answers from, separated by {os.pathsep!r}.",
    )
    record: Path | None = setting(
        "UNDERSTUDY_RECORD", None, _path, "File to which the generator appends every exchange."
    )
    body_bytes: int = setting(
        "UNDERSTUDY_MAX_BODY_BYTES",
        _DEFAULT.body_bytes,
        number(1, whole=True),
        "Largest HTTP body or gRPC message, in bytes.",
    )
    texts: int = setting(
        "UNDERSTUDY_MAX_TEXTS", _DEFAULT.texts, number(1, whole=True), "Most texts in one request."
    )
    characters: int = setting(
        "UNDERSTUDY_MAX_CHARACTERS",
        _DEFAULT.characters,
        number(1, whole=True),
        "Longest text, in characters.",
    )
    queue_texts: int = setting(
        "UNDERSTUDY_QUEUE_TEXTS",
        4096,
        number(1, whole=True),
        "Texts that may wait for a student; past it a request is refused at once.",
    )
    timeout: float = setting(
        "UNDERSTUDY_TIMEOUT",
        30.0,
        number(0),
        "Seconds in which a student answers a request, waiting included.",
    )
    threads: int = setting(
        "UNDERSTUDY_THREADS",
        1,
        number(1, whole=True),
        "Threads with which a student computes one batch.",
    )
    stream_window: int = setting(
        "UNDERSTUDY_STREAM_WINDOW",
        8,
        number(1, whole=True),
        "Requests of one ClassifyStream that are answered at a time.",
    )
    grace: float = setting(
        "UNDERSTUDY_GRACE",
        25.0,
        number(0),
        "Seconds that requests in flight have to finish after SIGTERM.",
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> ServeSettings:
        """Read the settings; an unset or empty variable leaves its default.

        Raises:
            InvalidInput: a variable's value can't be right; the error names the variable.
        """
        return cls(**environment.read(cls, environ))

    def to_environ(self) -> dict[str, str]:
        """The variables that make `from_environ` return these settings in another process."""
        variables = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                value = os.pathsep.join(str(part) for part in value)
            variables[field.metadata["variable"]] = "" if value is None else str(value)
        return variables

    @property
    def limits(self) -> Limits:
        return Limits(body_bytes=self.body_bytes, texts=self.texts, characters=self.characters)
