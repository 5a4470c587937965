from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.evaluate import Judge, Recipe, means, plan_cells, run_cells
from understudy.errors import InvalidInput, NotFound
from understudy.sample import Sample, write_samples
from understudy.task import Label, Task, Tasks

TASK = Task("mood", "Mood", "Say.", (Label("glad", "x"), Label("sad", "y")), ("en", "sw"))
LEARN = [Sample(f"a {word} day", "glad") for word in ("happy", "merry", "sunny", "lovely")]
LEARN += [Sample(f"a {word} day", "sad") for word in ("gloomy", "weary", "bitter", "lonely")]
TEST = [Sample("such a merry song", "glad"), Sample("a bitter, lonely man", "sad")]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    learn, test = tmp_path / "made", tmp_path / "human"
    for folder in (learn, test):
        (folder / "mood").mkdir(parents=True)
    write_samples(learn / "mood" / "en.jsonl", LEARN)
    write_samples(test / "mood" / "en.test.jsonl", TEST)
    write_samples(test / "mood" / "sw.test.jsonl", TEST)
    return learn, test


def test_student_and_reference_learn_from_the_same_rows(folders: tuple[Path, Path]) -> None:
    learn, test = folders
    plan = plan_cells(Tasks([TASK]), [Recipe.parse(str(learn))], Judge(test), ())
    # There is a test in Swahili, and nothing to learn from.
    assert [(recipe.name, task.name, language) for recipe, task, language in plan] == [
        ("made", "mood", "en")
    ]
    shares: list[float] = []
    (cell,) = run_cells(plan, Judge(test), progress=shares.append)
    assert (cell.texts, cell.n, cell.student, cell.reference) == (8, 2, 1.0, 1.0)
    assert shares == [1.0]
    (mean,) = means([cell])
    assert (mean.languages, mean.student, mean.reference) == (1, 1.0, 1.0)


def test_another_split_is_another_file(folders: tuple[Path, Path]) -> None:
    learn, test = folders
    with pytest.raises(NotFound, match="has no test"):
        plan_cells(Tasks([TASK]), [Recipe.parse(str(learn))], Judge(test, "train"), ())
    write_samples(test / "mood" / "en.train.jsonl", TEST[:1])
    judge = Judge(test, "train")
    plan = plan_cells(Tasks([TASK]), [Recipe.parse(str(learn))], judge, ())
    assert next(run_cells(plan, judge)).n == 1


def test_the_bundled_sources_are_apart_and_together() -> None:
    from understudy.task import load_tasks

    topic = load_tasks().find("topic")
    sentences = Recipe.parse("bundled").samples(topic, "sw")
    keywords = Recipe.parse("keywords").samples(topic, "sw")
    assert {sample.kind for sample in sentences} == {"sentence"}
    assert {sample.kind for sample in keywords} == {"keyword"}
    assert Recipe.parse("bundled+keywords").samples(topic, "sw") == sentences + keywords


@pytest.mark.parametrize("text", ["", "+", "bundeld", "bundled+nowhere"])
def test_a_source_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Recipe.parse(text)


def test_an_unknown_label_in_a_test_is_refused_with_its_line(folders: tuple[Path, Path]) -> None:
    learn, test = folders
    path = test / "mood" / "en.test.jsonl"
    path.write_text(json.dumps({"text": "x", "label": "bored"}) + "\n")
    plan = plan_cells(Tasks([TASK]), [Recipe.parse(str(learn))], Judge(test), ())
    with pytest.raises(InvalidInput, match=r"en\.test\.jsonl:1: unknown label 'bored'"):
        list(run_cells(plan, Judge(test)))
