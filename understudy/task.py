"""Tasks: what is classified, into which labels, in which languages.

A task is one YAML file; adding the file adds the task. Every fault in one is refused with its path,
its line and what would be right.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from understudy import language as languages_
from understudy.errors import InvalidInput, NotFound, did_you_mean
from understudy.resources import bundled

#: Directories of further task files, separated as in ``PATH``.
TASKS_VARIABLE = "UNDERSTUDY_TASKS"

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_KEYS = ("task", "title", "instruction", "languages", "labels")
_LABEL_KEYS = ("name", "description")


@dataclass(frozen=True)
class Label:
    """One class of a task: the name that data and answers carry, and what it means."""

    name: str
    description: str


@dataclass(frozen=True)
class Task:
    """A classification task. The order of `labels` is the order of every logit vector."""

    name: str
    title: str
    instruction: str
    labels: tuple[Label, ...]
    languages: tuple[str, ...]

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    def index(self, label: str) -> int:
        """Position of a label.

        Raises:
            InvalidInput: the task has no such label.
        """
        try:
            return self.label_names.index(label)
        except ValueError:
            raise InvalidInput(
                f"task {self.name!r} has no label {label!r}{did_you_mean(label, self.label_names)}",
                field="label",
                expected=f"one of: {', '.join(self.label_names)}",
            ) from None

    def language(self, tag: str) -> str:
        """The task's language that serves a BCP-47 tag.

        Raises:
            InvalidInput: not a well-formed tag.
            NotFound: the task doesn't cover the language.
        """
        found = languages_.lookup(languages_.canonical(tag), self.languages)
        if found is None:
            raise NotFound(
                f"task {self.name!r} does not cover language {tag!r}",
                field="language",
                expected=f"one of: {', '.join(self.languages)}",
            )
        return found


class Tasks(Mapping[str, Task]):
    """Tasks by name, in alphabetical order."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._tasks = {task.name: task for task in sorted(tasks, key=lambda task: task.name)}

    def __getitem__(self, name: str) -> Task:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def find(self, name: str) -> Task:
        """The task of that name.

        Raises:
            NotFound: there is none.
        """
        task = self.get(name)
        if task is None:
            raise NotFound(
                f"there is no task {name!r}{did_you_mean(name, self)}",
                field="task",
                expected=f"one of: {', '.join(self)}",
            )
        return task

    @property
    def languages(self) -> tuple[str, ...]:
        """Every language that some task covers, in alphabetical order."""
        return tuple(sorted({tag for task in self.values() for tag in task.languages}))


def load_tasks(*directories: Path) -> Tasks:
    """Read every ``*.yaml`` in the directories; by default the bundled ones and `TASKS_VARIABLE`'s.

    Raises:
        InvalidInput: a file is broken, or two files define one task.
        NotFound: a directory isn't there.
    """
    if not directories:
        extra = os.environ.get(TASKS_VARIABLE, "")
        directories = (bundled("tasks"), *(Path(p) for p in extra.split(os.pathsep) if p))
    found: dict[str, tuple[Task, Path]] = {}
    for directory in directories:
        if not directory.is_dir():
            raise NotFound(f"{directory} is not a directory", expected="a folder of task files")
        for path in sorted(directory.glob("*.yaml")):
            task = load_task(path)
            if task.name in found:
                raise InvalidInput(
                    f"{path}: task {task.name!r} is defined in {found[task.name][1]} already",
                    expected="a name of its own for each task",
                )
            found[task.name] = task, path
    return Tasks(task for task, _ in found.values())


def load_task(path: Path) -> Task:
    """Read one task file.

    Raises:
        InvalidInput: the file is broken; the message gives path, line and the mend.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidInput(
            f"{path}:{line}: not YAML: {error.problem}", expected="a task file in YAML"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InvalidInput(f"{path}:{line}: not UTF-8: {error.reason}", expected="UTF-8") from error
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise InvalidInput(f"{path}:1: not YAML: {said}", expected="a task file in YAML") from error
    if root is None:
        raise InvalidInput(f"{path}:1: the file is empty", expected=f"the keys {_listed(_KEYS)}")
    return _TaskReader(path).task(root)


class _TaskReader:
    """Turns YAML nodes, which know their lines, into a task."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def task(self, root: yaml.Node) -> Task:
        fields = self._mapping(root, "the file", _KEYS)
        name = self._line_of_text(fields["task"], "task")
        if not _NAME.fullmatch(name):
            self._refuse(
                fields["task"],
                f"task: {name!r} can't be a task's name",
                "lower-case letters, digits, '-' or '_', beginning with a letter",
            )
        if name != self._path.stem:
            self._refuse(
                fields["task"],
                f"task: the name {name!r} differs from the file's",
                f"'task: {self._path.stem}', or the file renamed to {name}.yaml",
            )
        return Task(
            name=name,
            title=self._line_of_text(fields["title"], "title"),
            instruction=self._line_of_text(fields["instruction"], "instruction"),
            labels=self._labels(fields["labels"]),
            languages=self._languages(fields["languages"]),
        )

    def _labels(self, node: yaml.Node) -> tuple[Label, ...]:
        labels: list[Label] = []
        lines: dict[str, int] = {}
        for item in self._sequence(node, "labels", at_least=2):
            fields = self._mapping(item, "a label", _LABEL_KEYS)
            name = self._line_of_text(fields["name"], "name")
            # A reply or a file that differs by case alone could not be told apart.
            if (earlier := lines.get(name.casefold())) is not None:
                self._refuse(
                    fields["name"],
                    f"labels: {name!r} stands on line {earlier} already",
                    "a different name for each label",
                )
            lines[name.casefold()] = _line(fields["name"])
            description = self._line_of_text(fields["description"], "description")
            labels.append(Label(name, description))
        return tuple(labels)

    def _languages(self, node: yaml.Node) -> tuple[str, ...]:
        tags: list[str] = []
        for item in self._sequence(node, "languages", at_least=1):
            text = self._text(item, "languages")
            try:
                tag = languages_.canonical(text)
            except InvalidInput as error:
                self._refuse(item, f"languages: {error.detail}", str(error.expected))
            if tag in tags:
                self._refuse(item, f"languages: {tag!r} is listed twice", "each language once")
            tags.append(tag)
        return tuple(tags)

    def _mapping(self, node: yaml.Node, what: str, keys: tuple[str, ...]) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._refuse(node, f"{what} is not a mapping", f"the keys {_listed(keys)}")
        fields: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = str(key_node.value)
            if key not in keys:
                self._refuse(
                    key_node,
                    f"unknown key {key!r}{did_you_mean(key, keys)}",
                    f"the keys {_listed(keys)}",
                )
            if key in fields:
                self._refuse(key_node, f"the key {key!r} stands twice", "each key once")
            fields[key] = value
        missing = [key for key in keys if key not in fields]
        if missing:
            self._refuse(node, f"{what} lacks {_listed(missing)}", f"the keys {_listed(keys)}")
        return fields

    def _sequence(self, node: yaml.Node, key: str, *, at_least: int) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode) or len(node.value) < at_least:
            self._refuse(node, f"{key} is not a list of {at_least} or more", f"'{key}: [...]'")
        items: list[yaml.Node] = node.value
        return items

    def _text(self, node: yaml.Node, key: str) -> str:
        # YAML 1.1 reads a bare `no` (Norwegian) as false; what was written is what is meant.
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            self._refuse(node, f"{key} is empty or not text", f"'{key}: some text'")
        return str(node.value).strip()

    def _line_of_text(self, node: yaml.Node, key: str) -> str:
        text = self._text(node, key)
        if not text.isprintable():
            self._refuse(node, f"{key} has a line break or control character", "one line of text")
        return text

    def _refuse(self, node: yaml.Node, detail: str, expected: str) -> NoReturn:
        raise InvalidInput(f"{self._path}:{_line(node)}: {detail}", expected=expected)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
