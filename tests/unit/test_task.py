from __future__ import annotations

from pathlib import Path

import pytest

from understudy.errors import InvalidInput, NotFound
from understudy.task import Task, load_task, load_tasks

GOOD = """\
task: mood
title: Mood
instruction: Say which mood the text is in.
languages: [en, sw]
labels:
  - name: glad
    description: Joy and relief.
  - name: grim
    description: Anger and grief.
"""


def write(folder: Path, content: str | bytes, name: str = "mood.yaml") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(autouse=True)
def no_further_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERSTUDY_TASKS", raising=False)


@pytest.mark.parametrize(
    ("name", "labels"), [("topic", 7), ("intent", 10), ("sentiment", 2), ("sarcasm", 2)]
)
def test_the_bundled_tasks_load_with_all_their_labels(name: str, labels: int) -> None:
    task = load_tasks().find(name)
    assert len(task.labels) == labels
    assert all(label.description for label in task.labels)


def test_the_bundled_tasks_cover_eleven_languages_and_sarcasm_english_only() -> None:
    tasks = load_tasks()
    assert list(tasks) == ["intent", "sarcasm", "sentiment", "topic"]
    eleven = ("az", "cy", "de", "en", "he", "id", "ro", "sl", "sw", "te", "th")
    assert {name: task.languages for name, task in tasks.items()} == {
        "intent": eleven,
        "sarcasm": ("en",),
        "sentiment": eleven,
        "topic": eleven,
    }
    assert tasks.languages == eleven


def test_a_good_file_gives_its_task_with_labels_in_its_order(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    assert task.name == "mood"
    assert task.label_names == ("glad", "grim")
    assert task.labels[1].description == "Anger and grief."
    assert task.languages == ("en", "sw")


# Each row: what is wrong, the file, the line it is on, and what the message must say.
BROKEN = [
    ("bad YAML", GOOD.replace("[en, sw]", "[en, sw"), 5, "not YAML"),
    ("two documents", GOOD + "---\ntask: other\n", 10, "not YAML"),
    ("a list", "- task\n- title\n", 1, "'task', 'title', 'instruction', 'languages', 'labels'"),
    (
        "an unknown key",
        GOOD.replace("instruction:", "instructions:"),
        3,
        "unknown key 'instructions' (did you mean 'instruction'?)",
    ),
    (
        "an unknown key of a label",
        GOOD.replace("    description: Joy", "    descripton: Joy"),
        7,
        "unknown key 'descripton' (did you mean 'description'?)",
    ),
    ("a key twice", GOOD + "title: Again\n", 10, "the key 'title' stands twice"),
    ("a missing key", GOOD.replace("title: Mood\n", ""), 1, "lacks 'title'"),
    (
        "a label without its description",
        GOOD.replace("    description: Joy and relief.\n", ""),
        6,
        "a label lacks 'description'",
    ),
    (
        "one label",
        GOOD.replace("  - name: grim\n    description: Anger and grief.\n", ""),
        6,
        "labels is not a list of 2 or more",
    ),
    ("labels that are text", GOOD[: GOOD.index("labels")] + "labels: glad\n", 5, "labels is not"),
    (
        "two labels that differ by case",
        GOOD.replace("name: grim", "name: GLAD"),
        8,
        "'GLAD' stands on line 6 already",
    ),
    (
        "an empty description",
        GOOD.replace("Anger and grief.", '"  "'),
        9,
        "description is empty or not text",
    ),
    ("no description at all", GOOD.replace("Anger and grief.", ""), 9, "description is empty"),
    (
        "a description over two lines",
        GOOD.replace("Anger and grief.", r'"Anger\nand grief."'),
        9,
        "description has a line break",
    ),
    ("a language twice", GOOD.replace("[en, sw]", "[en, sw, EN]"), 4, "'en' is listed twice"),
    ("no language", GOOD.replace("[en, sw]", "[]"), 4, "languages is not a list of 1 or more"),
    (
        "a bad tag",
        GOOD.replace("[en, sw]", "[en, swahili_ke]"),
        4,
        "'swahili_ke' is not a language",
    ),
    (
        "a bad tag on a line of its own",
        GOOD.replace("[en, sw]", "\n  - en\n  - 7"),
        6,
        "a BCP-47 tag such as 'sw'",
    ),
    ("a name unlike the file's", GOOD.replace("task: mood", "task: moods"), 1, "'task: mood'"),
    ("a name in capitals", GOOD.replace("task: mood", "task: Mood"), 1, "lower-case letters"),
    ("not UTF-8", GOOD.encode().replace(b"Mood", b"M\xf6d"), 2, "not UTF-8"),
    ("an empty file", "", 1, "the file is empty"),
    ("a file of comments", "# later\n", 1, "the file is empty"),
]


@pytest.mark.parametrize(
    ("content", "line", "says"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_a_broken_file_is_refused_with_path_line_and_mend(
    content: str | bytes, line: int, says: str, tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InvalidInput) as refused:
        load_task(path)
    assert refused.value.detail.startswith(f"{path}:{line}: ")
    assert says in str(refused.value)
    assert refused.value.expected


def test_two_labels_of_one_name_on_one_line_are_refused(tmp_path: Path) -> None:
    labels = "labels: [{name: a, description: x}, {name: a, description: y}]\n"
    path = write(tmp_path, GOOD[: GOOD.index("labels")] + labels)
    with pytest.raises(InvalidInput, match="'a'"):
        load_task(path)


def test_a_control_character_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("Joy", "J\x01oy"))
    with pytest.raises(InvalidInput) as refused:
        load_task(path)
    assert len(str(refused.value).splitlines()) == 1


def test_two_files_for_one_task_are_refused_and_both_named(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write(folder, GOOD)
    with pytest.raises(InvalidInput) as refused:
        load_tasks(*folders)
    for folder in folders:
        assert str(folder / "mood.yaml") in str(refused.value)


def test_the_variable_adds_its_folders_to_the_bundled_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, task in (("one", "mood"), ("two", "tone")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, GOOD.replace("task: mood", f"task: {task}"), f"{task}.yaml")
    monkeypatch.setenv("UNDERSTUDY_TASKS", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
    assert set(load_tasks()) == {"intent", "mood", "sarcasm", "sentiment", "tone", "topic"}


def test_a_file_in_the_variable_s_folder_cannot_replace_a_bundled_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, GOOD.replace("task: mood", "task: topic"), "topic.yaml")
    monkeypatch.setenv("UNDERSTUDY_TASKS", str(tmp_path))
    with pytest.raises(InvalidInput, match="'topic' is defined in"):
        load_tasks()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nowhere is not a directory"):
        load_tasks(tmp_path / "nowhere")


def test_norwegian_stays_no_and_is_not_read_as_false(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD.replace("[en, sw]", "[no, en]")))
    assert task.languages == ("no", "en")


def test_a_label_that_yaml_reads_as_a_number_or_boolean_stays_what_was_written(
    tmp_path: Path,
) -> None:
    content = GOOD.replace("name: glad", "name: yes").replace("name: grim", "name: 010")
    assert load_task(write(tmp_path, content)).label_names == ("yes", "010")


@pytest.fixture
def mood(tmp_path: Path) -> Task:
    return load_task(write(tmp_path, GOOD))


def test_a_label_is_found_by_its_position_and_a_near_miss_is_suggested(mood: Task) -> None:
    assert mood.index("grim") == 1
    with pytest.raises(InvalidInput, match=r"did you mean 'glad'") as refused:
        mood.index("galad")
    assert refused.value.expected == "one of: glad, grim"


def test_a_region_finds_its_language_and_another_language_is_not_found(mood: Task) -> None:
    assert mood.language("SW-ke") == "sw"
    with pytest.raises(NotFound) as refused:
        mood.language("cy")
    assert (refused.value.field, refused.value.expected) == ("language", "one of: en, sw")


def test_an_unknown_task_is_answered_with_its_nearest_name() -> None:
    with pytest.raises(NotFound, match=r"'topics' \(did you mean 'topic'\?\)"):
        load_tasks().find("topics")
