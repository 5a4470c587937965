"""A student in memory: texts → tokens → logits → probabilities, whatever kind of student it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from understudy.bundle import MODEL, TOKENIZER, BundleInfo, StudentBundle
from understudy.errors import BundleError

Floats = npt.NDArray[np.float32]

#: How far a golden logit may be from what was written: processors sum in different orders.
GOLDEN_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one text, no longer than the student reads."""

    ids: list[int]
    truncated: bool


class StudentModel:
    """A loaded bundle. Its methods may be called from any thread.

    Args:
        info: what the model and the tokenizer are.
        model: the ONNX model, or the file that holds it.
        tokenizer: content of ``tokenizer.json``.
        threads: ONNX Runtime's intra-op threads.
        where: names the student in errors.

    Raises:
        BundleError: the model or the tokenizer can't be loaded, or they don't fit each other.
    """

    def __init__(
        self,
        info: BundleInfo,
        *,
        model: bytes | Path,
        tokenizer: str,
        threads: int = 1,
        where: str = "the student",
    ) -> None:
        self.info = info
        self._where = where
        self._tokenizer = _load_tokenizer(tokenizer, where)
        # The pad's id doesn't matter to a model that honours the mask, but must be in its table.
        self._pad_id: int = (self._tokenizer.padding or {}).get("pad_id", 0)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(info.max_length)
        self._session = _load_session(info, model, threads, where)
        self._token_types = "token_type_ids" in {i.name for i in self._session.get_inputs()}

    @classmethod
    def of_bundle(cls, bundle: StudentBundle, *, threads: int = 1) -> StudentModel:
        """Load an opened bundle, without recomputing its golden inputs."""
        return cls(
            bundle.info,
            model=bundle.path / MODEL,
            tokenizer=(bundle.path / TOKENIZER).read_text(encoding="utf-8"),
            threads=threads,
            where=str(bundle.path),
        )

    @classmethod
    def load(cls, path: Path, *, threads: int = 1) -> StudentModel:
        """Open a bundle, load it and recompute its golden inputs.

        Raises:
            BundleError: any of that fails.
        """
        model = cls.of_bundle(StudentBundle.open(path), threads=threads)
        model.verify()
        return model

    def verify(self) -> None:
        """Recompute the golden inputs.

        Raises:
            BundleError: a logit is off, or the best label is another than the bundle says.
        """
        golden = self.info.golden
        logits = self.logits(self.encode([g.text for g in golden]))
        for expected, actual in zip(golden, logits, strict=True):
            label = self.info.labels[int(actual.argmax())]
            if label != expected.label:
                raise BundleError(
                    f"{self._where}: a golden input of {expected.label!r} is taken for {label!r}",
                    field="golden",
                    expected="labels in the order of the model's logits",
                )
            difference = float(np.abs(actual - np.asarray(expected.logits)).max())
            if not difference <= GOLDEN_TOLERANCE:
                raise BundleError(
                    f"{self._where}: a golden input's logits are off by {difference:.4f}",
                    field="golden",
                    expected=f"at most {GOLDEN_TOLERANCE}: both files as they were trained",
                )

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return [Encoded(e.ids, bool(e.overflowing)) for e in encodings]

    def logits(self, encoded: Sequence[Encoded]) -> Floats:
        """Run the model once.

        Returns:
            float32 [len(encoded), labels]
        """
        length = max(1, *(len(e.ids) for e in encoded)) if encoded else 1
        ids = np.full((len(encoded), length), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(encoded), length), dtype=np.int64)
        for row, e in enumerate(encoded):
            ids[row, : len(e.ids)] = e.ids
            mask[row, : len(e.ids)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._token_types:
            inputs["token_type_ids"] = np.zeros_like(ids)
        outputs: list[Any] = self._session.run(["logits"], inputs)
        result: Floats = outputs[0]
        return result

    def probabilities(self, logits: Floats) -> Floats:
        """Calibrated probabilities: float32 [n, labels], rows summing to 1."""
        scaled = logits / np.float32(self.info.temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        exponentials = np.exp(scaled)
        result: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
        return result

    def predict_logits(self, texts: Sequence[str]) -> Floats:
        """Logits of any number of texts, in batches of similar length: float32 [n, labels]."""
        encoded = self.encode(texts)
        result = np.zeros((len(encoded), len(self.info.labels)), dtype=np.float32)
        for rows in _batches([len(e.ids) for e in encoded], self.info.batch_tokens):
            result[rows] = self.logits([encoded[row] for row in rows])
        return result

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The best label of each text."""
        return [self.info.labels[i] for i in self.predict_logits(texts).argmax(axis=1)]


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions grouped by length, each group's padded size within the budget (or one text)."""
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[position] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _load_tokenizer(content: str, where: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises bare Exception
        raise BundleError(f"{where}: not a tokenizer: {error}", field=TOKENIZER) from error


def _load_session(
    info: BundleInfo, model: bytes | Path, threads: int, where: str
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning thread burns the processor time that the neighbours in the pod need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=["CPUExecutionProvider"],
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class but this
        raise BundleError(f"{where}: not a model: {error}", field=MODEL) from error
    names = {i.name for i in session.get_inputs()}
    outputs = {o.name: o.shape for o in session.get_outputs()}
    if not {"input_ids", "attention_mask"} <= names or "logits" not in outputs:
        raise BundleError(
            f"{where}: has inputs {sorted(names)} and outputs {sorted(outputs)}",
            field=MODEL,
            expected="inputs input_ids and attention_mask, output logits",
        )
    width = outputs["logits"][-1]
    if isinstance(width, int) and width != len(info.labels):
        raise BundleError(
            f"{where}: gives {width} logits for {len(info.labels)} labels",
            field="labels",
            expected="one logit for each label",
        )
    return session
