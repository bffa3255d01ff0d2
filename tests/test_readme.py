"""The READMEs promise nothing that is not there: every command, option, module, path and link."""

import pkgutil
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from infra import cli
from infra.deploy import config as services
from pipelines.curate import config as curate
from pipelines.demo import config as demo
from pipelines.encode import config as encode
from pipelines.evaluate import config as evaluate
from pipelines.evaluate.convergence import config as convergence
from pipelines.evaluate.table import config as evaluate_table
from pipelines.evaluate.vae import config as vaes
from pipelines.restore import config as restore
from pipelines.score import config as score
from trainers.recipes import flow_config as flow
from trainers.recipes import predictor_config as predictor
from trainers.recipes import vae_config as vae

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pipelines", "trainers", "datasets", "models", "infra", "tests")
READMES = [
    ROOT / "README.md",
    *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md"))),
]
OURS = rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})"
"""Begins a name of this project: not in the middle of another path, name or address."""
PROGRAMS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "pipelines.curate": (curate.CurateConfig, curate.PRESETS),
    "pipelines.demo": (demo.DemoConfig, demo.PRESETS),
    "pipelines.encode": (encode.EncodeConfig, encode.PRESETS),
    "pipelines.evaluate": (evaluate.EvaluateConfig, evaluate.PRESETS),
    "pipelines.restore": (restore.RestoreConfig, restore.PRESETS),
    "pipelines.score": (score.ScoreConfig, score.PRESETS),
    "trainers.vae": (vae.VAEConfig, vae.PRESETS),
    "trainers.predictor": (predictor.PredictorConfig, predictor.PRESETS),
    "trainers.flow": (flow.FlowConfig, flow.PRESETS),
    "infra.deploy": (services.ServicesConfig, services.PRESETS),
}
"""The configuration and the presets of every program that reads its options from them."""
OF_SUBCOMMANDS: tuple[tuple[Any, Mapping[str, Any]], ...] = (
    (curate.VerifyConfig, {"none": curate.VerifyConfig()}),
    (encode.VerifyConfig, {"none": encode.VerifyConfig()}),
    (restore.ExportConfig, {"none": restore.ExportConfig()}),
    (evaluate_table.TableConfig, {"none": evaluate_table.TableConfig()}),
    (convergence.ConvergenceConfig, convergence.PRESETS),
    (vaes.VAEsConfig, vaes.PRESETS),
    (evaluate.SweepConfig, evaluate.SWEEP_PRESETS),
)
SUBCOMMANDS: dict[tuple[str, str], tuple[int | None, tuple[Any, Mapping[str, Any]] | None]] = {
    ("pipelines.curate", "verify"): (1, OF_SUBCOMMANDS[0]),
    ("pipelines.curate", "export-scores"): (2, None),
    ("pipelines.encode", "verify"): (1, OF_SUBCOMMANDS[1]),
    ("pipelines.restore", "export"): (2, OF_SUBCOMMANDS[2]),
    ("pipelines.evaluate", "table"): (None, OF_SUBCOMMANDS[3]),
    ("pipelines.evaluate", "convergence"): (None, OF_SUBCOMMANDS[4]),
    ("pipelines.evaluate", "vae"): (0, OF_SUBCOMMANDS[5]),
    ("pipelines.evaluate", "sweep"): (0, OF_SUBCOMMANDS[6]),
}
"""How many paths a subcommand takes, None for any number of them, and what reads the options that
follow, if any may follow."""
OTHERS = (
    *("python3", ".", "export", "cd", "install", ".venv/bin/pip"),
    *("mlflow", "docker", "ray", "sbatch"),
)
"""What begins a command that runs nothing of this project."""


def _commands(readme: Path) -> Iterator[list[str]]:
    """Yield the words of every command in the ``bash`` blocks, but for "…", which abbreviates."""
    for block in re.findall(r"^```bash\n(.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                words = [word for word in shlex.split(command, comments=True) if word != "…"]
                if words:
                    yield words


def _prose(readme: Path) -> str:
    """Return a README without its blocks of code."""
    return re.sub(r"^```.*?^```", "", readme.read_text(), flags=re.MULTILINE | re.DOTALL)


def _program(words: list[str]) -> tuple[str, list[str]] | None:
    """Split a command into the dotted name of the module of ours that it runs, and its arguments.

    That is what follows ``-m``, or the file that a launcher is given; None: a program of others.
    """
    for place, word in enumerate(words):
        is_run = word.endswith(".py") or words[place - 1] in ("-m", "--module")
        if is_run and re.match(rf"{OURS}(\.|/|$)", word):
            return word.removesuffix(".py").replace("/", "."), words[place + 1 :]
    return None


def _parse(module: str, arguments: list[str], saved: str) -> None:
    """Read the arguments of a program as it does itself; ``saved`` is what --config is given."""
    parser = PROGRAMS.get(module)
    if (module, *arguments[:1]) in SUBCOMMANDS:
        paths, parser = SUBCOMMANDS[module, arguments[0]]
        if paths is None:
            paths = len([*takewhile(lambda word: not word.startswith("-"), arguments[1:])])
        assert len(arguments) > paths, f"{module} {arguments}: takes {paths} paths"
        arguments = arguments[paths + 1 :]
    if "--config" in arguments:
        arguments[arguments.index("--config") + 1] = saved
    if parser is not None:
        cli.parse(*parser, arguments, module, "")
    elif module.startswith(("pipelines", "trainers")):
        assert not arguments, f"{module}: takes no {arguments}"


def _is_module(name: str) -> bool:
    """Tell whether a dotted name is a module or a package, without importing it."""
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_name(f"{path.name}.py").exists()


def _runs(module: str) -> bool:
    """Tell whether ``python -m module`` finds something to run: a module, or a package's main."""
    path = ROOT / module.replace(".", "/")
    return _is_module(f"{module}.__main__" if path.is_dir() else module)


@cache
def _options() -> set[str]:
    """List the options of all programs, as their ``--help`` does."""
    with redirect_stdout(StringIO()) as printed:
        for cls, presets in [*PROGRAMS.values(), *OF_SUBCOMMANDS]:
            with pytest.raises(SystemExit):
                cli.parse(cls, presets, ["--help"], "", "")
    return {"--help", *re.findall(r"--[a-z][a-z0-9-]+", printed.getvalue())}


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """Write a saved configuration that changes nothing, in the place of one that a run saved."""
    path = tmp_path / "config.json"
    path.write_text("{}")
    return str(path)


def test_the_first_readme_is_short() -> None:
    """A newcomer reads 150 lines at most; details are in the READMEs of the folders."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_can_be_run(readme: Path, saved: str) -> None:
    """Every command names a module that runs, and options that its configuration reads."""
    for words in _commands(readme):
        found = _program(words)
        if found is None:
            assert words[0] in OTHERS, f"{words}: no program of ours; list it in OTHERS if meant"
        else:
            module, arguments = found
            assert _runs(module), f"{words}: there is no {module}"
            _parse(module, arguments, saved)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_options_in_the_text_exist(readme: Path) -> None:
    """An option between backticks is one of some program of this project."""
    code = " ".join(re.findall(r"`[^`]+`", _prose(readme)))
    named = set(re.findall(r"--[\w-]+", code))

    assert named <= _options()


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_paths_exist(readme: Path) -> None:
    """Every dotted name and every path of this project leads to something."""
    text = readme.read_text()
    for name in set(re.findall(rf"{OURS}(?:\.\w+)+(?![/\w])", text)):
        if not _is_module(name):
            pkgutil.resolve_name(name)
    for path in set(re.findall(rf"{OURS}/[\w./-]*", text)):
        assert (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    """A relative link names a file, and a heading in it if it names one."""
    for link in re.findall(r"\]\(([^)]+)\)", readme.read_text()):
        if not link.startswith("https://"):
            path, _, heading = link.partition("#")
            target = (readme.parent / path).resolve() if path else readme
            assert target.is_file(), link
            assert not heading or heading in _headings(target), link


def _headings(readme: Path) -> set[str]:
    """Return the names by which links reach a file's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", _prose(readme), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
