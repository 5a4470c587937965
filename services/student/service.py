"""The BentoML service of one language's students.

``bentoml serve services.student.service:StudentService``, configured by the environment (see
`services.settings`), or ``understudy serve student``.
"""

from __future__ import annotations

import asyncio

from services.hosting import ClassificationService, hosted
from services.settings import ServeSettings
from understudy.api import Classifier
from understudy.engine import EngineLimits, load_engine
from understudy.errors import InvalidInput


@hosted
class StudentService(ClassificationService):
    """Answers for one language and all its tasks."""

    role = "student"

    async def load(self, settings: ServeSettings) -> Classifier:
        """Load every student of the language.

        Raises:
            InvalidInput: the language or the bundles are not named.
            BundleError: there is no bundle of the language, or one is unusable.
        """
        if settings.language is None:
            raise InvalidInput(
                "not set", field="UNDERSTUDY_LANGUAGE", expected="a BCP-47 tag such as 'sw'"
            )
        if settings.bundles is None:
            raise InvalidInput(
                "not set",
                field="UNDERSTUDY_BUNDLES",
                expected="the directory that 'understudy train --out' wrote",
            )
        return await asyncio.to_thread(
            load_engine,
            settings.bundles,
            settings.language,
            limits=EngineLimits(queue_texts=settings.queue_texts, timeout_seconds=settings.timeout),
            threads=settings.threads,
        )
