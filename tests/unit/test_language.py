from __future__ import annotations

import pytest

from understudy.errors import InvalidInput
from understudy.language import canonical, lookup


@pytest.mark.parametrize(
    ("tag", "spelled"),
    [
        ("sw", "sw"),
        ("SW-ke", "sw-KE"),
        ("zh-hant-tw", "zh-Hant-TW"),
        ("az-latn", "az-Latn"),
        ("es-419", "es-419"),
        ("sl-rozaj-BISKE", "sl-rozaj-biske"),
        ("no", "no"),
        ("iw", "he"),
        ("iw-IL", "he-IL"),
        ("in", "id"),
        ("mo", "ro"),
    ],
)
def test_a_tag_has_one_canonical_spelling(tag: str, spelled: str) -> None:
    assert canonical(tag) == spelled
    assert canonical(spelled) == spelled


@pytest.mark.parametrize(
    "tag",
    ["", " ", "s", "swahilian", "sw_KE", "sw-", "-sw", "sw--KE", "sw KE", "sw\n", "şw", "sw-٣٤"],
)
def test_what_is_no_tag_is_refused(tag: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        canonical(tag)
    assert refused.value.field == "language"
    assert refused.value.expected == "a BCP-47 tag such as 'sw'"


@pytest.mark.parametrize(("tag", "shown"), [(None, "NoneType"), (False, "bool"), (["sw"], "list")])
def test_what_is_no_text_is_refused_without_being_shown(tag: object, shown: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        canonical(tag)
    assert refused.value.detail == f"{shown} is not a language tag"


def test_a_long_tag_is_cut_in_the_message_and_the_field_is_the_caller_s() -> None:
    with pytest.raises(InvalidInput) as refused:
        canonical("x" * 10_000, field="languages[0]")
    assert len(refused.value.detail) < 100
    assert refused.value.field == "languages[0]"


@pytest.mark.parametrize(
    ("tag", "available", "found"),
    [
        ("sw", ["en", "sw"], "sw"),
        ("sw-KE", ["en", "sw"], "sw"),
        ("zh-Hant-TW", ["zh", "zh-Hant"], "zh-Hant"),
        ("en-a-bbb-x-c", ["en-a-bbb", "en"], "en-a-bbb"),
        ("en-a-bbb", ["en-a", "en"], "en"),
        ("sw", ["sw-KE"], None),
        ("swa", ["sw"], None),
        ("cy", [], None),
    ],
)
def test_lookup_drops_subtags_from_the_end_until_one_matches(
    tag: str, available: list[str], found: str | None
) -> None:
    assert lookup(tag, available) == found
