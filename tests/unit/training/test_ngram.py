from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest

from training.students import ngram_features, unmeasured
from training.students.ngram import FittedNgram, NgramConfig, fit, occurrence_matrix
from understudy.model import Floats, StudentModel
from understudy.task import Label, Task

TASK = Task(
    "mood", "Mood", "Say.", (Label("glad", "x"), Label("sad", "y"), Label("angry", "z")), ("en",)
)
TEXTS = [
    ("what a lovely sunny morning", 0),
    ("the children laughed all day", 0),
    ("we won, hooray!", 0),
    ("she wept when the letter came", 1),
    ("a grey and lonely evening", 1),
    ("he misses his late father", 1),
    ("stop shouting at me now", 2),
    ("this queue makes me furious", 2),
    ("how dare you break it", 2),
]
ODD = [
    "a",
    " ",
    "",
    "\t\n",
    "สวัสดีตอนเช้า วันนี้อากาศดี",
    "ఈ ఉదయం చాలా బాగుంది",
    "בוקר טוב לכולם",
    "İstanbul'da ıslak bir gün",
    "e\u0301le\u0301gant ﬁne",
    "😀😀 👩‍👩‍👧 ok",
    "unseen: \u2603\U0001f9ff",
    "word " * 300,
    "x" * 3_000,
]


def fitted(texts: Sequence[tuple[str, int]] = TEXTS, **options: object) -> FittedNgram:
    return fit([text for text, _ in texts], [label for _, label in texts], 3, **options)  # type: ignore[arg-type]


def model_of(student: FittedNgram) -> StudentModel:
    info = unmeasured(TASK, "en", "ngram", student)
    return StudentModel(info, model=student.model, tokenizer=student.tokenizer)


@pytest.fixture(scope="module")
def student() -> FittedNgram:
    return fitted()


@pytest.fixture(scope="module")
def model(student: FittedNgram) -> StudentModel:
    return model_of(student)


def table_of(student: FittedNgram) -> dict[str, Floats]:
    import onnx
    from onnx import numpy_helper

    return {
        constant.name: numpy_helper.to_array(constant)
        for constant in onnx.load_from_string(student.model).graph.initializer
    }


def test_the_graph_computes_what_the_training_code_learnt(
    student: FittedNgram, model: StudentModel
) -> None:
    config = NgramConfig()
    vocabulary = ngram_features.build_vocabulary([text for text, _ in TEXTS])
    tables = ngram_features.build_tables(
        vocabulary,
        min_order=config.min_order,
        max_order=config.max_order,
        word_orders=config.word_orders,
        slots=1 << config.slot_bits,
    )
    constants = table_of(student)
    rows = constants["weights"].astype(np.float64)
    counts = occurrence_matrix([*ODD, *(t for t, _ in TEXTS)], vocabulary, tables, 2_048)
    norm = np.sqrt(np.maximum(counts @ rows[:, -1] ** 2, 1))
    expected = (counts @ rows[:, :-1]) * constants["scale"] / norm[:, None] + constants["bias"]
    actual = model.predict_logits([*ODD, *(t for t, _ in TEXTS)])
    assert np.abs(actual - expected).max() < 1e-3


def test_the_null_rows_are_zero(student: FittedNgram) -> None:
    rows = table_of(student)["weights"]
    slots = 1 << NgramConfig().slot_bits
    assert rows.shape == (slots + slots // 4, 4)
    assert not rows[0].any()
    assert not rows[slots].any()


def test_an_answer_does_not_depend_on_its_batch_mates(model: StudentModel) -> None:
    alone = np.concatenate([model.logits(model.encode([text])) for text in ODD])
    together = model.logits(model.encode(ODD))
    backwards = model.logits(model.encode(ODD[::-1]))[::-1]
    assert np.isfinite(alone).all()
    assert np.array_equal(alone, together)
    assert np.array_equal(alone, backwards)


def test_a_text_of_nothing_known_gets_the_bias(student: FittedNgram, model: StudentModel) -> None:
    bias = table_of(student)["bias"]
    for text in ("", "   "):
        assert np.allclose(model.predict_logits([text])[0], bias)


def test_the_same_input_gives_the_same_bytes(student: FittedNgram) -> None:
    again = fitted()
    assert again.model == student.model
    assert again.tokenizer == student.tokenizer


def test_it_learns_a_task_whatever_the_order_of_its_texts(model: StudentModel) -> None:
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    for learnt in (model, model_of(fitted(shuffled))):
        guesses = learnt.predict_logits([text for text, _ in TEXTS]).argmax(axis=1)
        assert guesses.tolist() == [label for _, label in TEXTS]


def test_case_does_not_matter(model: StudentModel) -> None:
    low, high = model.predict_logits(["a lonely evening", "A LONELY EVENING"])
    assert np.array_equal(low, high)


def test_word_order_does(model: StudentModel) -> None:
    one, other = model.predict_logits(["grey and lonely", "lonely and grey"])
    assert not np.array_equal(one, other)


def test_keywords_teach() -> None:
    keywords = [("gloomy", 1), ("tearful", 1), ("merry", 0), ("cheerful", 0), ("enraged", 2)]
    kinds = ["sentence"] * len(TEXTS) + ["keyword"] * len(keywords)
    learnt = model_of(fitted([*TEXTS, *keywords], kinds=kinds))
    guesses = learnt.predict_logits(["a gloomy day", "a merry day", "an enraged man"])
    assert guesses.argmax(axis=1).tolist() == [1, 0, 2]


def test_many_labels_keep_the_bundle_below_8_megabytes() -> None:
    texts = [f"text number {i} of label {i % 40}" for i in range(400)]
    student = fit(texts, [i % 40 for i in range(400)], 40)
    assert len(student.model) + len(student.tokenizer) < 8e6


def test_progress_goes_from_0_to_1() -> None:
    shares: list[float] = []
    fitted(progress=shares.append)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (4, 3), (2, 9)])
def test_orders_that_cannot_be_are_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="n-gram orders"):
        fitted(config=NgramConfig(min_order=low, max_order=high))
