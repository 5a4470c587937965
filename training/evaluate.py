"""How good students are: one bundle on a file, or recipes side by side over languages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from training.reference import predict_by_reference
from training.students import fit_function, unmeasured
from understudy import statistics
from understudy.errors import InvalidInput, NotFound
from understudy.model import StudentModel
from understudy.sample import Sample, bundled_paths, has_bundled, read_samples
from understudy.statistics import Interval, LabelScores
from understudy.task import Task, Tasks

#: Names of the data that comes with Understudy, beside which a source may be a folder.
BUNDLED, KEYWORDS = "bundled", "keywords"


@dataclass(frozen=True)
class Evaluation:
    """A student's score on labelled texts."""

    n: int
    macro_f1: Interval
    accuracy: Interval
    per_label: dict[str, LabelScores]

    def to_json(self) -> dict[str, Any]:
        """The values plain, their 95 % bootstrap intervals beside them."""
        return {
            "n": self.n,
            **self.macro_f1.to_json("macro_f1"),
            **self.accuracy.to_json("accuracy"),
            "per_label": {label: asdict(scores) for label, scores in self.per_label.items()},
        }


def evaluate(model: StudentModel, samples: Sequence[Sample]) -> Evaluation:
    """Score a student.

    Raises:
        InvalidInput: a sample's label is none of the student's.
    """
    labels = model.info.labels
    for sample in samples:
        if sample.label not in labels:
            raise InvalidInput(
                f"the student has no label {sample.label!r}",
                field="label",
                expected=f"one of: {', '.join(labels)}",
            )
    predicted = model.predict([sample.text for sample in samples])
    matrix = statistics.confusion([sample.label for sample in samples], predicted, labels)
    return Evaluation(
        n=len(samples),
        macro_f1=statistics.bootstrap(matrix, statistics.macro_f1_of),
        accuracy=statistics.bootstrap(matrix, statistics.accuracy_of),
        per_label=statistics.per_label(matrix, labels),
    )


@dataclass(frozen=True)
class Recipe:
    """Training data by its sources: bundled, keywords, folders of <task>/<language>.jsonl."""

    sources: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read ``bundled+keywords+some/folder``.

        Raises:
            InvalidInput: a source is neither a name nor a folder.
        """
        sources = tuple(part for part in text.split("+") if part)
        for source in sources:
            if source not in (BUNDLED, KEYWORDS) and not Path(source).is_dir():
                raise InvalidInput(
                    f"{source!r} is no source of training data",
                    field="train",
                    expected=f"'{BUNDLED}', '{KEYWORDS}' or a folder, joined by '+'",
                )
        if not sources:
            raise InvalidInput("no source is named", field="train", expected=f"such as '{BUNDLED}'")
        return cls(sources)

    @property
    def name(self) -> str:
        return " + ".join(s if s in (BUNDLED, KEYWORDS) else Path(s).name for s in self.sources)

    def samples(self, task: Task, language: str) -> list[Sample]:
        """The training samples of a task and language; empty where no source has any."""
        return [
            sample
            for source in self.sources
            for path in _files(source, task.name, language)
            for sample in read_samples(path, task.label_names)
        ]


def _files(source: str, task: str, language: str) -> list[Path]:
    if source in (BUNDLED, KEYWORDS):
        if not has_bundled(task, language):
            return []
        paths = bundled_paths(task, language)
        return [path for path in paths if (KEYWORDS in path.parts) == (source == KEYWORDS)]
    path = Path(source) / task / f"{language}.jsonl"
    return [path] if path.is_file() else []


@dataclass(frozen=True)
class Cell:
    """Student against reference: one recipe, task and language."""

    recipe: str
    task: str
    language: str
    texts: int
    n: int
    student: float
    reference: float


@dataclass(frozen=True)
class MeanRow:
    """The mean of a recipe's and task's cells."""

    recipe: str
    task: str
    languages: int
    student: float
    reference: float


@dataclass(frozen=True)
class Judge:
    """Labelled texts to score on: ``<root>/<task>/<language>.<split>.jsonl``."""

    root: Path
    split: str = "test"

    def file(self, task: Task, language: str) -> Path:
        return self.root / task.name / f"{language}.{self.split}.jsonl"


def plan_cells(
    tasks: Tasks, recipes: Sequence[Recipe], judge: Judge, languages: Sequence[str]
) -> list[tuple[Recipe, Task, str]]:
    """Every recipe, task and language for which there is a test file and training data.

    Raises:
        NotFound: there is none at all.
    """
    cells = [
        (recipe, task, language)
        for recipe in recipes
        for task in tasks.values()
        for language in task.languages
        if (not languages or language in languages)
        and judge.file(task, language).is_file()
        and any(_files(source, task.name, language) for source in recipe.sources)
    ]
    if not cells:
        raise NotFound(
            f"{judge.root} has no test for the tasks and languages asked for",
            field="test",
            expected=f"a folder of <task>/<language>.{judge.split}.jsonl",
        )
    return cells


def run_cells(
    cells: Sequence[tuple[Recipe, Task, str]],
    judge: Judge,
    *,
    student: str = "ngram",
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Cell]:
    """Train student and reference on the same rows and score both on the same test."""
    for done, (recipe, task, language) in enumerate(cells):
        learn = recipe.samples(task, language)
        test = read_samples(judge.file(task, language), task.label_names)
        unseen = [sample.text for sample in test]
        truth = [sample.label for sample in test]
        labels = task.label_names
        texts = [sample.text for sample in learn]
        fitted = fit_function(student)(
            texts,
            [task.index(sample.label) for sample in learn],
            len(labels),
            kinds=[sample.kind for sample in learn],
            seed=seed,
        )
        info = unmeasured(task, language, student, fitted)
        model = StudentModel(info, model=fitted.model, tokenizer=fitted.tokenizer)
        by_reference = predict_by_reference(texts, [sample.label for sample in learn], unseen)
        yield Cell(
            recipe=recipe.name,
            task=task.name,
            language=language,
            texts=len(learn),
            n=len(test),
            student=statistics.macro_f1(truth, model.predict(unseen), labels),
            reference=statistics.macro_f1(truth, by_reference, labels),
        )
        if progress:
            progress((done + 1) / len(cells))


def means(cells: Sequence[Cell]) -> list[MeanRow]:
    """Mean over the languages of each recipe and task, in the cells' order."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.recipe, cell.task), []).append(cell)
    return [
        MeanRow(
            recipe=recipe,
            task=task,
            languages=len(group),
            student=fmean(cell.student for cell in group),
            reference=fmean(cell.reference for cell in group),
        )
        for (recipe, task), group in groups.items()
    ]
