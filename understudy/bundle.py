"""The student bundle: the artefact that training leaves and services load.

A directory that any of the field's tools can open::

    model.onnx       input_ids, attention_mask: int64 [batch, length]
                     → logits: float32 [batch, labels]
    tokenizer.json   Hugging Face tokenizers
    bundle.json      what the two are, and what they must compute: see `BundleInfo`

It is written beside its place and renamed, so nobody sees half of one; every file has its SHA-256;
and golden inputs, one for each label, tie the order of the logits to the labels' names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from understudy.errors import BundleError

FORMAT_VERSION = 1
MODEL = "model.onnx"
TOKENIZER = "tokenizer.json"
INFO = "bundle.json"
_FILES = frozenset({MODEL, TOKENIZER, INFO})


@dataclass(frozen=True)
class Golden:
    """A text, the logits that the student gives it, and the label that those mean."""

    text: str
    label: str
    logits: tuple[float, ...]


@dataclass(frozen=True)
class BundleInfo:
    """The content of ``bundle.json``.

    Attributes:
        labels: in the order of the logits.
        kind: kind of student, ``ngram`` or ``encoder``.
        source: what it was made from: ``embedded``, a hub name, a directory.
        recipe: hyper-parameters and versions that made it.
        max_length: longest input in tokens; the rest is cut.
        batch_tokens: padded tokens that one run of the model should take, as measured.
        activation: ``softmax`` over the labels, after the logits are divided by the temperature.
        temperature: calibration by temperature scaling (Guo et al., ICML 2017).
        precision: ``type`` (fp32, fp16, int8) and ``why``.
        files: SHA-256 of each file.
        data: fingerprint, counts and sources of the training data.
        metrics: figures on held-out data, with 95 % intervals.
        golden: recomputed whenever the bundle is loaded.
    """

    task: str
    language: str
    labels: tuple[str, ...]
    kind: str
    source: str
    max_length: int
    golden: tuple[Golden, ...]
    temperature: float = 1.0
    activation: str = "softmax"
    batch_tokens: int = 256
    precision: Mapping[str, str] = field(default_factory=lambda: {"type": "fp32", "why": "default"})
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.task}-{self.language}"

    @property
    def version(self) -> str:
        """Digest of everything that an answer depends on: equal versions answer equally."""
        decides = [dict(sorted(self.files.items())), self.labels, self.temperature, self.max_length]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, content: object, where: str) -> Self:
        """Check the decoded content of ``bundle.json``.

        Raises:
            BundleError: a field is missing or can't be right; the message names it.
        """
        if not isinstance(content, dict):
            raise BundleError(f"{where}: not a JSON object")
        if (version := content.get("format_version")) != FORMAT_VERSION:
            raise BundleError(
                f"{where}: format version {version!r}",
                field="format_version",
                expected=f"{FORMAT_VERSION}, which this release reads",
            )
        known = {f.name for f in fields(cls)}
        required = {"task", "language", "labels", "kind", "source", "max_length", "golden", "files"}
        if missing := sorted(required - content.keys()):
            raise BundleError(f"{where}: lacks {', '.join(missing)}", field=missing[0])
        values = {key: value for key, value in content.items() if key in known}
        for key, value in values.items():
            kinds = _KINDS[key]
            # To Python a boolean is a whole number; to whoever wrote the file it isn't.
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise BundleError(
                    f"{where}: {key} is a {type(value).__name__}",
                    field=key,
                    expected=" or ".join(kind.__name__ for kind in kinds),
                )
        try:
            values["labels"] = tuple(str(label) for label in values["labels"])
            values["golden"] = tuple(
                Golden(str(g["text"]), str(g["label"]), tuple(float(x) for x in g["logits"]))
                for g in values["golden"]
            )
            info = cls(**values)
            info._check(where)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BundleError(f"{where}: malformed: {error!r}") from error
        return info

    def _check(self, where: str) -> None:
        def require(condition: bool, name: str, expected: str) -> None:
            if not condition:
                value = getattr(self, name)
                raise BundleError(f"{where}: {name} is {value!r}", field=name, expected=expected)

        require(
            len(set(self.labels)) == len(self.labels) >= 2, "labels", "two or more, all different"
        )
        require(self.max_length >= 1, "max_length", "1 or more")
        require(self.batch_tokens >= 1, "batch_tokens", "1 or more")
        require(1e-3 <= self.temperature <= 1e3, "temperature", "0.001 to 1000")
        require(self.activation == "softmax", "activation", "'softmax'")
        require(set(self.files) == {MODEL, TOKENIZER}, "files", f"{MODEL!r} and {TOKENIZER!r}")
        require(len(self.golden) >= 1, "golden", "one golden input or more")
        for golden in self.golden:
            if golden.label not in self.labels or len(golden.logits) != len(self.labels):
                raise BundleError(
                    f"{where}: a golden input doesn't fit the labels",
                    field="golden",
                    expected=f"a label of the bundle and {len(self.labels)} logits",
                )


#: What JSON has for each field of `BundleInfo`.
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("task", "language", "kind", "source", "activation", "created"), (str,)),
    **dict.fromkeys(("format_version", "max_length", "batch_tokens"), (int,)),
    **dict.fromkeys(("precision", "recipe", "data", "metrics", "files"), (dict,)),
    **dict.fromkeys(("labels", "golden"), (list,)),
    "temperature": (int, float),
}


@dataclass(frozen=True)
class StudentBundle:
    """A bundle on disk: its ``bundle.json`` reads well, its files are as they were written."""

    path: Path
    info: BundleInfo

    @classmethod
    def open(cls, path: Path) -> StudentBundle:
        """Open a bundle and check its files against their SHA-256.

        Raises:
            BundleError: it is missing, incomplete, damaged or of another format.
        """
        info = read_info(path)
        for name, expected in info.files.items():
            try:
                actual = _sha256((path / name).read_bytes())
            except OSError as error:
                raise BundleError(f"{path / name}: {error.strerror}", field=name) from error
            if actual != expected:
                raise BundleError(
                    f"{path / name}: SHA-256 is {actual[:12]}…, bundle.json says {expected[:12]}…",
                    field=name,
                    expected="the file as it was written; train or copy the bundle again",
                )
        return cls(path, info)


def read_info(path: Path) -> BundleInfo:
    """Read a bundle's ``bundle.json`` and leave its other files alone.

    Raises:
        BundleError: it is missing or can't be right.
    """
    info_path = path / INFO
    try:
        content = json.loads(info_path.read_bytes())
    except OSError as error:
        raise BundleError(
            f"{info_path}: {error.strerror}", expected="a student bundle's directory"
        ) from error
    except ValueError as error:
        raise BundleError(f"{info_path}: not JSON: {error}") from error
    return BundleInfo.from_json(content, str(info_path))


def write_bundle(path: Path, info: BundleInfo, *, model: bytes, tokenizer: str) -> StudentBundle:
    """Write a bundle so that it is seen whole or not at all; an older one there is replaced.

    Replacing takes two renames, between which nothing stands at the path.

    Args:
        info: without `files`, which are filled in here.

    Raises:
        BundleError: the info can't be right, or something that isn't a bundle stands at `path`.
        OSError: the disk refuses.
    """
    contents = {MODEL: model, TOKENIZER: tokenizer.encode()}
    content = asdict(info) | {"files": {name: _sha256(data) for name, data in contents.items()}}
    content = json.loads(json.dumps(content))
    info = BundleInfo.from_json(content, str(path / INFO))
    refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        contents[INFO] = json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
        for name, data in contents.items():
            with (fresh / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        fresh.chmod(0o755)
        _swap_in(fresh, path)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return StudentBundle(path, info)


def refuse_foreign(path: Path) -> None:
    """Make sure that a bundle may be written at a path.

    Raises:
        BundleError: something that isn't a bundle stands there.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise BundleError(f"{path} is no directory", expected="a new or a bundle's directory")
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _FILES)
    if foreign:
        raise BundleError(
            f"{path} holds {foreign[0]!r}, which is no part of a bundle and would be lost",
            expected="a new, an empty or a bundle's directory",
        )


def find_bundles(root: Path, language: str | None = None) -> list[Path]:
    """Bundle directories at or below a root, at most two levels down, in alphabetical order.

    Both layouts are found: ``<root>/<language>/<task>`` and ``<root>/<task>``, and the root itself.

    Args:
        language: when given, only bundles of that language.

    Raises:
        BundleError: a bundle's ``bundle.json`` is missing or can't be right.
    """
    candidates: Sequence[Path] = [root, *sorted(root.glob("*")), *sorted(root.glob("*/*"))]
    found = []
    for path in candidates:
        if path.name.startswith("."):
            continue
        if (path / INFO).is_file():
            found.append(path)
        elif (path / MODEL).is_file():
            # A task must not vanish from a service in silence.
            raise BundleError(f"{path} has lost its {INFO}", expected="a whole bundle, or none")
    if language is None:
        return found
    return [path for path in found if read_info(path).language == language]


def _swap_in(fresh: Path, path: Path) -> None:
    if not path.exists():
        fresh.rename(path)
        return
    attic = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    old = attic / "old"
    try:
        path.rename(old)
        try:
            fresh.rename(path)
        except BaseException:
            old.rename(path)
            raise
    finally:
        shutil.rmtree(attic, ignore_errors=True)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
