"""What the packages may know of each other, checked on the source itself."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
STUBS = ROOT / "understudy" / "v1"
LINES = 600
_HEAVY = ("bentoml", "scipy", "sklearn", "onnx", "onnxruntime", "grpc", "openai", "torch")


def sources(*packages: str) -> list[Path]:
    return [p for name in packages for p in sorted((ROOT / name).rglob("*.py")) if p.is_file()]


def imports(path: Path, *, inside_functions: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of each module that a file imports, whether or not inside functions."""

    def visit(node: ast.AST, in_function: bool) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            inner = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Import) and (inside_functions or not in_function):
                yield from ((child.lineno, alias.name) for alias in child.names)
            if isinstance(child, ast.ImportFrom) and (inside_functions or not in_function):
                assert child.level == 0, f"{path}:{child.lineno}: a relative import"
                yield from ((child.lineno, f"{child.module}.{alias.name}") for alias in child.names)
            yield from visit(child, inner)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


def offences(paths: list[Path], *forbidden: str, inside_functions: bool) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in paths
        for line, name in imports(path, inside_functions=inside_functions)
        if name.split(".")[0] in forbidden
    ]


def test_understudy_knows_neither_training_nor_services() -> None:
    cli = ROOT / "understudy" / "cli"
    core = [path for path in sources("understudy") if cli not in path.parents]
    assert len(core) > 10
    assert offences(core, "training", "services", inside_functions=True) == []


def test_the_command_line_imports_them_only_inside_the_command_that_needs_them() -> None:
    cli = sources("understudy/cli")
    assert offences(cli, "training", "services", inside_functions=False) == []
    assert offences(cli, "training", "services", inside_functions=True) != []


def test_training_and_services_do_not_know_each_other() -> None:
    assert offences(sources("training"), "services", inside_functions=True) == []
    assert offences(sources("services"), "training", inside_functions=True) == []


def test_nothing_but_the_students_from_encoders_imports_torch_or_transformers() -> None:
    encoder = ROOT / "training" / "students"
    paths = [
        path
        for path in sources("understudy", "training", "services")
        if not (path.parent == encoder and path.name.startswith("encoder"))
        and encoder / "encoder" not in path.parents
    ]
    assert offences(paths, "torch", "transformers", "optimum", inside_functions=False) == []


def test_nothing_imports_pickle_or_what_unpickles() -> None:
    paths = sources("understudy", "training", "services")
    forbidden = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal")
    assert offences(paths, *forbidden, inside_functions=True) == []


def test_no_file_is_longer_than_can_be_read() -> None:
    paths = sources("understudy", "training", "services")
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in paths
        if STUBS not in path.parents
    }
    assert {path: lines for path, lines in lengths.items() if lines > LINES} == {}


def test_the_command_line_starts_without_what_only_some_commands_need() -> None:
    code = f"import sys, understudy.cli; print(*[m for m in {_HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_the_committed_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    protos = sorted(PROTO.rglob("*.proto"))
    options = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *options, *map(str, protos)],
        check=True,
        capture_output=True,
    )
    generated = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    committed = {
        path.relative_to(ROOT): path.read_text()
        for path in STUBS.iterdir()
        if path.suffix in (".py", ".pyi") and path.name != "__init__.py"
    }
    assert len(generated) == 3 * len(protos)
    assert generated.keys() == committed.keys()
    for path, text in generated.items():
        assert committed[path] == text, f"{path} is stale: run 'make stubs'"


def test_the_protos_lie_where_their_packages_say_and_not_under_a_name_that_others_own() -> None:
    for path in PROTO.rglob("*.proto"):
        package = ".".join(path.parent.relative_to(PROTO).parts)
        assert f"\npackage {package};\n" in path.read_text()
    # PyPI's proto-plus installs a package of the name `proto`.
    assert list(PROTO.rglob("*.py")) == []


@pytest.mark.skipif(shutil.which("buf") is None, reason="buf is not installed: npm @bufbuild/buf")
def test_buf_finds_nothing_to_say_about_the_protos() -> None:
    done = subprocess.run(["buf", "lint"], cwd=PROTO, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
