"""`FakeClassifier` as a service: ``python -m tests.support.fake_service``."""

from __future__ import annotations

import sys

from services.hosting import ClassificationService, hosted, run
from services.settings import ServeSettings
from tests.support.fake_classifier import FakeClassifier
from understudy.api import Classifier


@hosted
class FakeService(ClassificationService):
    """What the transports are tested with."""

    role = "student"

    async def load(self, settings: ServeSettings) -> Classifier:
        return FakeClassifier()


if __name__ == "__main__":
    sys.exit(run(FakeService, ServeSettings.from_environ()))
