"""Faces of the model's size, restored: the one way by which commands and the demo page do it.

What a face becomes is a function of the model, the rule, the face and its name. On a CPU a pass of
the networks is one face, in one thread unless a user wants more, so that neither the number of
workers nor the neighbours of a face can change a bit of it.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.decoding import Pixels
from datasets.unusable import UnusableImage
from infra.errors import UsageError, UserError
from models.bundle import Bundle
from models.bundle_facts import BundleConfig
from models.compilation import compile_blocks
from models.half import cast_weights
from models.noise import NamedNoise, Purpose
from models.ranges import uint8_to_unit, unit_to_uint8
from models.replay import Replayed
from models.restorer import Restorer
from models.spread import Spread, spread
from models.transfer import sent
from pipelines.jobs.kernels import same_in_every_run
from pipelines.restore.bundles import open_bundle
from pipelines.restore.comparators import load_comparator
from pipelines.restore.config import Execution, ModelRule, RestoreRule

BATCH_ON_GPU = 8


class NotFinite(UnusableImage):
    """A face of which the networks made numbers that are not finite."""


@dataclass(frozen=True, slots=True)
class RestoredFace:
    """What one face became; all pictures RGB uint8 [size, size, 3]."""

    restored: Pixels
    """The first of its restorations."""
    posterior_mean: Pixels | None
    """What the flow began with; None for a model without a predictor."""
    samples: tuple[Pixels, ...] = ()
    """Its further restorations."""
    spread: Spread | None = None
    """How much all of them differ, in levels; None of a single one."""


class FaceRestorer:
    """A bundle at work on one device.

    Args:
        rule: the model, and how it restores; of an open device the CPU.
        expected: digest that the bundle must have: somebody may have replaced it since the job
            began. None takes any.

    Attributes:
        bundle: its configuration.
        size: side of a face in pixels.
        execution: how the networks run.
        settings: everything that a picture depends on, as JSON values.
        velocity: the flow's network, or what replays it.

    Raises:
        UsageError: no such model, a method that it has not, or a device that is not there.
        UserError: another bundle than expected.
    """

    def __init__(self, rule: RestoreRule, expected: str | None = None) -> None:
        same_in_every_run(rule.threads, tf32=rule.precision == "tf32")
        if rule.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: no GPU here; give --device cpu")
        bundle = open_model(rule)
        if expected is not None and bundle.config.digest != expected:
            raise UserError(
                f"--model {rule.model} was replaced while the job ran: it is now "
                f"{bundle.config.digest[:12]}, the job began with {expected[:12]}; bring that back "
                "and run the same command again, or restore anew with --overwrite"
            )
        check_method(rule, bundle.config)
        self.rule, self.bundle, self.size = rule, bundle.config, bundle.config.size
        self.device = torch.device(rule.device or "cpu")
        self.batch = rule.batch or BATCH_ON_GPU if self.device.type == "cuda" else 1
        self.execution = _execution(rule, self.device)
        self.settings = settings(rule, bundle.config)
        self.velocity = self._prepared(bundle.velocity)
        self._restorer = self._moved(bundle.restorer)
        if self.execution != "eager":
            self.velocity = Replayed(self.velocity)

    def varied(self, **changes: Any) -> "FaceRestorer":
        """Return a restorer with the same networks, whose rule has another ``seed``, ``steps``, ...

        Args:
            changes: values of fields of the rule that no network was loaded or prepared for.
        """
        varied = copy(self)
        varied.rule = replace(self.rule, **changes)
        varied.settings = settings(varied.rule, self.bundle)
        return varied

    def _moved(self, given: Restorer) -> Restorer:
        flow = replace(given.rule, sigma_s=_sigma_s(self.rule, self.bundle))
        if (lower := self.rule.precision) != "float32":
            flow = replace(flow, precision=lower, predictor_precision=lower)
        parts = {"vae": given.vae, "predictor": given.predictor, "regressor": given.regressor}
        moved: dict[str, Any] = {
            name: None if part is None else self._prepared(part) for name, part in parts.items()
        }
        return Restorer(flow, **moved)

    def _prepared(self, network: nn.Module) -> nn.Module:
        """Move a network to the device, in the form in which it runs there."""
        if self.rule.precision == "bfloat16" and self.rule.method != "spandrel":
            cast_weights(network, torch.bfloat16)
        if self.execution == "compiled":
            compile_blocks(network)
        return network.to(self.device)

    def compile(self) -> float:
        """Restore grey faces if the networks are to be compiled; returns the seconds of it.

        Every later pass has as many faces, so that nothing is compiled a second time.

        Raises:
            UserError: they cannot be compiled here, for want of a C compiler, say.
        """
        if self.execution != "compiled":
            return 0.0
        from torch._dynamo.exc import TorchDynamoException

        start = time.perf_counter()
        grey = np.full((self.size, self.size, 3), 128, dtype=np.uint8)
        try:
            self.varied(samples=1)([grey], ["grey"])
        except TorchDynamoException as error:
            said = " ".join(str(error).strip().splitlines()[:2])
            raise UserError(
                f"the networks cannot be compiled here ({said}); give --execution graph, which "
                "compiles nothing, and run the same command again to resume"
            ) from error
        return time.perf_counter() - start

    def __call__(self, faces: Sequence[Pixels], names: Sequence[str]) -> list[RestoredFace]:
        """Restore faces, ``batch`` in a pass.

        Args:
            faces: RGB uint8 [size, size, 3] each.
            names: of the faces; they seed the noise.

        Raises:
            NotFinite: a result that is not finite; it names the face.
        """
        restored: list[RestoredFace] = []
        for first in range(0, len(faces), self.batch):
            part = slice(first, first + self.batch)
            restored += self._pass(faces[part], names[part])
        return restored

    @torch.no_grad()
    def _pass(self, faces: Sequence[Pixels], names: Sequence[str]) -> list[RestoredFace]:
        more = pass_size(len(faces), self.batch, self.execution) - len(faces)
        filled, all_names = [*faces, *[faces[-1]] * more], [*names, *[names[-1]] * more]
        levels = sent(torch.from_numpy(np.stack(filled)), self.device)
        lq = uint8_to_unit(levels.permute(0, 3, 1, 2))
        with self._autocast():
            mean = self._restorer.posterior_mean(lq)
            pictures = [
                _pixels(self._restored(lq, mean, _sample_names(all_names, number)), names)
                for number in range(self.rule.samples)
            ]
        means = [None] * len(faces) if mean is lq else _pixels(mean, names)
        return [
            RestoredFace(first, mean, tuple(more), spread([first, *more]) if more else None)
            for mean, first, *more in zip(means, *pictures, strict=True)
        ]

    def _restored(self, lq: Tensor, mean: Tensor, names: Sequence[str]) -> Tensor:
        noise = NamedNoise(self.rule.seed, names)
        method = self.settings["method"]
        if method == "posterior-mean":
            return mean
        if method == "source":
            encoding = self._restorer.encode(mean, noise, Purpose.SOURCE_POSTERIOR)
            return self._restorer.image(self._restorer.source(encoding, noise))
        if method == "vae-reconstruction":
            encoding = self._restorer.encode(lq, noise, Purpose.TARGET_POSTERIOR)
            return self._restorer.image(encoding)
        return self._restorer.restored(
            self.velocity,
            mean,
            noise,
            steps=self.settings["steps"],
            solver=self.settings["solver"],
            strength=self.rule.strength,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        enabled = self.rule.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


def _execution(rule: RestoreRule, device: torch.device) -> Execution:
    """Return how networks run; restorers of others are not ours to record or compile."""
    if device.type == "cpu" or rule.method == "spandrel":
        return "eager"
    return rule.execution or "graph"


def pass_size(faces: int, batch: int, execution: Execution) -> int:
    """Return how many faces a pass of ``faces`` is filled up to, by the last one again.

    A graph is recorded for each size of a pass, so the sizes are powers of two, and ``batch``. What
    is compiled is compiled anew for each, which takes minutes: there the size is ``batch``.
    """
    if execution == "compiled":
        return batch
    return faces if execution == "eager" else min(batch, 1 << (faces - 1).bit_length())


def open_model(rule: ModelRule) -> Bundle:
    """Load what --model names, for its --method.

    Raises:
        UsageError: it is not there, or cannot be used.
    """
    if rule.method == "spandrel":
        return load_comparator(rule.model)
    return open_bundle(rule.model)


def check_method(rule: ModelRule, config: BundleConfig) -> None:
    """Refuse a method that the bundle has not.

    Raises:
        UsageError: says what it has.
    """
    if rule.method == "spandrel":
        return
    has: list[str] = [config.method]
    has += ["posterior-mean"] if "predictor" in config.parts else []
    has += ["source"] if "vae" in config.parts and config.rule.source != "noise" else []
    has += ["vae-reconstruction"] if "vae" in config.parts else []
    if rule.method is not None and rule.method not in has:
        raise UsageError(
            f"--method {rule.method}: --model {rule.model} has {', '.join(has)}; choose one of "
            "these, or another model"
        )


def settings(rule: RestoreRule, config: BundleConfig) -> dict[str, Any]:
    """Return everything that a restored face depends on, as JSON values.

    A posterior mean depends on the predictor alone, so that bundles of one predictor share it.
    """
    method = rule.method or config.method
    how = {name: getattr(rule, name) for name in ("samples", "precision", "threads")}
    if method == "posterior-mean":
        precision = config.rule.predictor_precision
        predictor = {"predictor": config.parts["predictor"], "predictor_precision": precision}
        return {**predictor, "method": method, **how}
    return {
        "model": config.digest,
        "method": method,
        "steps": rule.steps or config.steps,
        "solver": rule.solver or config.solver,
        "sigma_s": _sigma_s(rule, config),
        "strength": rule.strength,
        "seed": rule.seed,
        **how,
    }


def _sigma_s(rule: RestoreRule, config: BundleConfig) -> float:
    return config.rule.sigma_s if rule.sigma_s is None else rule.sigma_s


def _sample_names(names: Sequence[str], number: int) -> list[str]:
    """Return the names of a further restoration's noise; the first has the faces' own."""
    return [f"{name}#{number}" if number else name for name in names]


def _pixels(images: Tensor, names: Sequence[str]) -> list[Pixels]:
    """[B, 3, H, W] in [0, 1] => RGB uint8 [H, W, 3] of the first, as many as there are names.

    Raises:
        NotFinite: names the first that is not.
    """
    images = images[: len(names)]
    finite = images.isfinite().flatten(1).all(1).tolist()
    for name, is_finite in zip(names, finite, strict=True):
        if not is_finite:
            raise NotFinite("not_finite", name)
    return list(unit_to_uint8(images).permute(0, 2, 3, 1).contiguous().cpu().numpy())
