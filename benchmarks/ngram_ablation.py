"""Which choice in the ngram student brings what.

    python benchmarks/ngram_ablation.py --data ../shared/data --languages en sw th

Each variant changes one hyper-parameter of the default. Judged on human-labelled *training* texts,
which nothing here learns from; the human test texts are left for the report. Prints a Markdown
table of mean macro-F1 over the languages, and the difference to the default.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from training.evaluate import Recipe
from training.reference import predict_by_reference
from training.students import unmeasured
from training.students.ngram import NgramConfig, fit
from understudy.model import StudentModel
from understudy.sample import read_samples
from understudy.statistics import macro_f1
from understudy.task import Task, load_tasks

DEFAULT = NgramConfig()


VARIANTS = {
    "default": DEFAULT,
    "orders 2–4": replace(DEFAULT, max_order=4),
    "orders 2–6": replace(DEFAULT, max_order=6),
    "orders 3–5": replace(DEFAULT, min_order=3),
    "no words": replace(DEFAULT, word_orders=0),
    "words, no pairs": replace(DEFAULT, word_orders=1),
    "word weight 1": replace(DEFAULT, word_weight=1.0),
    "plain IDF": replace(DEFAULT, idf_power=1.0),
    "logistic regression alone": replace(DEFAULT, shares=(1.0, 0.0), bayes_share=0.0),
    "ridge alone": replace(DEFAULT, shares=(0.0, 1.0), bayes_share=0.0),
    "complement naive Bayes alone": replace(DEFAULT, shares=(0.0, 0.0)),
    "no naive Bayes": replace(DEFAULT, bayes_share=0.0),
    "keyword weight 1": replace(DEFAULT, keyword_weight=1.0),
    "2¹⁶ slots": replace(DEFAULT, slot_bits=16),
}


def scores(task: Task, language: str, recipe: Recipe, judge: Path, limit: int) -> dict[str, float]:
    """Macro-F1 of every variant and of the reference on the first `limit` human texts."""
    learn = recipe.samples(task, language)
    dev = read_samples(judge, task.label_names)[:limit]
    texts, unseen = [s.text for s in learn], [s.text for s in dev]
    truth, labels = [s.label for s in dev], task.label_names
    found = {}
    for name, config in VARIANTS.items():
        fitted = fit(
            texts,
            [task.index(s.label) for s in learn],
            len(labels),
            kinds=[s.kind for s in learn],
            config=config,
        )
        info = unmeasured(task, language, "ngram", fitted)
        model = StudentModel(info, model=fitted.model, tokenizer=fitted.tokenizer)
        found[name] = macro_f1(truth, model.predict(unseen), labels)
    by_reference = predict_by_reference(texts, [s.label for s in learn], unseen)
    found["TF-IDF + LR"] = macro_f1(truth, by_reference, labels)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True, help="folder with human/<task>/")
    parser.add_argument("--train", default="bundled+keywords", help="as in 'understudy evaluate'")
    parser.add_argument("--languages", nargs="*", default=["en", "sw", "th"])
    parser.add_argument("--tasks", nargs="*", default=["topic", "intent", "sentiment"])
    parser.add_argument("--limit", type=int, default=500, help="human texts of each cell")
    options = parser.parse_args()
    tasks, recipe = load_tasks(), Recipe.parse(options.train)
    columns: dict[str, dict[str, float]] = {}
    for name in options.tasks:
        cells = []
        for language in options.languages:
            judge = options.data / "human" / name / f"{language}.train.jsonl"
            if judge.is_file() and language in tasks.find(name).languages:
                cells.append(scores(tasks.find(name), language, recipe, judge, options.limit))
                print(f"{name} {language}", file=sys.stderr)
        columns[name] = {variant: fmean(cell[variant] for cell in cells) for variant in cells[0]}
    print(f"Trained on {recipe.name}; mean of {', '.join(options.languages)}.\n")
    print("| | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for variant in next(iter(columns.values())):
        figures = [
            f"{column[variant]:.3f} ({column[variant] - column['default']:+.3f})"
            for column in columns.values()
        ]
        print(f"| {variant} | " + " | ".join(figures) + " |")


if __name__ == "__main__":
    main()
