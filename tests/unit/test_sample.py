from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.errors import InvalidInput, NotFound
from understudy.resources import bundled
from understudy.sample import (
    Sample,
    bundled_paths,
    bundled_samples,
    fingerprint,
    is_held_out,
    read_samples,
    write_samples,
)
from understudy.task import load_tasks

ROWS = [
    Sample("Rais amehutubia bunge", "politics", provenance={"model": "m", "round": 2}),
    Sample("mpira", "sports", "keyword"),
    Sample("Ein Zug, „schnell“\tund\u2028lang", "travel", provenance={"seed": None}),
]
PAIRS = [(task.name, tag) for task in load_tasks().values() for tag in task.languages]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_held_out_rule_is_the_documented_one(text: str) -> None:
    assert is_held_out(text) == (int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16) % 8 == 0)


def test_known_texts_stay_on_their_side_of_the_split() -> None:
    # Were these to change, bundles that exist would be judged on texts they have learnt.
    assert [text for text in ("bunge", "mpira", "safari", "ziwa") if is_held_out(text)] == [
        "bunge",
        "safari",
    ]


def test_samples_come_back_as_they_were_written_provenance_and_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_samples(path, ROWS)
    read = read_samples(path)
    assert read == ROWS
    assert [sample.provenance for sample in read] == [sample.provenance for sample in ROWS]
    assert len(path.read_bytes().splitlines()) == len(ROWS)


def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a", "label": "x"}\r\n\r\n{"text": "b", "label": "y"}')
    assert read_samples(path) == [Sample("a", "x"), Sample("b", "y")]


# Each row: the second line of the file, and what the message must say.
BROKEN = [
    (b"{", "not JSON"),
    (b"not json", "not JSON"),
    (b"[1]", "not an object"),
    (b'"text"', "not an object"),
    (b'{"text": "\xff", "label": "politics"}', "not UTF-8"),
    (b'{"label": "politics"}', "'text' is missing"),
    (b'{"text": "a"}', "'label' is missing"),
    (b'{"text": " ", "label": "politics"}', "'text' is empty or not a string"),
    (b'{"text": 5, "label": "politics"}', "'text' is empty or not a string"),
    (b'{"text": "a", "label": null}', "'label' is empty or not a string"),
    (b'{"text": "a\\ud800", "label": "politics"}', "a lone surrogate at character 1"),
    (b'{"text": "a", "label": "polotics"}', "did you mean 'politics'?"),
    (b'{"text": "a", "label": "politics", "kind": "word"}', "unknown kind 'word'"),
]


@pytest.mark.parametrize(("line", "says"), BROKEN)
def test_a_broken_row_is_refused_with_path_line_and_mend(
    line: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a", "label": "politics"}\n' + line + b"\n")
    with pytest.raises(InvalidInput) as refused:
        read_samples(path, load_tasks().find("topic").label_names)
    assert refused.value.detail.startswith(f"{path}:2: ")
    assert says in refused.value.detail
    assert refused.value.expected


def test_a_row_nested_without_end_is_refused_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(InvalidInput, match=r"rows\.jsonl:1: not JSON"):
        read_samples(path)


def test_a_file_that_is_missing_or_has_no_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file .*nowhere\.jsonl"):
        read_samples(tmp_path / "nowhere.jsonl")
    with pytest.raises(InvalidInput, match="Is a directory"):
        read_samples(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(InvalidInput, match=r"empty\.jsonl: no rows"):
        read_samples(empty)


def test_the_fingerprint_ignores_order_and_provenance_and_nothing_else() -> None:
    assert fingerprint(ROWS) == fingerprint(ROWS[::-1])
    assert fingerprint(ROWS) == fingerprint([replace(row, provenance={}) for row in ROWS])
    changed = [
        ROWS[:2],
        [*ROWS, ROWS[0]],
        [replace(ROWS[0], label="sports"), *ROWS[1:]],
        [replace(ROWS[0], text="Rais"), *ROWS[1:]],
        [replace(ROWS[0], kind="keyword"), *ROWS[1:]],
    ]
    assert len({fingerprint(rows) for rows in [ROWS, *changed]}) == len(changed) + 1


@pytest.mark.parametrize(("task", "language"), PAIRS)
def test_the_bundled_data_reads_and_has_every_label_on_both_sides(task: str, language: str) -> None:
    known = load_tasks().find(task)
    samples = bundled_samples(known, language, keywords=False)
    assert all(sample.kind == "sentence" for sample in samples)
    for held_out in (False, True):
        side = {sample.label for sample in samples if sample.held_out == held_out}
        assert side == set(known.label_names)


def test_every_bundled_file_belongs_to_a_task_and_language_and_keywords_are_keywords() -> None:
    data = bundled("data")
    known = {path for task, tag in PAIRS for path in bundled_paths(task, tag)}
    there = {p for p in data.rglob("*.jsonl") if "replies" not in p.relative_to(data).parts}
    assert there == known
    keyword_files = [path for path in known if "keywords" in path.parts]
    assert len(keyword_files) == 33
    for path in keyword_files:
        assert {sample.kind for sample in read_samples(path)} == {"keyword"}


def test_a_task_without_bundled_data_says_so() -> None:
    topic = load_tasks().find("topic")
    with pytest.raises(NotFound, match="no bundled data for task 'topic' in 'xx'"):
        bundled_samples(topic, "xx")


def test_the_data_card_counts_what_is_there() -> None:
    card = (bundled("data") / "README.md").read_text(encoding="utf-8")
    actual = {
        (task, tag): tuple(_rows(path) for path in bundled_paths(task, tag)) for task, tag in PAIRS
    }
    assert _table_of(card) == actual
    size = re.search(r"([\d,]+) sentences, ([\d,]+) keywords, ([\d,]+) replies", card)
    assert size is not None
    assert [int(number.replace(",", "")) for number in size.groups()] == [
        sum(counts[0] for counts in actual.values()),
        sum(sum(counts[1:]) for counts in actual.values()),
        sum(_rows(path) for path in (bundled("data") / "replies").glob("*.jsonl")),
    ]


def _rows(path: Path) -> int:
    return sum(1 for line in path.read_bytes().split(b"\n") if line.strip())


def _table_of(card: str) -> dict[tuple[str, str], tuple[int, ...]]:
    """(task, language) -> sentences and, where there are any, keywords."""
    counts: dict[tuple[str, str], tuple[int, ...]] = {}
    tasks: list[str] = []
    for line in card.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "" and "topic" in cells:
            tasks = cells[1:]
        elif tag := re.fullmatch(r"`([a-z]{2})`", cells[0]):
            for task, cell in zip(tasks, cells[1:], strict=True):
                if numbers := re.findall(r"\d+", cell):
                    counts[task, tag[1]] = tuple(int(number) for number in numbers)
    return counts
