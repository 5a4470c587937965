from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from understudy.api import ClassifyRequest
from understudy.bundle import INFO, MODEL, TOKENIZER, StudentBundle
from understudy.engine import Engine
from understudy.errors import BundleError
from understudy.model import GOLDEN_TOLERANCE, Encoded, StudentModel
from understudy.sample import Sample

ROOT = Path(__file__).parents[2]

TEXTS = [
    "The soup tastes salty.",
    "x",
    "Thunder closed the pass, the forecasters say, and it will last until monday at least.",
    "The rower won.",
    "ሰላም 🌧️ \u200f नमस्ते",
    "\t \u00a0?",
]


@pytest.fixture(scope="module")
def model(tiny_bundle: StudentBundle) -> StudentModel:
    return StudentModel.load(tiny_bundle.path)


def with_info(bundle: StudentBundle, **changes: Any) -> StudentModel:
    """The bundle's model with other words in its bundle.json."""
    return StudentModel(
        replace(bundle.info, **changes),
        model=bundle.path / MODEL,
        tokenizer=(bundle.path / TOKENIZER).read_text(encoding="utf-8"),
        where="it",
    )


def test_the_student_knows_what_it_has_learnt(
    model: StudentModel, tiny_samples: list[Sample]
) -> None:
    predicted = model.predict([sample.text for sample in tiny_samples])
    assert predicted == [sample.label for sample in tiny_samples]


def test_a_text_s_logits_do_not_depend_on_its_company_or_on_padding(model: StudentModel) -> None:
    together = model.logits(model.encode(TEXTS))
    alone = np.concatenate([model.logits(model.encode([text])) for text in TEXTS])
    batched = model.predict_logits(TEXTS)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(batched, alone, atol=1e-5)
    assert len(np.unique(alone.round(3), axis=0)) > 3


def test_the_mask_says_which_tokens_are_the_text_s_own(
    tiny_bundle: StudentBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_info(tiny_bundle)
    seen: dict[str, Any] = {}

    class Session:
        def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
            seen.update(inputs)
            return [np.zeros((2, 3), dtype=np.float32)]

    monkeypatch.setattr(model, "_session", Session())
    model.logits([Encoded([7, 8, 9], False), Encoded([5], False)])
    assert seen["input_ids"].tolist()[0] == [7, 8, 9]
    assert seen["input_ids"].tolist()[1][0] == 5
    assert seen["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert {array.dtype for array in seen.values()} == {np.dtype(np.int64)}


def test_batches_within_the_token_budget_give_every_text_its_own_row(
    tiny_bundle: StudentBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_info(tiny_bundle, batch_tokens=60)
    texts = TEXTS * 5
    expected = model.logits(model.encode(texts))
    shapes: list[tuple[int, int]] = []
    real = model.logits

    def watch(encoded: Any) -> Any:
        shapes.append((len(encoded), max(len(e.ids) for e in encoded)))
        return real(encoded)

    monkeypatch.setattr(model, "logits", watch)
    np.testing.assert_allclose(model.predict_logits(texts), expected, atol=1e-5)
    assert sum(count for count, _ in shapes) == len(texts)
    assert all(count == 1 or count * longest <= 60 for count, longest in shapes)
    assert len(shapes) < len(texts)


def test_probabilities_are_the_softmax_of_the_logits_over_the_temperature(
    tiny_bundle: StudentBundle,
) -> None:
    model = with_info(tiny_bundle, temperature=2.0)
    probabilities = model.probabilities(np.array([[2, 0, -2], [900, 0, -900]], dtype=np.float32))
    expected = np.exp([1, 0, -1]) / np.exp([1, 0, -1]).sum()
    np.testing.assert_allclose(probabilities, [expected, [1, 0, 0]], atol=1e-6)


def test_probabilities_leave_the_logits_as_they_are(model: StudentModel) -> None:
    logits = np.array([[2, 0, -2]], dtype=np.float32)
    model.probabilities(logits)
    assert logits.tolist() == [[2, 0, -2]]


def test_what_is_cut_is_flagged_for_each_text_of_a_batch_by_itself(
    tiny_bundle: StudentBundle,
) -> None:
    whole = with_info(tiny_bundle)
    text = "The soup tastes salty."
    length = len(whole.encode([text])[0].ids)
    model = with_info(tiny_bundle, max_length=length)
    exact, longer, short = model.encode([text, text + " And more", "x"])
    assert [exact.truncated, longer.truncated, short.truncated] == [False, True, False]
    assert len(longer.ids) == length
    other_tail = model.encode([text + " And another tail altogether"])[0]
    assert other_tail.ids == longer.ids


def test_no_texts_give_no_logits(model: StudentModel) -> None:
    assert model.predict_logits([]).shape == (0, 3)
    assert model.predict([]) == []


def golden(change: Callable[[dict[str, Any]], object], path: Path) -> None:
    content = json.loads((path / INFO).read_text(encoding="utf-8"))
    change(content["golden"][1])
    (path / INFO).write_text(json.dumps(content), encoding="utf-8")


def off_by(difference: float) -> Callable[[dict[str, Any]], object]:
    return lambda g: g["logits"].__setitem__(0, g["logits"][0] + difference)


def test_golden_logits_may_be_off_by_as_much_as_processors_differ(bundle_copy: Path) -> None:
    golden(off_by(0.5 * GOLDEN_TOLERANCE), bundle_copy)
    StudentModel.load(bundle_copy)


@pytest.mark.parametrize("difference", [2 * GOLDEN_TOLERANCE, -1.0, float("nan"), float("inf")])
def test_golden_logits_that_are_off_by_more_are_refused(
    difference: float, bundle_copy: Path
) -> None:
    golden(off_by(difference), bundle_copy)
    with pytest.raises(BundleError, match="logits are off by") as refused:
        StudentModel.load(bundle_copy)
    assert str(bundle_copy) in refused.value.detail


def test_a_golden_text_that_another_label_wins_is_refused(bundle_copy: Path) -> None:
    golden(lambda g: g.update(label="weather"), bundle_copy)
    with pytest.raises(BundleError) as refused:
        StudentModel.load(bundle_copy)
    assert refused.value.field == "golden"


@pytest.mark.parametrize("order", [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_no_permutation_of_the_labels_passes(
    order: tuple[int, ...], tiny_bundle: StudentBundle
) -> None:
    labels = tuple(tiny_bundle.info.labels[i] for i in order)
    with pytest.raises(BundleError, match="golden input"):
        with_info(tiny_bundle, labels=labels).verify()


def test_a_label_too_many_is_refused_before_anything_is_computed(
    tiny_bundle: StudentBundle,
) -> None:
    with pytest.raises(BundleError, match="it: gives 3 logits for 4 labels"):
        with_info(tiny_bundle, labels=(*tiny_bundle.info.labels, "more"))


def test_files_that_are_no_model_or_no_tokenizer_are_refused(tiny_bundle: StudentBundle) -> None:
    info, model = tiny_bundle.info, tiny_bundle.path / MODEL
    with pytest.raises(BundleError, match="it: not a tokenizer") as refused:
        StudentModel(info, model=model, tokenizer="{}", where="it")
    assert refused.value.field == TOKENIZER
    tokenizer = (tiny_bundle.path / TOKENIZER).read_text(encoding="utf-8")
    with pytest.raises(BundleError, match="it: not a model") as refused:
        StudentModel(info, model=b"no onnx", tokenizer=tokenizer, where="it")
    assert refused.value.field == MODEL


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # ten lines have no room for `with`
@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        ["The soup " * 500],
    ],
    ids=["short", "cut"],
)
async def test_the_ten_lines_in_the_docs_answer_as_the_engine_does(
    texts: list[str], tiny_bundle: StudentBundle
) -> None:
    classify = classify_of_the_docs()
    engine = Engine({"tiny": StudentModel.of_bundle(tiny_bundle)}, language="en")
    await engine.start()
    response = await engine.classify(ClassifyRequest("tiny", tuple(texts)))
    await engine.close()
    for text, prediction in zip(texts, response.predictions, strict=True):
        assert prediction.truncated == (len(text) > 2_048)
        label, probability = classify(tiny_bundle.path, text)
        assert label == prediction.label
        assert probability == pytest.approx(prediction.score, abs=1e-5)


def classify_of_the_docs() -> Callable[[Path, str], tuple[str, float]]:
    page = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    code = next(block for block in blocks if "onnxruntime" in block)
    assert "understudy" not in code
    names: dict[str, Any] = {}
    exec(code, names)
    classify: Callable[[Path, str], tuple[str, float]] = names["classify"]
    return classify
