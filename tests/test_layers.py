"""The house stands: imports point downwards and never in a circle, every module imports."""

import ast
import functools
import graphlib
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "infra": set(),
    "models": set(),
    "datasets": {"infra"},
    "pipelines": {"infra", "models", "datasets"},
    "trainers": {"infra", "models", "datasets"},
}
COMMANDS_OVER_COMMANDS = {  # they restore with that command's code
    ("pipelines.demo", "pipelines.restore"),
    ("pipelines.evaluate", "pipelines.restore"),
}
HEAVY = ("torch", "ray", "mlflow", "deepspeed", "transformers")


def _name(path: Path) -> str:
    """Return the dotted name of a module's file; a package goes by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    _name(path): path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))
}
PACKAGES = [name for name, path in FILES.items() if path.name == "__init__.py"]
MODULES = [name for name in FILES if name not in PACKAGES]
COMMANDS = sorted(
    {_name(path.parent / "__init__.py") for path in ROOT.glob("pipelines/*/__main__.py")}
)
ENTRIES = {
    *(f"{command}.__main__" for command in COMMANDS),
    *(name for name in MODULES if FILES[name].parent == ROOT / "trainers"),
    "infra.deploy.__main__",
    "infra.tracking.__main__",
}
CONFIGS = [name for name in MODULES if name.endswith(".config") and name != "infra.config"]


def imported(path: Path) -> Iterator[str]:
    """Yield the full name of everything that a file imports, wherever the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import hides which layer it reaches"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below in FILES else str(node.module)


@functools.cache
def graph() -> dict[str, set[str]]:
    """Return what each module of ours imports of ours."""
    return {name: {found for found in imported(FILES[name]) if found in FILES} for name in FILES}


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_follow_the_layers(folder: str) -> None:
    """A folder imports only from the folders below it."""
    for name in (name for name in FILES if _is_in(name, folder)):
        reached = {found.partition(".")[0] for found in imported(FILES[name])}
        above = reached & MAY_IMPORT.keys() - MAY_IMPORT[folder] - {folder}

        assert not above, f"{name} imports {above}, above {folder}/"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_no_other_command(command: str) -> None:
    """What two commands need lies in pipelines/jobs, or a layer further down."""
    others = [
        other
        for other in COMMANDS
        if other != command and (command, other) not in COMMANDS_OVER_COMMANDS
    ]
    for name in (name for name in FILES if _is_in(name, command)):
        reached = [found for found in graph()[name] for other in others if _is_in(found, other)]

        assert not reached, f"{name} imports {reached}"


def test_jobs_know_no_command() -> None:
    """`pipelines/jobs` serves every command and imports none."""
    for name in (name for name in FILES if _is_in(name, "pipelines.jobs")):
        reached = [found for found in graph()[name] for one in COMMANDS if _is_in(found, one)]

        assert not reached, f"{name} imports {reached}"


def test_the_loop_knows_no_recipe() -> None:
    """`trainers/loop` trains whatever it is given."""
    for name in (name for name in FILES if _is_in(name, "trainers.loop")):
        reached = [found for found in graph()[name] if _is_in(found, "trainers.recipes")]

        assert not reached, f"{name} imports {reached}"


def test_entries_are_imported_by_nobody() -> None:
    """A program's file runs as `__main__`: imported too, it would be executed twice."""
    for name, reached in graph().items():
        assert not reached & ENTRIES, f"{name} imports {reached & ENTRIES}"


def test_no_imports_go_in_a_circle() -> None:
    """Modules can be put in an order in which each imports only earlier ones."""
    order = list(graphlib.TopologicalSorter(graph()).static_order())  # raises CycleError

    assert set(order) == FILES.keys()


@pytest.mark.parametrize("config", CONFIGS)
def test_configs_stand_alone(config: str) -> None:
    """A configuration imports nothing of its own folder, which may therefore import it."""
    folder = config.rpartition(".")[0]

    assert not [found for found in graph()[config] if _is_in(found, folder)]


def test_configs_are_light() -> None:
    """A command line can be checked, and `--help` printed, without PyTorch, Ray or MLflow."""
    program = (
        f"import importlib, sys\nfor name in {CONFIGS}: importlib.import_module(name)\n"
        f"print(*sorted(set({HEAVY}) & sys.modules.keys()))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert loaded.stdout.split() == []


@pytest.mark.parametrize("package", [*PACKAGES, "tests", "tests.support"])
def test_packages_hold_one_docstring(package: str) -> None:
    """No re-exports: what a name means is found in the module that defines it."""
    body = ast.parse((ROOT.joinpath(*package.split(".")) / "__init__.py").read_text()).body

    assert [type(node) for node in body] == [ast.Expr]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module: str) -> None:
    """No module names another that does not exist."""
    importlib.import_module(module)


def test_datasets_is_ours() -> None:
    """The local package, not Hugging Face's, answers to `import datasets`."""
    spec = importlib.util.find_spec("datasets")

    assert spec is not None
    assert Path(spec.origin or "").is_relative_to(ROOT)


def test_only_the_engine_imports_deepspeed() -> None:
    """DeepSpeed is behind one file."""
    users = {
        name for name in MODULES if "deepspeed" in {n.split(".")[0] for n in imported(FILES[name])}
    }

    assert users <= {"trainers.loop.engine"}


def test_no_module_shadows_a_library() -> None:
    """A file run by its path has its folder first on the path: no module bears a library's name."""
    taken = {*sys.stdlib_module_names, "ray", "mlflow", "torch", "numpy", "transformers", "boto3"}
    named = {name.rpartition(".")[2] for name in FILES} - {"__main__"}

    assert not taken & named


def test_nothing_else_stands_at_the_top() -> None:
    """Beside the folders that the project has, a licence and dotfiles: no file that a test left."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: what belongs to the project cannot be told from what lies here")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True)
    top = {name.partition("/")[0] for name in listed.stdout.decode().splitlines()}

    assert top - {".ci", ".gitignore", "LICENSE"} == {
        *MAY_IMPORT,
        "tests",
        "pyproject.toml",
        "README.md",
    }
