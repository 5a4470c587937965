from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from understudy import statistics

LABELS = ("a", "b", "c", "d")

# From a part of the labels, so that some are often absent from truth, predictions or both.
PAIRS = st.lists(st.sampled_from(LABELS), min_size=1, max_size=4, unique=True).flatmap(
    lambda some: st.lists(
        st.tuples(st.sampled_from(some), st.sampled_from(LABELS[:3])), min_size=1, max_size=60
    )
)


def f1_by_scikit_learn(truth: Sequence[str], predicted: Sequence[str]) -> float:
    return float(f1_score(truth, predicted, average="macro", zero_division=0))


@given(PAIRS)
@settings(max_examples=150, deadline=None)
def test_macro_f1_and_accuracy_are_scikit_learn_s_even_with_absent_labels(
    pairs: list[tuple[str, str]],
) -> None:
    truth, predicted = zip(*pairs, strict=True)
    matrix = statistics.confusion(truth, predicted, LABELS)
    assert statistics.macro_f1_of(matrix) == pytest.approx(f1_by_scikit_learn(truth, predicted))
    assert statistics.accuracy_of(matrix) == pytest.approx(accuracy_score(truth, predicted))
    scores = statistics.per_label(matrix, LABELS)
    expected = precision_recall_fscore_support(truth, predicted, labels=LABELS, zero_division=0)
    got = [(s.precision, s.recall, s.f1, s.support) for s in scores.values()]
    np.testing.assert_allclose(np.array(got).T, np.array(expected, dtype=float))


@given(PAIRS, st.data())
@settings(max_examples=50, deadline=None)
def test_an_invalid_reply_counts_as_wrong_and_as_no_class_of_its_own(
    pairs: list[tuple[str, str]], data: st.DataObject
) -> None:
    truth, predicted = (list(side) for side in zip(*pairs, strict=True))
    lost = data.draw(st.sets(st.integers(0, len(pairs) - 1)))
    guesses = [None if i in lost else guess for i, guess in enumerate(predicted)]
    right = sum(true == guess for true, guess in zip(truth, guesses, strict=True))
    matrix = statistics.confusion(truth, guesses, LABELS)
    assert statistics.accuracy_of(matrix) == pytest.approx(right / len(truth))
    stranger = ["invalid" if guess is None else guess for guess in guesses]
    occurring = sorted({*truth, *stranger} - {"invalid"})
    assert statistics.macro_f1_of(matrix) == pytest.approx(
        f1_score(truth, stranger, labels=occurring, average="macro", zero_division=0)
    )


def test_scores_of_no_texts_are_nought() -> None:
    empty = statistics.confusion([], [], LABELS)
    assert statistics.macro_f1_of(empty) == 0.0
    assert statistics.accuracy_of(empty) == 0.0
    assert statistics.bootstrap(empty, statistics.macro_f1_of) == statistics.Interval(0, 0, 0)


def test_a_label_that_is_not_among_them_is_refused_by_name() -> None:
    for truth, predicted in ((["x"], ["a"]), (["a"], ["x"])):
        with pytest.raises(ValueError, match="'x' is not among the labels"):
            statistics.confusion(truth, predicted, LABELS)


def test_sequences_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        statistics.confusion(["a", "b"], ["a"], LABELS)
    with pytest.raises(ValueError, match="shorter"):
        statistics.mcnemar_exact([True, False], [True])


@pytest.mark.parametrize(
    ("both", "first", "second", "neither", "p"),
    [
        # 2 * (C(10,0) + C(10,1)) / 2^10
        (5, 1, 9, 2, 22 / 1024),
        (5, 9, 1, 2, 22 / 1024),
        # 2 / 2^6
        (0, 6, 0, 0, 2 / 64),
        (0, 1, 0, 100, 1.0),
        (10, 4, 4, 0, 1.0),
        (10, 0, 0, 10, 1.0),
        # McNemar's table in Agresti, Categorical Data Analysis, 10.1: 86 against 150 discordant.
        (794, 150, 86, 570, 3.716e-05),
    ],
)
def test_mcnemar_gives_the_known_p_values(
    both: int, first: int, second: int, neither: int, p: float
) -> None:
    one = [True] * (both + first) + [False] * (second + neither)
    other = [True] * both + [False] * first + [True] * second + [False] * neither
    assert statistics.mcnemar_exact(one, other) == pytest.approx(p, rel=1e-3)


def test_the_interval_holds_the_value_shrinks_with_n_and_is_reproducible() -> None:
    widths = []
    for n in (50, 500, 5_000):
        matrix = np.array([[8, 1, 1], [2, 7, 1]]) * (n // 20)
        interval = statistics.bootstrap(matrix, statistics.macro_f1_of)
        assert interval.low < interval.value < interval.high
        assert interval == statistics.bootstrap(matrix, statistics.macro_f1_of)
        widths.append(interval.high - interval.low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_the_interval_of_an_accuracy_is_as_wide_as_the_binomial_says() -> None:
    matrix = np.array([[300, 100, 0], [100, 500, 0]])
    interval = statistics.bootstrap(matrix, statistics.accuracy_of, resamples=20_000)
    margin = 1.96 * (0.8 * 0.2 / 1_000) ** 0.5
    assert interval.low == pytest.approx(0.8 - margin, abs=2e-3)
    assert interval.high == pytest.approx(0.8 + margin, abs=2e-3)


def test_a_perfect_score_has_an_interval_of_no_width() -> None:
    matrix = np.array([[10, 0, 0], [0, 10, 0]])
    assert statistics.bootstrap(matrix, statistics.macro_f1_of) == statistics.Interval(1, 1, 1)


@pytest.mark.parametrize("planted", [0.3, 1.0, 4.0])
def test_the_temperature_that_was_planted_is_recovered(planted: float) -> None:
    random = np.random.default_rng(3)
    honest = random.normal(0, 1.5, (20_000, 4))
    chances = np.exp(honest) / np.exp(honest).sum(axis=1, keepdims=True)
    truth = (chances.cumsum(axis=1) > random.random((len(chances), 1))).argmax(axis=1)
    logits = (honest * planted).astype(np.float32)
    assert statistics.fit_temperature(logits, list(truth)) == pytest.approx(planted, rel=0.05)


def test_the_temperature_stays_within_bounds_when_everything_is_right_or_wrong() -> None:
    logits = np.array([[100.0, 0.0], [0.0, 100.0]] * 10, dtype=np.float32)
    assert 0.05 <= statistics.fit_temperature(logits, [0, 1] * 10) < 10
    assert statistics.fit_temperature(logits, [1, 0] * 10) == pytest.approx(20, rel=0.01)


def test_the_calibration_error_of_perfect_calibration_is_about_nought() -> None:
    random = np.random.default_rng(5)
    confidence = random.uniform(0.25, 1.0, 200_000)
    right = random.random(len(confidence)) < confidence
    assert statistics.expected_calibration_error(confidence, right) < 0.01


def test_the_calibration_error_has_the_value_worked_out_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.65, 0.65, 0.55, 1.0])
    right = np.array([True, False, True, True, False, True])
    # Bins of a tenth: |1.9 - 1| + |1.3 - 2| + |0.55 - 0| in 10, 7 and 6, and 1.0 belongs to the
    # tenth: |2.9 - 2| = 0.9; so (0.9 + 0.7 + 0.55) / 6.
    error = statistics.expected_calibration_error(confidence, right, bins=10)
    assert error == pytest.approx(2.15 / 6)


def test_the_calibration_error_of_nothing_is_nought() -> None:
    nothing = np.array([], dtype=np.float64)
    assert statistics.expected_calibration_error(nothing, nothing.astype(bool)) == 0.0
