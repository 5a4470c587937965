"""How the language model is reached and asked: read from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from understudy import environment
from understudy.environment import number, one_of, setting
from understudy.errors import InvalidInput

BASE_URL_VARIABLE = "UNDERSTUDY_GENERATOR_BASE_URL"
MODEL_VARIABLE = "UNDERSTUDY_GENERATOR_MODEL"
API_KEY_VARIABLE = "UNDERSTUDY_GENERATOR_API_KEY"
TIMEOUT_VARIABLE = "UNDERSTUDY_GENERATOR_TIMEOUT"
STRUCTURED_VARIABLE = "UNDERSTUDY_GENERATOR_STRUCTURED"
TEMPERATURE_VARIABLE = "UNDERSTUDY_GENERATOR_TEMPERATURE"

_STRUCTURED = ("auto", "json_schema", "off")


def _url(value: str) -> str:
    if not value.lower().startswith(("http://", "https://")):
        raise InvalidInput("not a URL", expected="a URL such as http://127.0.0.1:8000/v1")
    return value


def _temperature(value: str) -> float | None:
    return None if value == "default" else number(0)(value)


@dataclass(frozen=True)
class Prices:
    """US dollars per million tokens."""

    input: float
    output: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """US dollars."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1_000_000


@dataclass(frozen=True)
class TeacherSettings:
    """How the language model is reached and asked; `from_environment` reads it.

    The key shows neither in the representation nor in any message or log.
    """

    base_url: str = setting(
        BASE_URL_VARIABLE,
        "",
        _url,
        "URL of the OpenAI-compatible endpoint, as far as and with its version (…/v1).",
    )
    model: str = setting(MODEL_VARIABLE, "", str, "Name of the model, as the endpoint knows it.")
    api_key: str | None = setting(
        API_KEY_VARIABLE,
        None,
        str,
        "Key of the endpoint; local servers mostly need none.",
        secret=True,
    )
    timeout: float = setting(
        TIMEOUT_VARIABLE, 60.0, number(0.001), "Seconds in which one attempt must be answered."
    )
    deadline: float = setting(
        "UNDERSTUDY_GENERATOR_DEADLINE",
        300.0,
        number(0.001),
        "Seconds in which a whole request must be answered, waiting and retries included.",
    )
    max_retries: int = setting(
        "UNDERSTUDY_GENERATOR_MAX_RETRIES",
        3,
        number(0, whole=True),
        "Further attempts after a refusal (408, 409, 429, 5xx), a timeout or a lost connection.",
    )
    concurrency: int = setting(
        "UNDERSTUDY_GENERATOR_CONCURRENCY",
        8,
        number(1, whole=True),
        "Texts asked about at a time.",
    )
    queue_texts: int = setting(
        "UNDERSTUDY_GENERATOR_QUEUE_TEXTS",
        4_096,
        number(1, whole=True),
        "Texts that may wait for an answer; past it a request is refused at once.",
    )
    structured: str = setting(
        STRUCTURED_VARIABLE,
        "auto",
        one_of(*_STRUCTURED),
        "Constrain replies by JSON schema: 'json_schema', 'off', or 'auto' to do without where the "
        "endpoint refuses.",
    )
    seed: int = setting(
        "UNDERSTUDY_GENERATOR_SEED", 0, number(0, whole=True), "Seed of the order of the labels."
    )
    temperature: float | None = setting(
        TEMPERATURE_VARIABLE, 0.0, _temperature, "Sampling temperature, 'default' to send none."
    )
    max_tokens: int | None = setting(
        "UNDERSTUDY_GENERATOR_MAX_TOKENS",
        None,
        number(1, whole=True),
        "Longest reply in tokens, thinking included; as the endpoint has it when not set.",
    )
    price_input: float | None = setting(
        "UNDERSTUDY_GENERATOR_PRICE_INPUT",
        None,
        number(0),
        "US dollars per million prompt tokens.",
    )
    price_output: float | None = setting(
        "UNDERSTUDY_GENERATOR_PRICE_OUTPUT",
        None,
        number(0),
        "US dollars per million completion tokens.",
    )

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] = os.environ, *, needs_endpoint: bool = True
    ) -> TeacherSettings:
        """Read the settings; an unset or empty variable leaves its default.

        Raises:
            InvalidInput: a value can't be right or, where `needs_endpoint`, the URL or the model is
                missing; the error names the variable.
        """
        values = environment.read(cls, environ)
        for name, variable in (("base_url", BASE_URL_VARIABLE), ("model", MODEL_VARIABLE)):
            if needs_endpoint and name not in values:
                raise InvalidInput(
                    f"{variable} is not set",
                    field=variable,
                    expected=f"{BASE_URL_VARIABLE} and {MODEL_VARIABLE} of an OpenAI-compatible "
                    "endpoint, or --replay FILE.jsonl to answer from recordings",
                )
        return cls(**values)

    @property
    def prices(self) -> Prices | None:
        if self.price_input is None or self.price_output is None:
            return None
        return Prices(self.price_input, self.price_output)
