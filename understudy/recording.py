"""Recording what the language model answered, and answering from a recording.

A recording holds the texts that were asked about: it is a file of user data.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from understudy import language as languages
from understudy.errors import InvalidInput, NotFound
from understudy.prompts import PROMPT_VERSION
from understudy.resources import bundled
from understudy.sample import read_rows
from understudy.teacher import ChatReply

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exchange:
    """One question to the language model and its reply."""

    task: str
    language: str | None
    text: str
    reply: str
    model: str = ""
    prompt_version: str = ""
    #: In the order in which they were offered.
    labels: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_seconds: float = 0.0
    finish_reason: str | None = None
    structured: bool = False
    #: UTC, ISO 8601.
    time: str = ""

    @classmethod
    def of(
        cls, task: str, language: str | None, text: str, labels: Sequence[str], reply: ChatReply
    ) -> Exchange:
        """The exchange that has just ended with `reply`."""
        return cls(
            task=task,
            language=language,
            text=text,
            reply=reply.text,
            model=reply.model,
            prompt_version=PROMPT_VERSION,
            labels=tuple(labels),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            latency_seconds=round(reply.latency_seconds, 6),
            finish_reason=reply.finish_reason,
            structured=reply.structured,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )


class Recorder:
    """Appends every exchange to a JSON Lines file, for `Replay`.

    **The file holds the texts that users sent, word for word**; only its owner may read it. Each
    line is on the disk before `record` returns, and one process writes at a time. A line that a
    crash has cut off is removed when the file is opened again.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or create it.

        Raises:
            InvalidInput: it can't be written, another process records to it, or it is no
                recording.
        """
        self._lock = threading.Lock()
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise InvalidInput(
                f"{path}: {error.strerror}", expected="a file that can be written"
            ) from error
        self._file = os.fdopen(handle, "r+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _mend(self._file, path)
            _sync_directory(path)
        except BlockingIOError as error:
            self._file.close()
            raise InvalidInput(
                f"{path}: another process records to it", expected="a file of one's own"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def record(self, exchange: Exchange) -> None:
        """Append one exchange; safe from any thread. It blocks while the disk writes.

        Raises:
            OSError: the disk is full or fails; nothing is left of the line.
        """
        line = json.dumps(dataclasses.asdict(exchange), ensure_ascii=False).encode(
            "utf-8", "backslashreplace"
        )
        with self._lock:
            before = os.fstat(self._file.fileno()).st_size
            try:
                rest = memoryview(line + b"\n")
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
            except OSError:
                self._file.truncate(before)
                raise

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mend(file: Any, path: Path) -> None:
    """Remove a last line that a crash has cut off; end one that lacks its line break alone."""
    size = os.fstat(file.fileno()).st_size
    tail = _last_line(file, size)
    if not tail:
        return
    if _is_row(tail):
        file.write(b"\n")
        return
    # A file of one odd line is more likely no recording at all.
    if len(tail) == size and not tail.startswith(b"{"):
        raise InvalidInput(f"{path}: not a recording", expected="a JSON Lines file, or a new one")
    file.truncate(size - len(tail))
    _log.warning("%s: removed the last line, which a crash had cut off", path)


def _last_line(file: Any, size: int) -> bytes:
    """What follows the last line break."""
    tail, start = b"", size
    while start > 0 and b"\n" not in tail:
        start = max(0, start - 65_536)
        file.seek(start)
        tail = bytes(file.read(size - start))
    return tail.rpartition(b"\n")[2]


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _sync_directory(path: Path) -> None:
    directory = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Replay:
    """Answers from recordings: what was asked before is answered as it was then."""

    def __init__(self, exchanges: Sequence[Exchange], *, digest: str = "") -> None:
        """Of two exchanges about one text, the later counts."""
        self._replies = {(e.task, e.language, e.text): e for e in exchanges}
        self._languages: dict[tuple[str, str], list[Exchange]] = {}
        for exchange in self._replies.values():
            self._languages.setdefault((exchange.task, exchange.text), []).append(exchange)
        #: Tells one set of recordings from another.
        self.digest = digest

    @classmethod
    def load(cls, *paths: Path, task: str | None = None, language: str | None = None) -> Replay:
        """Read recordings; by default the bundled ones.

        A last line that a crash has cut off is passed over.

        Args:
            task: the task of rows that don't say.
            language: the language of rows that don't say.

        Raises:
            NotFound: no such file.
            InvalidInput: a row is broken; the message gives path, line and the mend.
        """
        if not paths:
            paths = tuple(sorted((bundled("data") / "replies").glob("*.jsonl")))
        tag = None if language is None else languages.canonical(language)
        exchanges: list[Exchange] = []
        digest = hashlib.sha256()
        for path in paths:
            rows = _whole_rows(path)
            exchanges.extend(_exchange(row, where, task, tag) for where, row in rows)
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return cls(exchanges, digest=digest.hexdigest())

    def __len__(self) -> int:
        return len(self._replies)

    def find(self, task: str, language: str | None, text: str) -> Exchange:
        """The exchange about a text; without a language, the one in whichever it was recorded.

        Raises:
            NotFound: the text was never recorded.
            InvalidInput: it was recorded in several languages, and answered differently.
        """
        found = self._replies.get((task, language, text))
        if found is not None:
            return found
        elsewhere = self._languages.get((task, text), [])
        if language is None and elsewhere:
            if len({exchange.reply for exchange in elsewhere}) > 1:
                tags = sorted(str(exchange.language) for exchange in elsewhere)
                raise InvalidInput(
                    "the text is recorded in several languages, with different replies",
                    field="language",
                    expected=f"one of: {', '.join(tags)}",
                )
            return elsewhere[-1]
        tongue = "" if language is None else f" in {language!r}"
        raise NotFound(
            f"no reply to this text is recorded for task {task!r}{tongue}",
            expected="a text from the recordings; 'understudy serve generator --record FILE.jsonl' "
            "with a language model makes new ones",
        )


def _whole_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file, without a last line that a crash has cut off."""
    try:
        yield from read_rows(path)
    except InvalidInput:
        if not path.is_file():
            raise
        content = path.read_bytes()
        head, _, tail = content.rpartition(b"\n")
        # Any other line at fault is a fault of the file.
        if not head or not tail.startswith(b"{") or _is_row(tail) or not _are_rows(head):
            raise
        _log.warning("%s: passed over the last line, which a crash had cut off", path)


def _are_rows(content: bytes) -> bool:
    return all(_is_row(line) for line in content.split(b"\n") if line.strip())


def _exchange(row: dict[str, Any], where: str, task: str | None, language: str | None) -> Exchange:
    example = 'rows such as {"task": …, "language": …, "text": …, "reply": …}'
    # A recording says null where no language was named; a row that says nothing is no recording.
    if "language" not in row and language is None:
        raise InvalidInput(
            f"{where}: the row names no language", field="language", expected=example
        )
    values: dict[str, Any] = {
        "task": row.get("task", task),
        "text": row.get("text"),
        "reply": row.get("reply"),
    }
    for key, value in values.items():
        if not isinstance(value, str) or (not value and key != "reply"):
            raise InvalidInput(
                f"{where}: {key!r} is {'missing' if value is None else 'empty or not a string'}",
                field=key,
                expected=example,
            )
    tag = row.get("language", language)
    try:
        tag = None if tag is None else languages.canonical(tag)
    except InvalidInput as error:
        raise InvalidInput(
            f"{where}: {error.detail}", field="language", expected=error.expected
        ) from None
    finish_reason, model = row.get("finish_reason"), row.get("model")
    prompt_tokens, completion_tokens = row.get("prompt_tokens"), row.get("completion_tokens")
    return Exchange(
        language=tag,
        model=model if isinstance(model, str) else "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        prompt_tokens=prompt_tokens if isinstance(prompt_tokens, int) else None,
        completion_tokens=completion_tokens if isinstance(completion_tokens, int) else None,
        **values,
    )
