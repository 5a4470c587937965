"""From labelled texts to a student bundle: split, fit, calibrate, measure, fit on all, write."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from training.students import FittedStudent, fit_function, unmeasured
from understudy import statistics
from understudy.bundle import BundleInfo, Golden, StudentBundle, refuse_foreign, write_bundle
from understudy.errors import InvalidInput
from understudy.model import Floats, StudentModel
from understudy.sample import Sample, bundled_samples, fingerprint
from understudy.task import Task

Progress = Callable[[float], None]

#: Below this, a held-out part says more about chance than about a temperature.
_FEWEST_TO_CALIBRATE = 10
_VERSIONS = ("understudy", "onnx", "onnxruntime", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True)
class TrainingPlan:
    """What to train.

    Attributes:
        refit: fit again on everything once the held-out part has given temperature and metrics;
            without it the held-out part is never learnt from and can judge the bundle later.
        sources: names of the data, for the record.
    """

    task: Task
    language: str
    samples: Sequence[Sample]
    student: str = "ngram"
    seed: int = 0
    refit: bool = True
    sources: Sequence[str] = ()


def bundled_plan(
    task: Task,
    language: str,
    *,
    keywords: bool = True,
    student: str = "ngram",
    seed: int = 0,
    refit: bool = False,
) -> TrainingPlan:
    """A plan that learns from the data that comes with Understudy, its held-out part excepted.

    Raises:
        NotFound: there is none for this task and language.
    """
    return TrainingPlan(
        task=task,
        language=language,
        samples=bundled_samples(task, language, keywords=keywords),
        student=student,
        seed=seed,
        refit=refit,
        sources=["bundled", "keywords"] if keywords else ["bundled"],
    )


def train(plan: TrainingPlan, out: Path, *, progress: Progress | None = None) -> StudentBundle:
    """Train one student and write its bundle.

    Raises:
        InvalidInput: a label has no text, or too few to learn from.
        BundleError: something that isn't a bundle stands at `out`.
    """
    refuse_foreign(out)
    report = progress or (lambda share: None)
    samples = _distinct(plan.samples)
    _check_labels(plan, samples)
    learn, held_out = _split(samples)
    fitted = _fit(plan, learn, lambda share: report(0.5 * share if plan.refit else 0.9 * share))
    measured = _measure(plan, fitted, held_out)
    if plan.refit:
        learn = samples
        fitted = _fit(plan, learn, lambda share: report(0.5 + 0.4 * share))
    info = _describe(plan, fitted, learn, held_out, measured)
    info = replace(info, golden=_golden(info, fitted, learn))
    bundle = write_bundle(out, info, model=fitted.model, tokenizer=fitted.tokenizer)
    report(1.0)
    return bundle


@dataclass(frozen=True)
class _Measured:
    temperature: float
    metrics: Mapping[str, Any]


def _distinct(samples: Sequence[Sample]) -> list[Sample]:
    """Each (text, label) once: repeated rows would weigh more and leak into the held-out part."""
    return list({(s.text, s.label): s for s in samples}.values())


def _check_labels(plan: TrainingPlan, samples: Sequence[Sample]) -> None:
    counts = Counter(sample.label for sample in samples)
    for label in plan.task.label_names:
        if counts[label] < 2:
            raise InvalidInput(
                f"label {label!r} has {counts[label]} of the {len(samples)} distinct texts",
                field="data",
                expected="two texts or more for each label of the task",
            )


def _split(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Texts to learn from, and the held-out sentences."""
    held_out = [s for s in samples if s.kind == "sentence" and s.held_out]
    texts = {s.text for s in held_out}
    return [s for s in samples if s.text not in texts], held_out


def _fit(plan: TrainingPlan, samples: Sequence[Sample], progress: Progress) -> FittedStudent:
    return fit_function(plan.student)(
        [s.text for s in samples],
        [plan.task.index(s.label) for s in samples],
        len(plan.task.labels),
        kinds=[s.kind for s in samples],
        seed=plan.seed,
        progress=progress,
    )


def _measure(plan: TrainingPlan, fitted: FittedStudent, held_out: Sequence[Sample]) -> _Measured:
    """Temperature and metrics of a student on texts that it hasn't seen."""
    if len(held_out) < _FEWEST_TO_CALIBRATE:
        return _Measured(1.0, {"held_out": {"n": len(held_out), "why": "too few to measure on"}})
    logits = _logits(_unmeasured(plan, fitted), fitted, [s.text for s in held_out])
    labels = plan.task.label_names
    truth = [plan.task.index(s.label) for s in held_out]
    temperature = statistics.fit_temperature(logits, truth)
    best = logits.argmax(axis=1)
    matrix = statistics.confusion([s.label for s in held_out], [labels[i] for i in best], labels)
    right = best == np.asarray(truth)

    def calibration_error(divisor: float) -> float:
        scaled = logits.astype(np.float64) / divisor
        scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        confidence = scaled.max(axis=1) / scaled.sum(axis=1)
        return statistics.expected_calibration_error(confidence, right)

    metrics = {
        "held_out": {
            "n": len(held_out),
            "macro_f1": asdict(statistics.bootstrap(matrix, statistics.macro_f1_of)),
            "accuracy": asdict(statistics.bootstrap(matrix, statistics.accuracy_of)),
            "calibration_error": {
                "before": calibration_error(1.0),
                "after": calibration_error(temperature),
            },
        }
    }
    return _Measured(temperature, metrics)


def _logits(info: BundleInfo, fitted: FittedStudent, texts: Sequence[str]) -> Floats:
    """Logits as the services will compute them: by ONNX Runtime, not by the training code."""
    model = StudentModel(info, model=fitted.model, tokenizer=fitted.tokenizer)
    return model.predict_logits(texts)


def _unmeasured(plan: TrainingPlan, fitted: FittedStudent) -> BundleInfo:
    return unmeasured(plan.task, plan.language, plan.student, fitted)


def _describe(
    plan: TrainingPlan,
    fitted: FittedStudent,
    learn: Sequence[Sample],
    held_out: Sequence[Sample],
    measured: _Measured,
) -> BundleInfo:
    counts = Counter(sample.label for sample in learn)
    return replace(
        _unmeasured(plan, fitted),
        temperature=measured.temperature,
        recipe={
            **fitted.recipe,
            "python": platform.python_version(),
            "versions": {name: version(name) for name in _VERSIONS},
        },
        data={
            "fingerprint": fingerprint(learn),
            "texts": len(learn),
            "keywords": sum(s.kind == "keyword" for s in learn),
            "per_label": {label: counts[label] for label in plan.task.label_names},
            "sources": list(plan.sources),
            "held_out": {
                "texts": len(held_out),
                "learnt_from": plan.refit,
                "rule": "int(sha256(text).hexdigest(), 16) % 8 == 0, sentences only",
            },
        },
        metrics=measured.metrics,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _golden(info: BundleInfo, fitted: FittedStudent, learn: Sequence[Sample]) -> tuple[Golden, ...]:
    """For each label, the training text that the student is surest about.

    Raises:
        InvalidInput: the student gets no text of a label right, so the data can't be learnt.
    """
    texts = [s.text for s in learn]
    logits = _logits(info, fitted, texts)
    golden = []
    for position, label in enumerate(info.labels):
        own = [row for row, sample in enumerate(learn) if sample.label == label]
        if not own:
            raise InvalidInput(
                f"every text of label {label!r} is held out",
                field="data",
                expected="more texts, or to learn from the held-out ones too",
            )
        margins = logits[own, position] - np.delete(logits[own], position, axis=1).max(axis=1)
        surest = int(margins.argmax())
        if margins[surest] <= 0:
            raise InvalidInput(
                f"the student gets none of the {len(own)} texts of label {label!r} right",
                field="data",
                expected="labels that the texts tell apart",
            )
        row = own[surest]
        golden.append(Golden(texts[row], label, tuple(float(x) for x in logits[row])))
    return tuple(golden)
