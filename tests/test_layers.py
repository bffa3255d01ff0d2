"""The house stands: imports point downwards, every module imports, `datasets` is ours."""

import ast
import importlib
import importlib.util
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
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in MAY_IMPORT
    for path in (ROOT / folder).rglob("*.py")
    if path.name != "__init__.py"
)


def imported(path: Path) -> Iterator[str]:
    """Yield the first name of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import hides which layer it reaches"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_follow_the_layers(folder: str) -> None:
    """A folder imports only from the folders below it."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        above = set(imported(path)) & MAY_IMPORT.keys() - MAY_IMPORT[folder] - {folder}

        assert not above, f"{path.name} imports {above}, above {folder}/"


@pytest.mark.parametrize("folder", [*MAY_IMPORT, "tests"])
def test_packages_hold_one_docstring(folder: str) -> None:
    """No re-exports: what a name means is found in the module that defines it."""
    body = ast.parse((ROOT / folder / "__init__.py").read_text()).body

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
        path.name
        for folder in MAY_IMPORT
        for path in (ROOT / folder).rglob("*.py")
        if "deepspeed" in set(imported(path))
    }

    assert users <= {"engine.py"}


def test_no_module_shadows_a_library() -> None:
    """Trainers run as files have trainers/ first on the path: no file bears a library's name."""
    taken = {
        "types",
        "logging",
        "random",
        "select",
        "queue",
        "ray",
        "mlflow",
        "torch",
        "numpy",
        "statistics",
        "json",
    }

    assert not taken & {
        path.stem for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py")
    }
