"""Language tags: BCP-47 in, one canonical spelling out."""

from __future__ import annotations

import re
from collections.abc import Iterable

from understudy.errors import InvalidInput

#: Deprecated primary subtags that IANA's registry maps to a preferred one; older JVMs and
#: browsers still send the first two.
_PREFERRED = {"iw": "he", "in": "id", "mo": "ro", "ji": "yi", "jw": "jv"}

# RFC 5646 section 2.1, without the grandfathered tags: language, then subtags of 1 to 8.
_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*", re.ASCII)


def canonical(tag: object, *, field: str = "language") -> str:
    """Spell a BCP-47 tag the canonical way (RFC 5646, section 4.5), ``SW-ke`` → ``sw-KE``.

    Raises:
        InvalidInput: it isn't a well-formed tag.
    """
    if not isinstance(tag, str) or not _TAG.fullmatch(tag):
        shown = repr(tag[:40]) if isinstance(tag, str) else type(tag).__name__
        raise InvalidInput(
            f"{shown} is not a language tag", field=field, expected="a BCP-47 tag such as 'sw'"
        )
    primary, *rest = tag.split("-")
    primary = primary.lower()
    subtags = [_PREFERRED.get(primary, primary)]
    for subtag in rest:
        if len(subtag) == 4 and subtag.isalpha():
            subtags.append(subtag.title())
        elif len(subtag) == 2 and subtag.isalpha():
            subtags.append(subtag.upper())
        else:
            subtags.append(subtag.lower())
    return "-".join(subtags)


def lookup(tag: str, available: Iterable[str]) -> str | None:
    """The best match for a canonical tag by the lookup scheme of RFC 4647, section 3.4.

    The tag loses its last subtag until something matches: ``sw-KE`` finds ``sw``.
    """
    known = set(available)
    while tag:
        if tag in known:
            return tag
        tag = tag.rpartition("-")[0]
        # A single-letter subtag introduces the next one and means nothing without it.
        if len(tag) > 2 and tag[-2] == "-":
            tag = tag[:-2]
    return None
