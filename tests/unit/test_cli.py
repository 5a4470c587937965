from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from understudy.bundle import StudentBundle, find_bundles
from understudy.cli import main
from understudy.sample import Sample, is_held_out, write_samples

TOPIC_ROWS = [
    ("The {} reached orbit", "science/technology", ("rocket", "probe", "satellite", "capsule")),
    ("We booked a {} by the sea", "travel", ("hotel", "flight", "cruise", "cabin")),
    ("The {} voted on the budget", "politics", ("senate", "minister", "party", "council")),
    ("The {} scored in the final", "sports", ("striker", "team", "captain", "rookie")),
    ("The {} cured the fever", "health", ("doctor", "nurse", "clinic", "vaccine")),
    ("The {} opened the festival", "entertainment", ("band", "film", "singer", "actor")),
    ("The {} crosses the plateau", "geography", ("river", "valley", "canyon", "ridge")),
]
MOOD = (("glad", "hurra fint"), ("grim", "trist og sint"))
COMMANDS = [
    ("train",),
    ("evaluate",),
    ("serve",),
    ("serve", "student"),
    ("serve", "generator"),
    ("serve", "settings"),
    ("classify",),
    ("compare",),
    ("demo",),
    ("tasks",),
    ("data",),
    ("replies",),
]
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_bundle: StudentBundle
) -> None:
    """Every command runs beside a few good and bad files."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("UNDERSTUDY_")]:
        monkeypatch.delenv(name)
    Path("bad.jsonl").write_text('{"text":"a","label":"travel"}\n{"text":"b","label":"travle"}\n')
    Path("good.jsonl").write_text('{"text":"a","label":"travel"}\n')
    Path("tiny-bad.jsonl").write_text('{"text":"a","label":"food"}\n{"text":"b","label":"foot"}\n')
    Path("folder").mkdir()
    Path("folder/mine.txt").write_text("mine")
    Path("tiny").symlink_to(tiny_bundle.path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="understudy")


def succeed(command: str) -> str:
    result = invoke(*command.split())
    assert result.exit_code == 0, result.stderr or repr(result.exception)
    return result.stdout


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "understudy", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def every_command(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from every_command(command, *path, name)


def test_the_commands_of_the_contract_are_there() -> None:
    assert set(every_command(main)) == set(COMMANDS)


@pytest.mark.parametrize("command", [(), *COMMANDS], ids=" ".join)
def test_every_command_explains_itself(command: tuple[str, ...]) -> None:
    text = succeed(" ".join((*command, "--help")))
    assert text.startswith(f"Usage: {' '.join(('understudy', *command))} ")
    assert max(map(len, text.splitlines())) <= 100
    # A line of what it does, then the options, each with its own explanation.
    assert len(text.splitlines()[2].split()) >= 3
    assert text == succeed(" ".join((*command, "-h")))


# Each row: the arguments, and what the one line on standard error must say.
WRONG_USE: list[tuple[str, str]] = [
    ("tran", "Did you mean 'train'?"),
    ("serve studnt", "Did you mean 'student'?"),
    ("train --out x --bogus", "No such option '--bogus'"),
    ("train --task topic --language sw", "Missing option '--out'"),
    ("train --task topics --out x", "no task 'topics' (did you mean 'topic'?)"),
    ("train --language xx --out x", "one of: az, cy, de, en, he, id, ro, sl, sw, te, th"),
    ("train --language sw_KE --out x", "a BCP-47 tag such as 'sw'"),
    ("train --task sarcasm --language sw --out x", "expected one of: en"),
    ("train --student nope --out x", "expected one of: ngram"),
    ("train --data good.jsonl --out x", "expected --task and --language with it"),
    ("train --task topic --data good.jsonl --out x", "expected --task and --language with it"),
    ("train --task topic --language sw --data none.jsonl --out x", "there is no file none.jsonl"),
    ("train --task topic --language sw --data folder --out x", "File 'folder' is a directory"),
    (
        "train --task topic --language sw --data bad.jsonl --out x",
        "bad.jsonl:2: unknown label 'travle' (did you mean 'travel'?)",
    ),
    ("train --task topic --language sw --out good.jsonl", "'good.jsonl' is a file"),
    ("evaluate", "Give either --bundle and --data, or --test"),
    ("evaluate --bundle tiny", "--bundle needs --data FILE.jsonl"),
    ("evaluate --bundle tiny --data none.jsonl", "there is no file none.jsonl"),
    ("evaluate --bundle tiny --data tiny-bad.jsonl", "expected one of: food, sport, weather"),
    ("evaluate --test folder", "expected a folder of <task>/<language>.test.jsonl"),
    ("evaluate --test folder --train junk", "expected 'bundled', 'keywords' or a folder"),
    ("classify hello", "Missing option '--task'"),
    ("classify --task topic --top-k 0 hello", "0 is not in the range"),
    ("classify --task topic --url localhost:3000 hello", "expected http://host:port or grpc://"),
    ("classify --task topic --url http://host:port hello", "expected http://host:port or grpc://"),
    (f"compare --task topic --language sw --student {NOBODY} good.jsonl", "'--generator'"),
    (
        f"compare --task topic --language sw --student {NOBODY} --generator {NOBODY} none.jsonl",
        "there is no file none.jsonl",
    ),
    (
        f"compare --task topic --language xx --student {NOBODY} --generator {NOBODY} good.jsonl",
        "task 'topic' does not cover language 'xx'",
    ),
    (
        f"compare --task topic --language sw --student {NOBODY} --generator {NOBODY} "
        "--held-out good.jsonl",
        "good.jsonl has no held-out rows",
    ),
    ("data --rows held-out", "--rows needs one --task and one --language"),
    ("data --rows some", "'all', 'learn', 'held-out'"),
    ("tasks topik", "did you mean 'topic'?"),
    ("replies good.jsonl", "Missing option '--task'"),
    ("replies --task topic none.jsonl", "there is no file none.jsonl"),
    ("serve student", "Missing option '--language'"),
    ("serve student --language sw --port x", "'x' is not a valid integer"),
    ("serve student --language sw --port 70000", "70000 is not in the range 0<=x<=65535"),
    ("serve student --language sw_KE", "a BCP-47 tag such as 'sw'"),
    ("serve generator --replay a --record b", "nothing to --record"),
    ("", "see 'understudy --help'"),
    ("serve", "see 'understudy serve --help'"),
    (
        "train --task topic --language sw --data good.jsonl --out x",
        "label 'science/technology' has 0 of the 1 distinct texts",
    ),
    (
        f"compare --task topic --language sw --student x --generator {NOBODY} good.jsonl",
        "expected http://host:port or grpc://",
    ),
    ("evaluate --bundle tiny --data tiny-bad.jsonl", "tiny-bad.jsonl:2: "),
    ("classify --task topic --url http://127.0.0.1:9 \udcff", "well-formed"),
    ("evaluate --bundle none --data good.jsonl", "expected a student bundle's directory"),
    (
        "train --task sarcasm --language en --out folder",
        "expected a new, an empty or a bundle's directory",
    ),
    ("demo --language xx", "no bundled data in language 'xx'"),
]


@pytest.mark.parametrize(
    ("arguments", "says"),
    WRONG_USE,
)
def test_wrong_use_exits_2_with_one_line_that_says_what_to_do(arguments: str, says: str) -> None:
    result = invoke(*arguments.split())
    assert result.exit_code == 2, repr(result.exception)
    assert result.stderr.endswith("\n")
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 400
    assert says in result.stderr
    assert result.stderr.startswith("understudy")
    assert result.stdout == ""
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["tasks", "topic"], 0),
        (["tasks", "topik"], 2),
        (["train"], 2),
        (["train", "--task", "topic", "--language", "sw", "--data", "bad.jsonl", "--out", "x"], 2),
        (["classify", "--task", "topic", "--url", NOBODY, "hello"], 1),
        (["serve", "generator", "--port=0", "--grpc-port=0", "--replay", "none.jsonl"], 2),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else str(value),
)
def test_the_process_exits_with_its_code_and_one_line_where_it_fails(
    arguments: list[str], code: int
) -> None:
    done = in_a_process(*arguments)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)
    assert bool(done.stdout) == (code == 0)


def test_an_unreachable_service_is_named_and_exits_1() -> None:
    result = invoke("classify", "--task", "topic", "--url", NOBODY, "hello")
    assert result.exit_code == 1
    assert f"{NOBODY} can't be reached" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m understudy data --task topic --language sw --rows all | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["text"]


def topic_samples() -> list[Sample]:
    adverbs = ("today", "again", "at last", "in june")
    return [
        Sample(f"{sentence.format(word)} {adverb}.", label)
        for sentence, label, words in TOPIC_ROWS
        for word in words
        for adverb in adverbs
    ]


def test_train_then_evaluate_prints_the_scores_by_name() -> None:
    rows = topic_samples()
    write_samples(Path("a.jsonl"), rows[:80])
    write_samples(Path("b.jsonl"), rows[80:])
    table = succeed(
        "train --student ngram --task topic --language sw --data a.jsonl --data b.jsonl "
        "--out made/here"
    )
    assert "made/here" in table
    info = StudentBundle.open(Path("made/here")).info
    assert (info.task, info.language, info.kind) == ("topic", "sw", "ngram")
    assert info.data["texts"] == len(rows)
    assert info.data["sources"] == ["a.jsonl", "b.jsonl"]

    write_samples(Path("test.jsonl"), [*rows, Sample("The rocket reached orbit now.", "sports")])
    printed = succeed("evaluate --bundle made/here --data test.jsonl --json")
    result = json.loads(printed)
    assert result["n"] == len(rows) + 1
    assert result["accuracy"] == pytest.approx(len(rows) / (len(rows) + 1))
    assert 0.9 < result["macro_f1"] < 1.0
    assert result["macro_f1_interval"][0] <= result["macro_f1"] <= result["macro_f1_interval"][1]
    assert (result["task"], result["language"]) == ("topic", "sw")
    assert result["model_version"] == info.version
    assert list(result["per_label"]) == list(info.labels)
    assert result["per_label"]["sports"] == {
        "precision": 1.0,
        "recall": pytest.approx(16 / 17),
        "f1": pytest.approx(32 / 33),
        "support": 17,
    }
    for figure in ("macro-F1", "accuracy", "science/technology"):
        assert figure in succeed("evaluate --bundle made/here --data test.jsonl")


def test_several_students_go_below_out_by_language_and_task_and_learn_no_held_out_text() -> None:
    command = "train --task sentiment --language sw --language cy --no-keywords --out made"
    succeed(command)
    assert find_bundles(Path("made")) == [Path("made/cy/sentiment"), Path("made/sw/sentiment")]
    info = StudentBundle.open(Path("made/sw/sentiment")).info
    assert (info.task, info.language) == ("sentiment", "sw")
    held_out = succeed("data --task sentiment --language sw --rows held-out").splitlines()
    assert info.data["texts"] == 160 - len(held_out)
    assert info.data["held_out"] == {
        "texts": len(held_out),
        "learnt_from": False,
        "rule": "int(sha256(text).hexdigest(), 16) % 8 == 0, sentences only",
    }
    before = Path("made/cy/sentiment/bundle.json").read_bytes()
    succeed(f"{command} --missing-only")
    assert Path("made/cy/sentiment/bundle.json").read_bytes() == before


def rows_of(side: str) -> list[dict[str, str]]:
    printed = succeed(f"data --task topic --language sw --rows {side}")
    return [json.loads(line) for line in printed.splitlines()]


def test_the_rows_printed_are_the_bundled_ones_and_each_is_on_one_side() -> None:
    every, learn, held_out = (rows_of(rows) for rows in ("all", "learn", "held-out"))
    assert held_out
    assert all(is_held_out(row["text"]) and "kind" not in row for row in held_out)
    assert all(not is_held_out(row["text"]) or row["kind"] == "keyword" for row in learn)

    def counted(rows: list[dict[str, str]]) -> Counter[tuple[str, str]]:
        return Counter((row["text"], row["label"]) for row in rows)

    assert counted(learn) + counted(held_out) == counted(every)
    assert Counter(row.get("kind", "sentence") for row in every)["sentence"] == 280


def test_the_table_of_the_data_counts_what_the_rows_are() -> None:
    (row,) = json.loads(succeed("data --task topic --language sw --json"))
    every = rows_of("all")
    keywords = sum(row.get("kind") == "keyword" for row in every)
    assert (row["task"], row["language"]) == ("topic", "sw")
    assert (row["sentences"], row["keywords"]) == (len(every) - keywords, keywords)
    assert row["held_out"] == len(rows_of("held-out"))
    assert len(json.loads(succeed("data --json"))) == 34


def test_the_tasks_are_listed_as_json_with_labels_in_order() -> None:
    tasks = {task["task"]: task for task in json.loads(succeed("tasks --json"))}
    assert list(tasks) == ["intent", "sarcasm", "sentiment", "topic"]
    assert [label["name"] for label in tasks["topic"]["labels"]] == [row[1] for row in TOPIC_ROWS]
    assert tasks["sarcasm"]["languages"] == ["en"]
    (one,) = json.loads(succeed("tasks sarcasm --json"))
    assert one == tasks["sarcasm"]


def test_a_task_of_the_user_s_own_is_listed_and_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder/mood.yaml").write_text(
        "task: mood\ntitle: Mood\ninstruction: Say.\nlanguages: [no]\n"
        "labels: [{name: glad, description: Joy.},\n  {name: grim, description: Grief.}]\n"
    )
    monkeypatch.setenv("UNDERSTUDY_TASKS", "folder")
    assert "mood" in succeed("tasks")
    rows = [Sample(f"{a} {b} {c}", label) for a in "mnop" for b in "qrst" for label, c in MOOD]
    write_samples(Path("mood.jsonl"), rows)
    succeed("train --task mood --language no --data mood.jsonl --out made")
    assert StudentBundle.open(Path("made")).info.labels == ("glad", "grim")
    assert json.loads(succeed("data --task mood --json")) == [
        {"task": "mood", "language": "no", "sentences": 0}
    ]


def test_brackets_in_a_table_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("folder/mood.yaml").write_text(
        'task: mood\ntitle: "[bold]Mood"\ninstruction: Say.\nlanguages: [no]\n'
        'labels: [{name: glad, description: "[/b] and [i]joy[/i]."},\n'
        "  {name: grim, description: Grief.}]\n"
    )
    monkeypatch.setenv("UNDERSTUDY_TASKS", "folder")
    table = succeed("tasks mood")
    assert "[bold]Mood" in table
    assert "[/b] and [i]joy[/i]." in table


def test_a_label_whose_texts_are_all_held_out_is_refused_in_one_line() -> None:
    held_out = [text for i in range(100) if is_held_out(text := f"nzuri {i} sana")]
    rows = [Sample(text, "positive") for text in held_out]
    rows += [Sample(f"mbaya {i} kabisa", "negative") for i in range(60)]
    write_samples(Path("rows.jsonl"), rows)
    result = invoke(
        *("train", "--task", "sentiment", "--language", "sw", "--data", "rows.jsonl"),
        *("--held-out", "keep", "--out", "made"),
    )
    assert result.exit_code == 2
    assert "'positive'" in result.stderr
