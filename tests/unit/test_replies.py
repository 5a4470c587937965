from __future__ import annotations

import json
from pathlib import Path

import pytest

from understudy.errors import InvalidInput, NotFound
from understudy.replies import score_replies
from understudy.task import load_tasks

TASKS = load_tasks()
SENTIMENT = TASKS["sentiment"]
SHARED = Path(__file__).parents[3] / "shared" / "data" / "llm-replies"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the shared data are not here: {SHARED}"
)


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(label: str, reply: object, **more: object) -> dict[str, object]:
    return {"text": "t", "label": label, "reply": reply} | more


def test_invalid_replies_are_wrong_and_shown_apart(tmp_path: Path) -> None:
    path = write(
        tmp_path / "sw.jsonl",
        row("positive", "positive"),
        row("positive", "It is not positive."),
        row("negative", "both positive and negative"),
        row("negative", "negative"),
    )
    report = score_replies(SENTIMENT, [path])
    (only,) = report.rows
    assert (report.task, only.language, only.n) == ("sentiment", "sw", 4)
    assert (only.all.accuracy, only.valid.accuracy) == (0.5, 1.0)
    # Each label: one found of two, none wrongly.
    assert only.all.macro_f1 == pytest.approx(2 / 3)
    assert (only.valid.n, only.valid.macro_f1) == (2, 1.0)
    assert (only.no_label, only.several_labels) == (1, 1)
    assert (only.no_label_rate, only.several_labels_rate, only.invalid_rate) == (0.25, 0.25, 0.5)


def test_languages_weigh_the_same_in_the_mean(tmp_path: Path) -> None:
    german = write(tmp_path / "de.jsonl", *[row("positive", "positive")] * 3)
    swahili = write(tmp_path / "sw.jsonl", row("positive", "no idea"))
    report = score_replies(SENTIMENT, [swahili, german])
    assert [r.language for r in report.rows] == ["de", "sw"]
    assert report.mean.n == 4
    assert report.mean.accuracy == 0.5
    assert report.mean.invalid_rate == 0.5
    assert report.rows[1].valid.n == 0
    assert report.rows[1].valid.accuracy == 0.0


def test_a_row_may_name_its_language(tmp_path: Path) -> None:
    path = write(
        tmp_path / "replies of today.jsonl",
        row("positive", "positive", language="sw-KE"),
        row("positive", "positive", language="de"),
    )
    assert [r.language for r in score_replies(SENTIMENT, [path]).rows] == ["de", "sw"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row("neutral", "positive"), "the label is 'neutral'"),
        ({"text": "t", "reply": "positive"}, "the label is missing"),
        (row("positive", None), "the reply is missing"),
        (row("positive", "positive", language="?"), "which language"),
    ],
)
def test_a_broken_row_is_refused_with_its_place(
    tmp_path: Path, bad: dict[str, object], says: str
) -> None:
    path = write(tmp_path / "sw.jsonl", row("positive", "positive"), bad)
    with pytest.raises(InvalidInput) as caught:
        score_replies(SENTIMENT, [path])
    assert f"{path}:2: " in str(caught.value)
    assert says in str(caught.value)


def test_a_file_whose_name_is_no_language_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "my replies.jsonl", row("positive", "positive"))
    with pytest.raises(InvalidInput, match="file's name"):
        score_replies(SENTIMENT, [path])


def test_a_language_that_the_task_does_not_cover_is_not_found(tmp_path: Path) -> None:
    path = write(tmp_path / "fr.jsonl", row("positive", "positive"))
    with pytest.raises(NotFound, match="does not cover"):
        score_replies(SENTIMENT, [path])


def test_nothing_to_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no rows"):
        score_replies(SENTIMENT, [write(tmp_path / "sw.jsonl")])


@needs_shared
@pytest.mark.parametrize(("model", "reference"), [("gpt-3.5", 0.670), ("gpt-4", 0.742)])
def test_large_models_score_near_their_reference(model: str, reference: float) -> None:
    """The references name the first label mentioned; strict parsing must not be far from them."""
    report = score_replies(TASKS["topic"], sorted((SHARED / model / "topic").glob("*.jsonl")))
    assert len(report.rows) == 11
    assert report.mean.n == 990
    assert report.mean.macro_f1 == pytest.approx(reference, abs=0.02)
    assert report.mean.valid_macro_f1 > report.mean.macro_f1
