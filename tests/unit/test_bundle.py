from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from understudy.bundle import (
    INFO,
    MODEL,
    TOKENIZER,
    BundleInfo,
    Golden,
    StudentBundle,
    find_bundles,
    write_bundle,
)
from understudy.errors import BundleError
from understudy.model import StudentModel

INFO_OF_NOTHING = BundleInfo(
    task="mood",
    language="sw",
    labels=("glad", "grim"),
    kind="ngram",
    source="embedded",
    max_length=8,
    golden=(Golden("raha", "glad", (1.0, -1.0)), Golden("huzuni", "grim", (-1.0, 1.0))),
)


def write(path: Path, *, model: bytes = b"model", info: BundleInfo = INFO_OF_NOTHING) -> Path:
    return write_bundle(path, info, model=model, tokenizer='{"näh": 1}').path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change bundle.json."""
    content = json.loads((path / INFO).read_text(encoding="utf-8"))
    change(content)
    (path / INFO).write_text(json.dumps(content), encoding="utf-8")


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_what_is_written_is_what_opens(tmp_path: Path) -> None:
    opened = StudentBundle.open(write(tmp_path / "new" / "mood"))
    assert replace(opened.info, files={}) == INFO_OF_NOTHING
    assert opened.info.files == {
        name: hashlib.sha256((opened.path / name).read_bytes()).hexdigest()
        for name in (MODEL, TOKENIZER)
    }
    assert (opened.path / TOKENIZER).read_text(encoding="utf-8") == '{"näh": 1}'
    assert everything_under(tmp_path) == {
        "new",
        "new/mood",
        *(f"new/mood/{name}" for name in (INFO, MODEL, TOKENIZER)),
    }


def test_a_service_under_another_user_may_read_it(tmp_path: Path) -> None:
    assert write(tmp_path / "mood").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, INFO])
def test_a_flipped_byte_in_any_file_is_caught(name: str, bundle_copy: Path) -> None:
    data = bytearray((bundle_copy / name).read_bytes())
    # In bundle.json, a byte of the temperature's, the labels' or a golden text's would be seen by
    # the golden inputs or not at all; a hash is what this test flips.
    place = data.index(b'"model.onnx": "') + 20 if name == INFO else len(data) // 2
    data[place] ^= 0x01
    (bundle_copy / name).write_bytes(data)
    with pytest.raises(BundleError) as refused:
        StudentBundle.open(bundle_copy)
    assert refused.value.field == (MODEL if name == INFO else name)
    assert "SHA-256" in refused.value.detail


def test_permuted_labels_are_caught_by_the_golden_inputs(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda content: content["labels"].reverse())
    with pytest.raises(BundleError, match=r"'food' is .* 'weather'"):
        StudentModel.load(bundle_copy)


@pytest.mark.parametrize("name", [MODEL, TOKENIZER, INFO])
def test_a_missing_file_is_named(name: str, bundle_copy: Path) -> None:
    (bundle_copy / name).unlink()
    with pytest.raises(BundleError) as refused:
        StudentBundle.open(bundle_copy)
    assert refused.value.detail == f"{bundle_copy / name}: No such file or directory"


MALFORMED: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("a later format", lambda c: c.update(format_version=2), "format version 2"),
    ("no format", lambda c: c.pop("format_version"), "format version None"),
    ("no labels", lambda c: c.pop("labels"), "lacks labels"),
    ("no golden inputs", lambda c: c.pop("golden"), "lacks golden"),
    ("an empty list of golden inputs", lambda c: c.update(golden=[]), "golden is ()"),
    ("one label", lambda c: c.update(labels=["glad"]), "labels is"),
    ("a label twice", lambda c: c.update(labels=["glad", "glad"]), "labels is"),
    ("no room for a text", lambda c: c.update(max_length=0), "max_length is 0"),
    ("no room for a batch", lambda c: c.update(batch_tokens=0), "batch_tokens is 0"),
    ("a temperature of nought", lambda c: c.update(temperature=0), "temperature is 0"),
    ("no temperature", lambda c: c.update(temperature=float("nan")), "temperature is nan"),
    ("a temperature in words", lambda c: c.update(temperature="warm"), "temperature is"),
    ("another activation", lambda c: c.update(activation="sigmoid"), "activation is 'sigmoid'"),
    ("a file too many", lambda c: c["files"].update({"../x": "0"}), "files is"),
    ("a golden input short of a logit", lambda c: c["golden"][0]["logits"].pop(), "doesn't fit"),
    ("a golden input of a stranger", lambda c: c["golden"][0].update(label="x"), "doesn't fit"),
    ("labels that are a number", lambda c: c.update(labels=5), "labels is"),
]


@pytest.mark.parametrize(
    ("change", "says"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED]
)
def test_a_bundle_json_that_cannot_be_right_is_refused_with_its_path(
    change: Callable[[dict[str, Any]], object], says: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "mood")
    edit(path, change)
    with pytest.raises(BundleError) as refused:
        StudentBundle.open(path)
    assert refused.value.detail.startswith(f"{path / INFO}: ")
    assert says in refused.value.detail


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(files=[MODEL, TOKENIZER]),
        lambda c: c.update(labels="ab", golden=[c["golden"][0] | {"label": "a"}]),
        lambda c: c.update(max_length=1.5),
        lambda c: c.update(language=None),
    ],
    ids=["files as a list", "labels as a string", "half a token", "no language"],
)
def test_a_value_of_a_wrong_type_is_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    path = write(tmp_path / "mood")
    edit(path, change)
    with pytest.raises(BundleError):
        StudentBundle.open(path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"null", b""])
def test_a_bundle_json_that_is_no_object_is_refused(content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "mood")
    (path / INFO).write_bytes(content)
    with pytest.raises(BundleError, match="not "):
        StudentBundle.open(path)


def test_what_a_later_release_adds_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "mood")
    edit(path, lambda content: content.update(novelty=1))
    assert StudentBundle.open(path).info.task == "mood"


def test_info_that_cannot_be_right_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="golden"):
        write(tmp_path / "mood", info=replace(INFO_OF_NOTHING, golden=()))
    assert everything_under(tmp_path) == set()


class Killed(BaseException):
    """As a KeyboardInterrupt is: no Exception."""


def die_on_call(number: int, real: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def stand_in(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Killed
        return real(*arguments, **options)

    return stand_in


@pytest.mark.parametrize("written", [1, 2, 3])
@pytest.mark.parametrize("old", [True, False])
def test_a_write_that_dies_in_the_middle_leaves_nothing_or_the_old_bundle(
    written: int, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mood"
    if old:
        write(path, model=b"old")
    before = everything_under(tmp_path)
    monkeypatch.setattr(os, "fsync", die_on_call(written, os.fsync))
    with pytest.raises(Killed):
        write(path, model=b"new")
    assert everything_under(tmp_path) == before
    if old:
        assert StudentBundle.open(path).info.files[MODEL] == hashlib.sha256(b"old").hexdigest()


@pytest.mark.parametrize("call", [1, 2])
def test_a_swap_that_fails_keeps_the_old_bundle_and_leaves_no_litter(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "mood", model=b"old")
    before = everything_under(tmp_path)
    monkeypatch.setattr(Path, "rename", die_on_call(call, Path.rename))
    with pytest.raises(Killed):
        write(path, model=b"new")
    assert StudentBundle.open(path).info.files[MODEL] == hashlib.sha256(b"old").hexdigest()
    assert everything_under(tmp_path) == before


def test_nobody_who_looks_while_it_is_written_sees_half_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Path]] = []
    real = os.fsync

    def look(descriptor: int) -> None:
        seen.append(find_bundles(tmp_path))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    path = write(tmp_path / "mood")
    assert seen == [[], [], []]
    assert find_bundles(tmp_path) == [path]


def test_writing_again_replaces_the_bundle_and_its_version(tmp_path: Path) -> None:
    path = write(tmp_path / "mood", model=b"old")
    version = StudentBundle.open(path).info.version
    write(path, model=b"new")
    assert StudentBundle.open(path).info.version != version
    assert everything_under(tmp_path) == {"mood", *(f"mood/{n}" for n in (INFO, MODEL, TOKENIZER))}


@pytest.mark.parametrize("kind", ["folder", "bundle with notes", "folder of bundles", "file"])
def test_what_would_be_lost_is_not_overwritten(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mood"
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder of bundles":
        write(path / "en" / "mood")
    else:
        if kind == "bundle with notes":
            write(path)
        path.mkdir(exist_ok=True)
        (path / "thesis.txt").write_text("mine")
    before = everything_under(tmp_path)
    with pytest.raises(BundleError, match=r"mood (is no directory|holds '(thesis.txt|en)')"):
        write(path)
    assert everything_under(tmp_path) == before


def test_an_empty_folder_is_a_place_for_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "mood").mkdir()
    assert StudentBundle.open(write(tmp_path / "mood")).path == tmp_path / "mood"


def test_a_bundle_that_lost_its_description_is_found_out(tmp_path: Path) -> None:
    write(tmp_path / "en" / "mood")
    (write(tmp_path / "en" / "tone") / INFO).unlink()
    with pytest.raises(BundleError, match=r"tone has lost its bundle\.json"):
        find_bundles(tmp_path, "en")


def test_equal_versions_mean_equal_answers_and_nothing_else_counts(tmp_path: Path) -> None:
    info = StudentBundle.open(write(tmp_path / "mood")).info
    assert replace(info, created="later", metrics={"x": 1}, data={"y": 2}).version == info.version
    changed = [
        replace(info, labels=info.labels[::-1]),
        replace(info, temperature=2.0),
        replace(info, max_length=9),
        replace(info, files={**info.files, MODEL: "0" * 64}),
    ]
    assert len({other.version for other in [info, *changed]}) == len(changed) + 1


def test_bundles_are_found_in_every_layout_and_by_language(tmp_path: Path) -> None:
    nested = write(tmp_path / "sw" / "mood")
    flat = write(tmp_path / "mood-en", info=replace(INFO_OF_NOTHING, language="en"))
    (tmp_path / ".mood.half").mkdir()
    (tmp_path / ".mood.half" / INFO).write_text("{}")
    write(tmp_path / "too" / "far" / "down")
    assert find_bundles(tmp_path) == [flat, nested]
    assert find_bundles(tmp_path, "sw") == [nested]
    assert find_bundles(tmp_path, "cy") == []
    assert find_bundles(nested) == [nested]
    assert find_bundles(tmp_path / "nowhere") == []
