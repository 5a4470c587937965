"""The n-gram hashing of the ngram student, in numpy.

One set of look-up tables, `HashTables`, defines the hashing. Training walks them here with numpy
and the exported graph walks the same arrays with ONNX operators (`ngram_graph`), so the two cannot
drift apart: there is no second formula.

The hash is tabulation hashing (Zobrist 1970; Carter and Wegman 1979): each character has one random
number per *role* (first, n-th inner, last character of an n-gram), and the hash of an n-gram is the
sum of its characters' numbers. Sums need no multiplication, never overflow 32 bits, and share work
between the orders: the inner part of an (n+1)-gram is the inner part of the n-gram plus one number.

Three tricks keep the graph branch-free:

* A boundary (white space, the padding id) has the number 0 as first and as last
  character, so two boundaries alone hash to 0, and slot 0 of the table is the *null slot*, whose
  weights are always zero. Padding therefore costs nothing and changes nothing.
* A boundary as *inner* character has a large negative number ("poison"). An n-gram that reaches
  over a word's edge sums to a negative hash, which `max(hash, 0)` sends to the null slot.
* The slot is `hash & (slots - 1)`, with a power of two of slots.

A word is hashed from its character bigrams: each picks a random number from a small mixing table
(the sum of plain character numbers would not tell anagrams apart), and the sum over the word is the
word's hash. Punctuation ends a word but not a character n-gram, which so sees emoticons and full
stops. Words and pairs of words have rows of their own after those of the character n-grams,
with a null row at their start: they are fewer and weigh more, so they should not share.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]

PAD_ID = 0
UNK_ID = 1
PAD_TOKEN = "[PAD]"
UNK_TOKEN = "[UNK]"

VALUE_BITS = 24
"""Random numbers are below 2**24, so that eight of them stay below 2**27."""
POISON = -(1 << 27)
"""Added for an inner boundary; eight of them still fit a signed 32-bit number."""
MAX_ORDER = 8
MIX_BITS = 14
"""Size of the bigram mixing table of word hashes: 2**14 numbers, 64 KiB."""
WORD_BITS = 19
"""Numbers of the mixing table are below 2**19: a "word" of 4,000 characters stays below 2**31."""
MAX_LENGTH = 4000

_FIRST, _LAST, _ONLY, _INNER = 1, 2, 3, 16  # roles; inner roles count up from _INNER


@dataclass(frozen=True)
class HashTables:
    """The numbers that define the hashing; `V` is the size of the character vocabulary.

    Attributes:
        first: `[V]` int32, numbers of an n-gram's first character (0 for boundaries).
        last: `[V]` int32, numbers of its last character (0 for boundaries).
        only: `[V]` int32, numbers of a lone character, order 1 (0 for boundaries).
        inner: `[max_order - 2, V]` int32, numbers of its inner characters by position
            (`POISON` for boundaries).
        mix: `[2**MIX_BITS]` int32, the numbers that a word's bigrams pick (entry 0 is 0).
        word_first: `[V]` int32, as `first`, and 0 for punctuation too: for the bigrams of words.
        word_last: `[V]` int32, as `last`, and 0 for punctuation too.
        word_end: `[V]` int32, 1 where the character ends a word: boundaries and punctuation.
        min_order: shortest character n-gram.
        max_order: longest character n-gram.
        word_orders: 0, 1 (words) or 2 (words and pairs of words).
        slots: number of slots for character n-grams, a power of two.
    """

    first: IntArray
    last: IntArray
    only: IntArray
    inner: IntArray
    mix: IntArray
    word_first: IntArray
    word_last: IntArray
    word_end: IntArray
    min_order: int
    max_order: int
    word_orders: int
    slots: int

    @property
    def word_slots(self) -> int:
        """Number of slots for words, a power of two."""
        return self.slots // 4

    @property
    def rows(self) -> int:
        """Rows of the weight table."""
        return self.slots + self.word_slots


def fold(char: str) -> str:
    """Fold one character for hashing: lower case where that is one character, else unchanged."""
    lower = char.lower()
    return lower if len(lower) == 1 else char


WITHIN_WORDS = frozenset("'’-_&־׳״")
"""Punctuation that words are spelt with, the Hebrew maqaf, geresh and gershayim included."""


def is_boundary(char: str) -> bool:
    """Tell whether a character bounds character n-grams: white space and control characters."""
    return char.isspace() or char < " "


def ends_word(char: str) -> bool:
    """Tell whether a character ends a word: boundaries and most punctuation."""
    if char in WITHIN_WORDS:
        return False
    return is_boundary(char) or unicodedata.category(char)[0] == "P"


def normalise(text: str) -> str:
    """Normalise a text as the exported tokenizer does (NFKC)."""
    return unicodedata.normalize("NFKC", text)


_ALWAYS = [chr(c) for c in range(0x20, 0x7F)] + ["\t", "\n", "\r"]


def build_vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """Map every character of the texts, with its other case, to a token id.

    Ids 0 and 1 are padding and "unknown". A character of another case than any seen is included
    because it folds to a seen one. Characters outside the vocabulary share the unknown id: no
    trained n-gram holds one, so telling them apart would not change an answer.

    Returns:
        Token to id, in code point order after the two specials; independent of the texts' order.
    """
    seen: set[str] = set(_ALWAYS)
    for text in texts:
        seen.update(normalise(text))
    for char in list(seen):
        seen.update(c for c in (char.lower(), char.upper(), char.title()) if len(c) == 1)
    vocabulary = {PAD_TOKEN: PAD_ID, UNK_TOKEN: UNK_ID}
    for char in sorted(seen):
        vocabulary[char] = len(vocabulary)
    return vocabulary


def _random_bits(
    keys: npt.NDArray[np.uint64], role: int, bits: int = VALUE_BITS
) -> npt.NDArray[np.int64]:
    """Return a random number in `[1, 2**bits)` per key: splitmix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = (keys + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = z + np.uint64(role) * np.uint64(0xD1B54A32D192ED03)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z = z ^ (z >> np.uint64(31))
    return np.maximum((z >> np.uint64(64 - bits)).astype(np.int64), 1)


def build_tables(
    vocabulary: dict[str, int],
    *,
    min_order: int,
    max_order: int,
    word_orders: int,
    slots: int,
) -> HashTables:
    """Build the hashing tables of a vocabulary (see `build_vocabulary`).

    A character's numbers depend on its folded code point only, not on its id, so two vocabularies
    hash a shared n-gram alike.
    """
    if not 1 <= min_order <= max_order <= MAX_ORDER:
        raise ValueError(f"n-gram orders {min_order} to {max_order}: give 1 <= min <= max <= 8")
    if slots & (slots - 1) or slots < 8 or slots > 1 << VALUE_BITS:
        raise ValueError(f"slots is {slots}: give a power of two, at most 2**{VALUE_BITS}")
    codes = np.zeros(len(vocabulary), dtype=np.uint64)
    boundary = np.zeros(len(vocabulary), dtype=np.int32)
    word_end = np.zeros(len(vocabulary), dtype=np.int32)
    for token, index in vocabulary.items():
        if index == PAD_ID:
            boundary[index] = word_end[index] = 1
        elif index == UNK_ID:
            codes[index] = 0x110000  # one past the last code point: no character's own number
        else:
            boundary[index] = is_boundary(token)
            word_end[index] = ends_word(token)
            codes[index] = ord(fold(token))

    def numbers(role: int, at_boundary: int) -> IntArray:
        return np.where(boundary == 1, at_boundary, _random_bits(codes, role)).astype(np.int32)

    first, last = numbers(_FIRST, 0), numbers(_LAST, 0)
    mix = _random_bits(np.arange(1 << MIX_BITS, dtype=np.uint64), 4, WORD_BITS).astype(np.int32)
    mix[0] = 0
    n_inner = max(0, max_order - 2)
    inner = np.zeros((n_inner, len(vocabulary)), dtype=np.int32)
    for j in range(n_inner):
        inner[j] = numbers(_INNER + j, POISON)
    return HashTables(
        first=first,
        last=last,
        only=numbers(_ONLY, 0),
        inner=inner,
        mix=mix,
        word_first=first * (1 - word_end),
        word_last=last * (1 - word_end),
        word_end=word_end,
        min_order=min_order,
        max_order=max_order,
        word_orders=word_orders,
        slots=slots,
    )


def encode(texts: Sequence[str], vocabulary: dict[str, int], max_length: int) -> list[IntArray]:
    """Turn texts into character ids, `[length]` int32 each, as the exported tokenizer does."""
    get = vocabulary.get
    return [
        np.array([get(c, UNK_ID) for c in normalise(text)[:max_length]], dtype=np.int32)
        for text in texts
    ]


def slots_of(ids: IntArray, tables: HashTables) -> IntArray:
    """Return the row of every n-gram occurrence of one text, `[occurrences]` int32, no null rows.

    This is the graph's arithmetic for one text; `ngram_graph.build_graph` has the same steps.
    """
    order = tables.max_order
    # One boundary before the text, and enough after it for the longest n-gram to run out.
    c = np.concatenate([np.zeros(1, np.int32), ids, np.zeros(order, np.int32)])
    n = len(ids) + 1  # an n-gram may start at the boundary before the text
    hashes: list[IntArray] = []
    if tables.min_order <= 1:
        hashes.append(tables.only[c[:n]])
    core = tables.first[c[:n]]
    last = tables.last[c]
    for k in range(2, order + 1):
        if k > 2:
            core = core + tables.inner[k - 3][c[k - 2 : k - 2 + n]]
        if k >= tables.min_order:
            hashes.append(np.maximum(core + last[k - 1 : k - 1 + n], 0))
    slots: IntArray = np.concatenate(hashes) & np.int32(tables.slots - 1)
    slots = slots[slots != 0]
    if not tables.word_orders:
        return slots
    words: IntArray = np.concatenate(_word_hashes(c[:n], c[1 : 1 + n], tables))
    words &= np.int32(tables.word_slots - 1)
    return np.concatenate([slots, words[words != 0] + np.int32(tables.slots)])


def _word_hashes(c: IntArray, following: IntArray, tables: HashTables) -> list[IntArray]:
    """Hash the words (and pairs of words) of one text; the arrays are `[n]`."""
    bigram = tables.word_first[c] + tables.word_last[following]
    mixed = tables.mix[bigram & ((1 << MIX_BITS) - 1)]
    # A word's number goes up at the boundary before it; only the last of several counts.
    index = np.cumsum(tables.word_end[c] * (1 - tables.word_end[following]))
    words = np.bincount(index, weights=mixed, minlength=index[-1] + 2).astype(np.int32)
    value_mask = np.int32((1 << VALUE_BITS) - 1)
    words &= value_mask
    out = [words]
    if tables.word_orders > 1:
        a, b = words[:-1], words[1:]
        both = (np.minimum(a, 1) * np.minimum(b, 1)).astype(np.int32)
        out.append((a * np.int32(3) + b * np.int32(5)) * both)
    return out
