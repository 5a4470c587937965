"""Understudy: a large language model teaches small text classifiers, one per task and language."""
