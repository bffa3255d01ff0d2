"""Pictures that a model restores in the same command that evaluates them.

OUT/inputs/           pictures of an image set; see `pipelines.evaluate.inputs`
OUT/restored/NAME/    what the model has made of them, as `pipelines.restore` leaves it

They are restored by the job of `pipelines.restore`. So they are what that command makes, and those
that are there stay when the evaluation is run again.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from infra.errors import BudgetExceeded, UsageError, UserError
from infra.paths import AnyPath, path_of
from models.bundle_facts import BundleConfig
from pipelines.evaluate.config import POSTERIOR_MEAN, STATE, EvaluateConfig
from pipelines.evaluate.inputs import prepared
from pipelines.evaluate.job import Evaluation
from pipelines.evaluate.pairs import named_folders
from pipelines.evaluate.summary import Summary
from pipelines.jobs.folder import SetFolder
from pipelines.jobs.stage import Engine, started
from pipelines.restore.bundles import resolved
from pipelines.restore.config import ModelRule, RestoreConfig, RestoreRule
from pipelines.restore.job import Restoration
from pipelines.restore.networks import check_method, open_model

RESTORED = "restored"


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A way in which a model makes the pictures of a method."""

    rule: ModelRule
    of_hq: bool = False
    """Of the HQ pictures instead of the LQ ones."""


Methods = Mapping[str, Method]
"""By name."""


def run(config: EvaluateConfig, engine: Engine | None = None) -> Summary:
    """Restore with a model, and evaluate what it has made beside the other methods.

    Raises:
        UsageError: a model, pictures, a name or a device that cannot be used.
        UserError: pictures that cannot be restored or measured, or an image set that is damaged.
        BudgetExceeded: all is done, but metrics that were asked for by name are missing.
    """

    def methods(bundle: BundleConfig, rule: ModelRule) -> Methods:
        name = config.name or rule.method or bundle.method
        is_wanted = name != POSTERIOR_MEAN and not config.sets.posterior_mean
        return {name: Method(rule=rule), **(posterior_mean(bundle, rule) if is_wanted else {})}

    return restored_and_evaluated(config, methods, config, engine)


def posterior_mean(bundle: BundleConfig, rule: ModelRule) -> Methods:
    """Return the method that is a model's posterior mean; none of a model without a predictor."""
    if "predictor" not in bundle.parts:
        return {}
    mean = ModelRule(model=rule.model, method=POSTERIOR_MEAN, precision=rule.precision)
    return {POSTERIOR_MEAN: Method(rule=mean)}


def restored_and_evaluated(
    config: EvaluateConfig,
    methods: Callable[[BundleConfig, ModelRule], Methods],
    saved: Any,
    engine: Engine | None = None,
) -> Summary:
    """Restore pictures by several methods of a model, and evaluate all.

    Args:
        config: the model, the pictures, and the folders of other methods.
        methods: returns those of the model, of its configuration and its rule.
        saved: configuration of the command, for --config.
        engine: what carries out the units; by default Ray, which is started once for all.

    Raises:
        UsageError: see `run`.
        UserError: see `run`.
        BudgetExceeded: see `run`.
    """
    config = config.absolute()
    rule = replace(config.rule, model=resolved(config.rule.model))  # once, of a run that goes on
    bundle = open_model(rule).config
    made = methods(bundle, rule)
    for method in made.values():
        check_method(method.rule, bundle)
    output = SetFolder(path_of(config.output), STATE, "an evaluation")
    folders = {name: output.path / RESTORED / name for name in made}
    own = tuple(f"{name}={folder}" for name, folder in folders.items())
    named_folders([*own, *config.sets.restored])  # refuses a name that comes twice
    with started(engine, config.measure.workers) as running:
        with output.held():
            sets = prepared(config, bundle, output, running)
            for name, method in made.items():
                pictures = sets.reference if method.of_hq else sets.lq
                job = restoring(pictures, folders[name], method.rule, config)
                finish(Restoration(job, bundle), config.sets.common, running)
        mean = folders.get(POSTERIOR_MEAN, "")
        sets = replace(
            sets,
            restored=(*own, *sets.restored),
            posterior_mean=sets.posterior_mean or str(mean),
        )
        return Evaluation(replace(config, sets=sets), saved).run(running)


def restoring(
    pictures: str, folder: AnyPath, rule: ModelRule, config: EvaluateConfig
) -> RestoreConfig:
    """Return the job that restores the pictures of a method.

    Args:
        pictures: folder or archive.
        folder: of the restored pictures.
        rule: how.
        config: on what, and whether pictures of another configuration are replaced.
    """
    measure = config.measure
    return RestoreConfig(
        input=(pictures,),
        output=str(folder),
        rule=RestoreRule(
            **asdict(rule), device=measure.device, batch=measure.batch, threads=measure.threads
        ),
        gpus=measure.gpus,
        workers=measure.workers,
        overwrite=config.given.overwrite,
    )


def finish(job: Restoration, may_lack: bool, engine: Engine) -> None:
    """Restore what is not restored yet.

    Raises:
        UsageError: the folder has pictures of another configuration.
        UserError: some cannot be restored, and none may lack.
    """
    try:
        job.run(engine)
    except BudgetExceeded as error:
        if not may_lack:
            raise UserError(
                f"{job.folder}: {error}. Numbers of the others would be those of another test set: "
                "mend them and run the same command again, or give --common to evaluate the others"
            ) from error
        sys.stderr.write(f"{job.folder}: {error}; --common evaluates the others\n")


def check(config: EvaluateConfig) -> None:
    """Refuse a command line on which nothing can be restored and evaluated.

    Raises:
        UsageError: says what is missing.
    """
    given = {"output": config.output, "model": config.rule.model, "input": config.given.input}
    if lacks := [f"--{name}" for name, value in given.items() if not value]:
        raise UsageError(f"no {', '.join(lacks)}; python -m pipelines.evaluate --help says what")
