"""A photograph's bytes in, the files of the command in memory out.

Every picture goes the way of `python -m pipelines.restore`, and has the same bytes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from typing import Any

import torch

from datasets.unusable import UnusableImage
from infra.config import pretty_json
from infra.errors import UserError
from pipelines.demo.app import Facts
from pipelines.demo.config import DemoConfig
from pipelines.demo.job_queue import Result
from pipelines.demo.options import CONTROLS, Options
from pipelines.restore.config import WholeRule
from pipelines.restore.networks import FaceRestorer
from pipelines.restore.outputs import png
from pipelines.restore.pictures import detail, given, made

REFUSALS = {
    "empty_file": "the file is empty; choose another",
    "not_an_image": "this is no image that can be read; PNG, JPEG, WebP, TIFF, BMP, HEIC and AVIF "
    "can",
    "truncated": "the file ends too early or is damaged; fetch it again from where it came",
    "not_aligned": "this is no aligned face: a square picture, framed as those that the model was "
    "trained on; choose 'A whole photograph'",
    "transparent": "the picture is transparent in places; fill these, and send it again",
    "out_of_memory": "the machine has too little memory for this picture now; try again later",
}
"""What a user is told for a drop reason; of others, what the decoder says."""


class Restoration:
    """A model at work for the page.

    Args:
        config: of the page.

    Raises:
        UsageError: a model or a device that cannot be used.
    """

    def __init__(self, config: DemoConfig) -> None:
        device = config.rule.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._restorer = FaceRestorer(replace(config.rule, device=device))
        self._max_pixels = int(config.max_megapixels * 1e6)
        self._smallest = WholeRule(min_face=config.min_face).smallest(self._restorer.size)
        settings = self._restorer.settings
        self.facts = Facts(
            described=f"{settings['method']} {settings['model'][:12]}, faces of "
            f"{self._restorer.size} x {self._restorer.size} pixels, on "
            f"{'a GPU' if device == 'cuda' else 'a CPU'}",
            size=self._restorer.size,
            defaults={name: settings[name] for name in CONTROLS},
        )

    def __call__(
        self, photograph: bytes, options: Options, advance: Callable[[float], None]
    ) -> Result:
        """Restore a photograph; see `pipelines.demo.job_queue.Restoring`."""
        restorer = self._restorer.varied(**options.changes)
        try:
            picture = given(
                options.key,
                options.name,
                photograph,
                restorer.size,
                self._max_pixels,
                smallest=self._smallest,
            )
        except UnusableImage as error:
            raise UserError(REFUSALS.get(error.reason) or detail(error)) from error
        with _counted(restorer, advance):
            (face,) = restorer([picture.pixels], [picture.key])
        done = made(picture, face, restorer)
        files = {
            "input.png": png(picture.pixels, {}),
            "restored.png": done.pictures[""],
            "restored.json": pretty_json(dict(done.record)),
        }
        if face.posterior_mean is not None:
            files["posterior-mean.png"] = png(face.posterior_mean, {})
        files |= {f"{what}.png": data for what, data in done.pictures.items() if what}
        return Result(files, {"facts": facts(restorer), "warnings": done.record["notes"]})


def facts(restorer: FaceRestorer) -> dict[str, str]:
    """Return the numbers that the page shows beside a picture."""
    return {"model": restorer.settings["model"][:12], "steps": str(restorer.settings["steps"])}


@contextmanager
def _counted(restorer: FaceRestorer, advance: Callable[[float], None]) -> Iterator[None]:
    """Call ``advance`` with the share of the network's evaluations that a face takes."""
    rule, settings = restorer.rule, restorer.settings
    each = ceil(settings["steps"] * rule.strength) * (2 if settings["solver"] == "heun" else 1)
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        done += 1
        advance(min(1.0, done / (each * rule.samples)))

    hook = restorer.velocity.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()
