"""One tiny student, trained in a second on the texts written here."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from training.train import TrainingPlan, train
from understudy.bundle import StudentBundle
from understudy.sample import Sample
from understudy.task import Label, Task

_WORDS = {
    "food": (
        ("soup", "bread", "rice", "cheese", "curry", "salad", "stew", "pie"),
        (
            "tastes salty",
            "was cooked slowly",
            "smells of garlic",
            "needs more pepper",
            "burnt in the oven",
        ),
    ),
    "sport": (
        ("goalkeeper", "striker", "referee", "coach", "sprinter", "boxer", "rower", "team"),
        (
            "won the final",
            "trained all week",
            "missed the penalty",
            "broke the record",
            "left the stadium",
        ),
    ),
    "weather": (
        ("storm", "drizzle", "fog", "snow", "heatwave", "breeze", "frost", "thunder"),
        (
            "comes from the north",
            "covers the valley",
            "will last until monday",
            "closed the pass",
            "surprised the forecasters",
        ),
    ),
}


@pytest.fixture(scope="session")
def tiny_task() -> Task:
    return Task(
        name="tiny",
        title="Tiny",
        instruction="Say what the text is about.",
        labels=tuple(Label(name, f"About {name}.") for name in _WORDS),
        languages=("en",),
    )


@pytest.fixture(scope="session")
def tiny_samples() -> list[Sample]:
    return [
        Sample(f"The {subject} {rest}.", label)
        for label, (subjects, rests) in _WORDS.items()
        for subject, rest in product(subjects, rests)
    ]


@pytest.fixture(scope="session")
def tiny_bundle(
    tiny_task: Task, tiny_samples: list[Sample], tmp_path_factory: pytest.TempPathFactory
) -> StudentBundle:
    """Not to be written to: copy its directory first."""
    plan = TrainingPlan(tiny_task, "en", tiny_samples)
    return train(plan, tmp_path_factory.mktemp("students") / "en" / "tiny")


@pytest.fixture
def bundle_copy(tiny_bundle: StudentBundle, tmp_path: Path) -> Path:
    """The tiny student's bundle, to be damaged."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_bundle.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy
