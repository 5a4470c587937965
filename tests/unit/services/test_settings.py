from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.settings import ServeSettings
from understudy.environment import described
from understudy.errors import InvalidInput


def test_an_empty_environment_leaves_the_defaults() -> None:
    assert ServeSettings.from_environ({}) == ServeSettings()
    assert ServeSettings.from_environ({"UNDERSTUDY_PORT": ""}).port == 3000


def test_settings_survive_the_environment() -> None:
    settings = ServeSettings(
        host="0.0.0.0",
        port=0,
        language="sw",
        bundles=Path("/b"),
        replay=(Path("/r1"), Path("/r2")),
        texts=5,
        grace=1.5,
    )
    assert ServeSettings.from_environ(settings.to_environ()) == settings
    assert settings.limits.texts == 5


def test_several_recordings_are_separated_as_in_path() -> None:
    settings = ServeSettings.from_environ({"UNDERSTUDY_REPLAY": f"a{os.pathsep}b"})
    assert settings.replay == (Path("a"), Path("b"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("UNDERSTUDY_PORT", "70000"),
        ("UNDERSTUDY_GRPC_PORT", "-1"),
        ("UNDERSTUDY_MAX_TEXTS", "0"),
        ("UNDERSTUDY_MAX_TEXTS", "many"),
        ("UNDERSTUDY_TIMEOUT", "nan"),
        ("UNDERSTUDY_GRACE", "inf"),
        ("UNDERSTUDY_LANGUAGE", "not a tag"),
    ],
)
def test_a_wrong_value_is_refused_with_its_variable_and_the_mend(variable: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ServeSettings.from_environ({variable: value})
    assert caught.value.field == variable
    assert caught.value.expected


def test_every_setting_is_documented() -> None:
    rows = described(ServeSettings)
    assert all(variable.startswith("UNDERSTUDY_") and doc for variable, _, doc in rows)
