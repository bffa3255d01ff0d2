"""`python -m pipelines.restore export WHAT BUNDLE`: hand a finished model on as one folder."""

import sys
from dataclasses import replace
from pathlib import Path

from infra.errors import UsageError
from infra.folders.contract import Folder
from infra.folders.opening import open_folder
from infra.paths import path_of
from infra.storage import sha256
from infra.temporary import temporary_folder
from models.bundle import UNFINISHED, Bundle, in_memory, write_bundle
from models.bundle_card import CARD
from models.bundle_facts import BUNDLE, PARTS, PartName
from models.checkpoint import CheckpointError
from pipelines.restore import runs
from pipelines.restore.bundles import open_bundle
from pipelines.restore.config import ExportConfig


def export(what: str, where: str, config: ExportConfig) -> None:
    """Write a bundle.

    Args:
        what: a run's folder; or whatever else `open_bundle` takes, to store it in another way.
        where: folder of the bundle, local or in a bucket.
        config: the options.

    Raises:
        UsageError: nothing that a bundle could be made of, or a folder that is taken.
    """
    if _is_run(where):
        raise UsageError(
            f"{where}: a training run, which stays as it is; give the bundle a folder of its own, "
            f"such as {path_of(where) / runs.BUNDLE}"
        )
    bundle = _of_run(what, config) if _is_run(what) else _of_model(what, config)
    bundle = _told(_restoring(bundle, config), config)
    target = path_of(where)
    try:
        if isinstance(target, Path):
            write_bundle(target, bundle)
        else:
            with temporary_folder() as folder:
                write_bundle(folder, bundle)
                upload(folder, open_folder(str(target)))
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    said = bundle.config
    sys.stdout.write(
        f"{target}: {said.method}, {said.size} pixels, {said.dtype}, {said.digest[:12]}; restore "
        f"with it: python -m pipelines.restore --model {target}\n"
    )


def _is_run(what: str) -> bool:
    return (path_of(what) / runs.CHECKPOINTS).is_dir()


def _of_run(what: str, config: ExportConfig) -> Bundle:
    """Load a run's checkpoint."""
    found = runs.chosen(path_of(what), config.checkpoint)
    sys.stdout.write(f"{what}: {found.said}\n")
    return runs.loaded(found, _given(config), alignment=config.alignment, dtype=config.dtype)


def _of_model(what: str, config: ExportConfig) -> Bundle:
    """Load any other model, to be stored as the options say."""
    wrong = [f"--{name}" for name in _given(config)]
    wrong += ["--checkpoint"] * (config.checkpoint != "last")
    if wrong:
        raise UsageError(f"{', '.join(wrong)}: of a training run, and {what} is none; leave it out")
    bundle = open_bundle(what)
    changed = replace(bundle.config, alignment=config.alignment or bundle.config.alignment)
    return in_memory(changed, bundle.velocity, bundle.restorer, config.dtype)


def _restoring(bundle: Bundle, config: ExportConfig) -> Bundle:
    """Set how a bundle restores where its user names nothing else."""
    old = bundle.config
    sigma_s = old.rule.sigma_s if config.sigma_s is None else config.sigma_s
    new = replace(
        old,
        rule=replace(old.rule, sigma_s=sigma_s),
        steps=config.steps or old.steps,
        solver=config.solver or old.solver,
    )
    return replace(bundle, config=new)


def _told(bundle: Bundle, config: ExportConfig) -> Bundle:
    """Add to the facts of a bundle what the user says.

    Raises:
        UsageError: --about cannot be read.
    """
    facts = bundle.config.training
    own = {str(part): config.licence for part in bundle.config.parts if config.licence}
    try:
        about = path_of(config.about).read_bytes().decode() if config.about else facts.about
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--about {config.about}: not a file of UTF-8 text: {error}") from error
    facts = replace(facts, about=about, licences={**own, **facts.licences})
    return replace(bundle, config=replace(bundle.config, training=facts))


def _given(config: ExportConfig) -> dict[PartName, str]:
    given: dict[PartName, str] = {
        "vae": config.vae,
        "predictor": config.predictor,
        "regressor": config.regressor,
    }
    return {name: where for name, where in given.items() if where}


def upload(folder: Path, there: Folder) -> None:
    """Store a bundle in a bucket; bundle.json comes last, and without it there is no bundle.

    Raises:
        UsageError: something else has one of a bundle's names there.
    """
    stored = {part: [entry.name for entry in there.list(f"{part}/")] for part in PARTS}
    ours = any(there.size(name) is not None for name in (BUNDLE, UNFINISHED))
    taken: list[str] = [part for part in PARTS if stored[part]]
    taken += [CARD] * (there.size(CARD) is not None)
    if taken and not ours:
        raise UsageError(
            f"{there.uri}: holds {taken[0]}, which is not of a bundle, and a bundle would replace "
            "it; give a folder of its own, or move that away"
        )
    there.put(UNFINISHED, b"")
    there.delete(BUNDLE)
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != BUNDLE]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    for old in (name for part in PARTS for name in stored[part] if name not in names):
        there.delete(old)
    for name, path in names.items():
        there.put_file(name, path, sha256(path))
    there.put(BUNDLE, (folder / BUNDLE).read_bytes())
    there.delete(UNFINISHED)
