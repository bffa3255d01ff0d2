"""Pictures on their way into MLflow's image grid: copied at once, encoded beside the job."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from infra.tracking.delivery import warn
from infra.tracking.journal import Journal
from infra.tracking.rules import grid_files

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class ImageGrid:
    """The thread that encodes a run's pictures into its journal, until :meth:`close`.

    Args:
        journal: where they are kept.
        created: when the run began, in seconds since 1970.
        kept: called in that thread after each picture.
    """

    def __init__(self, journal: Journal, created: float, kept: Callable[[], None]) -> None:
        self._journal, self._created, self._kept = journal, created, kept
        self._encoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow-image")

    def add(self, key: str, image: "Image | np.ndarray[Any, Any]", step: int) -> None:
        """Copy a picture now, encode it later."""
        from PIL import Image

        copy = image.copy()
        picture = copy if isinstance(copy, Image.Image) else Image.fromarray(copy)
        self._encoder.submit(self._encode, key, picture, step)

    def close(self) -> None:
        """Wait until every picture is in the journal."""
        self._encoder.shutdown()

    def _encode(self, key: str, picture: "Image", step: int) -> None:
        try:
            for name, data in grid_files(key, picture, step, self._created):
                self._journal.put(name, data)
        except OSError as error:
            warn(f"{error}; the picture {key} of step {step} is lost")
        else:
            self._kept()
