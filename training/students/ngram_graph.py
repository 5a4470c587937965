"""The ONNX graph of the ngram student: character ids in, logits out.

The graph repeats `ngram_features.slots_of` for a batch, from the same `HashTables`, with standard
operators only (opset 18): it forms and hashes the n-grams, gathers their rows of an int8 weight
table, adds them up, divides by the text's norm and adds the bias.

Rows are small integers. The sums of the scores stay far below 2**24, so float32 holds them exactly,
and the norm's are of int32: whatever the order of summation, a text's logits are bit for bit the
same in any batch, with any padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from training.students.ngram_features import MIX_BITS, VALUE_BITS, HashTables

FloatArray = npt.NDArray[np.float32]

OPSET = 18
"""Oldest opset with BitwiseAnd; ReduceSum with axes as input since 13."""
IR_VERSION = 9


@dataclass(frozen=True)
class WeightTable:
    """The trained weights, quantised; `T` slots, `C` labels.

    Attributes:
        rows: `[T, C + 1]` int8; the last column is the importance that the norm is made of. The
            null rows (`HashTables`) are zero.
        scale: `[C]` float32; the score of one unit of each label's column.
        bias: `[C]` float32.
    """

    rows: npt.NDArray[np.int8]
    scale: FloatArray
    bias: FloatArray


class _Builder:
    """Collects nodes and initialisers; every method returns the name of a value."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, value: npt.NDArray[np.generic], name: str = "") -> str:
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = name or f"constant_{len(self._constants)}"
            self.initialisers.append(numpy_helper.from_array(value, self._constants[key]))
        return self._constants[key]

    def int32(self, value: int) -> str:
        return self.constant(np.array(value, dtype=np.int32))

    def int64(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def concat(self, values: list[str]) -> str:
        """Join along the second axis."""
        return self.add("Concat", *values, axis=1) if len(values) > 1 else values[0]

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output


def build_graph(tables: HashTables, weights: WeightTable) -> onnx.ModelProto:
    """Build the model: `input_ids`, `attention_mask` `[batch, length]` -> `logits` `[batch, C]`."""
    g = _Builder()
    order = tables.max_order
    n_labels = len(weights.bias)

    # Padding counts as a boundary whatever id it carries: id * mask is then the padding id.
    ids = g.add("Mul", "input_ids", "attention_mask")
    ids = g.add("Cast", ids, to=TensorProto.INT32)
    # One boundary before the text, and enough after it for the longest n-gram to run out.
    padded = g.add("Pad", ids, g.int64(0, 1, 0, order))  # [B, 1 + L + order]

    # An n-gram starts at each of n = L + 1 positions; `window(x, k)` is x at `k` places further on.
    length = g.add("Shape", "input_ids", start=1, end=2)  # [1]
    n = g.add("Add", length, g.int64(1))
    axis = g.int64(1)
    ends = {0: n}

    def window(values: str, k: int) -> str:
        if k not in ends:
            ends[k] = g.add("Add", n, g.int64(k))
        return g.add("Slice", values, g.int64(k), ends[k], axis)

    def numbers(table: npt.NDArray[np.int32], chars: str, name: str) -> str:
        return g.add("Gather", g.constant(table, name), chars)

    zero = g.int32(0)
    chars = window(padded, 0)
    hashes: list[str] = []
    if tables.min_order <= 1:
        hashes.append(numbers(tables.only, chars, "only"))
    core = numbers(tables.first, chars, "first")
    last = numbers(tables.last, padded, "last")
    for k in range(2, order + 1):
        if k > 2:
            inner = numbers(tables.inner[k - 3], window(padded, k - 2), f"inner_{k - 2}")
            core = g.add("Add", core, inner)
        if k >= tables.min_order:
            whole = g.add("Add", core, window(last, k - 1))
            # Poisoned hashes are negative and go to the null slot.
            hashes.append(g.add("Max", whole, zero) if k > 2 else whole)
    slots = g.add("BitwiseAnd", g.concat(hashes), g.int32(tables.slots - 1))
    if tables.word_orders:
        last = numbers(tables.word_last, padded, "word_last")
        bigram = g.add("Add", numbers(tables.word_first, chars, "word_first"), window(last, 1))
        end = numbers(tables.word_end, padded, "word_end")
        words = g.concat(_words(g, tables, bigram, window(end, 0), window(end, 1)))
        words = g.add("BitwiseAnd", words, g.int32(tables.word_slots - 1))
        slots = g.concat([slots, g.add("Add", words, g.int32(tables.slots))])

    rows = g.add("Gather", g.constant(weights.rows, "weights"), slots)  # [B, N, C + 1]
    last_axis, end = g.int64(2), g.int64(n_labels)
    values = g.add("Cast", g.add("Slice", rows, g.int64(0), end, last_axis), to=TensorProto.FLOAT)
    scores = g.add("ReduceSum", values, axis, keepdims=0)
    scores = g.add("Mul", scores, g.constant(weights.scale, "scale"))  # [B, C]
    importance = g.add("Slice", rows, end, g.int64(n_labels + 1), last_axis)
    importance = g.add("Cast", importance, to=TensorProto.INT32)
    square = g.add("ReduceSum", g.add("Mul", importance, importance), axis, keepdims=0)
    square = g.add("Cast", square, to=TensorProto.FLOAT)
    # A text without a single known n-gram has norm 0 and scores 0: answer with the bias.
    norm = g.add("Sqrt", g.add("Max", square, g.constant(np.array(1, dtype=np.float32))))
    scores = g.add("Div", scores, norm)
    g.nodes.append(
        helper.make_node("Add", [scores, g.constant(weights.bias, "bias")], ["logits"], "logits")
    )

    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", n_labels])
    graph = helper.make_graph(g.nodes, "ngram_student", inputs, [output], g.initialisers)
    model = helper.make_model(
        graph,
        producer_name="understudy",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model


def _words(g: _Builder, tables: HashTables, bigram: str, here: str, following: str) -> list[str]:
    """Add the nodes that hash words and pairs of words, `[B, words]` int32 each."""
    mixed = g.add("BitwiseAnd", bigram, g.int32((1 << MIX_BITS) - 1))
    mixed = g.add("Gather", g.constant(tables.mix, "mix"), mixed)
    opens = g.add("Mul", here, g.add("Sub", g.int32(1), following))
    index = g.add("CumSum", opens, g.int32(1))  # [B, n]
    # Slots for the words of the wordiest text, and an empty one after them.
    most = g.add("ReduceMax", index, g.int64(0, 1), keepdims=0)
    width = g.add("Cast", g.add("Add", most, g.int32(2)), to=TensorProto.INT64)
    batch = g.add("Shape", index, start=0, end=1)
    shape = g.add("Concat", batch, g.add("Reshape", width, g.int64(1)), axis=0)
    fill = numpy_helper.from_array(np.zeros(1, dtype=np.int32))
    empty = g.add("ConstantOfShape", shape, value=fill)
    wide = g.add("Cast", index, to=TensorProto.INT64)
    words = g.add("ScatterElements", empty, wide, mixed, axis=1, reduction="add")
    words = g.add("BitwiseAnd", words, g.int32((1 << VALUE_BITS) - 1))
    hashes = [words]
    if tables.word_orders > 1:
        axis = g.int64(1)
        a = g.add("Slice", words, g.int64(0), g.int64(-1), axis)
        b = g.add("Slice", words, g.int64(1), g.int64(1 << 30), axis)
        one = g.int32(1)
        both = g.add("Mul", g.add("Min", a, one), g.add("Min", b, one))
        pair = g.add("Add", g.add("Mul", a, g.int32(3)), g.add("Mul", b, g.int32(5)))
        hashes.append(g.add("Mul", pair, both))
    return hashes
