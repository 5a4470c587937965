"""The BentoML service of the generator proxy.

``bentoml serve services.generator.service:GeneratorService``, configured by the environment (see
`services.settings`), or ``understudy serve generator``.
"""

from __future__ import annotations

import os

from services.generator.classifier import build_generator
from services.hosting import ClassificationService, hosted
from services.settings import ServeSettings
from understudy.api import Classifier


@hosted
class GeneratorService(ClassificationService):
    """Answers for every task and language by asking a language model, or from recordings."""

    role = "generator"

    async def load(self, settings: ServeSettings) -> Classifier:
        """Connect to the endpoint, or open the recordings.

        Raises:
            UnderstudyError: the environment names neither, or a recording is broken.
        """
        return build_generator(replay=settings.replay, record=settings.record, environ=os.environ)
