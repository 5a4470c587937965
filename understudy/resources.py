"""Where the tasks and data sets that come with Understudy lie.

In a checkout they stand at its root, where people edit them; a wheel carries the same two folders
inside the package.
"""

from __future__ import annotations

from pathlib import Path

from understudy.errors import NotFound

_PACKAGE = Path(__file__).resolve().parent


def bundled(name: str) -> Path:
    """Path of a bundled folder: ``tasks`` or ``data``.

    Raises:
        NotFound: the installation has lost it.
    """
    for root in (_PACKAGE / "bundled", _PACKAGE.parent):
        if (root / name).is_dir():
            return root / name
    raise NotFound(
        f"the bundled folder {name!r} is missing from {_PACKAGE}",
        expected="a complete installation: reinstall understudy",
    )
