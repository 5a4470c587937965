"""The reference that the ngram student is judged by: TF-IDF and logistic regression."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, make_pipeline


def predict_by_reference(
    texts: Sequence[str], labels: Sequence[str], unseen: Sequence[str]
) -> list[str]:
    """Fit character (within words, 2 to 5) and word (1 to 2) n-grams, C = 10, and predict."""
    features = FeatureUnion(
        [
            (
                "characters",
                TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
            ),
            ("words", TfidfVectorizer(analyzer="word", ngram_range=(1, 2), sublinear_tf=True)),
        ]
    )
    model = make_pipeline(features, LogisticRegression(C=10, max_iter=1_000))
    model.fit(list(texts), list(labels))
    return [str(label) for label in model.predict(list(unseen))]
