"""The generator proxy: the classification API, answered by a large language model."""

from services.generator.classifier import GeneratorClassifier, build_generator

__all__ = ["GeneratorClassifier", "build_generator"]
