"""Every metric of pictures in one table: what it takes, which way is better, how it is loaded.

Curation's scorers, the trainers' validation, their choice of the best checkpoint and evaluation
read it. Another metric is a module beside this one, with a function that loads it, and a line in
`METRICS`. Most metrics judge pictures one by one. Others measure how far apart two whole sets are:
they compute features of every picture, and then one distance of all of them.
The table imports neither PyTorch nor a metric until one is loaded.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from models.metrics.frechet import Statistics
    from models.metrics.mmd import KernelSet

    Compared = Tensor | Statistics | KernelSet
    """The features of a reference, or what `Metric.prepared` makes of them."""


class Judge(NamedTuple):
    """A metric that is ready to use."""

    compute: "Callable[..., Tensor]"
    """From uint8 images [B, 3, H, W], and references of the same shape if the metric needs them, to
    one value for each, [B]; NaN where it is not defined. No value depends on the other images."""
    digest: str = ""
    """Of its weights or parameters, SHA-256; empty for a formula without any."""


class SetJudge(NamedTuple):
    """A metric of whole sets that is ready to use."""

    features: "Callable[[Tensor], Tensor]"
    """From uint8 images [B, 3, H, W] to float32 [B, D]; no row depends on the other images."""
    distance: "Callable[[Tensor, Compared], float]"
    """From the features of one set [n, D] to those of the other [m, D], to what `Metric.prepared`
    makes of them, or to its `Statistics` if the metric's ``takes_statistics`` says so."""
    digest: str
    """Of the network's weights, SHA-256."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """What is known of a metric without loading it."""

    loader: str
    """MODULE:FUNCTION, called with the variant, the folder of weights or None, and the device."""
    variant: str = ""
    """Which of several definitions or sets of weights; their values are not compared."""
    against: Literal["none", "hq", "posterior_mean"]
    """What an image is compared with: nothing, its HQ image, or the predictor's posterior mean as
    it was saved in 8 bits. A metric of sets compares them with a set of HQ images, in no order."""
    higher_is_better: bool
    """Its direction."""
    min_side: int = 1
    """Pixels that an image must have on each side."""
    kind: Literal["image", "set"] = "image"
    """Whether `load` gives its judge of single images, or `load_set` that of whole sets."""
    features: str = ""
    """Of a metric of sets: which features it compares. Metrics of one name share their pass."""
    distance: str = ""
    """Of a metric of sets: MODULE:FUNCTION, called with the features of both sets. Its ``loader``
    loads the network that computes them, as a `Judge` whose ``compute`` returns [B, D]."""
    prepare: str = ""
    """Of a metric of sets: MODULE:FUNCTION, called with a reference's features, that makes of them
    once what ``distance`` would otherwise compute anew for every set."""
    takes_statistics: bool = False
    """Of a metric of sets: whether a stored mean and covariance can take the reference's place."""
    pooled: Literal["mean", "root_mean"] = "mean"
    """How the values of a set's images become one: their mean, or the square root of it."""
    resize: str = "none"
    """How images come to the size at which they are judged; part of a result's fingerprint."""
    implementation: str = "latent-pmrf/1"
    """Of a result's fingerprint; another number where a change of the code changes values."""
    dtype: str = "float32"
    """In which it computes; part of a result's fingerprint."""
    dtype_on_cuda: str = ""
    """The same on a GPU, where it is another."""
    identify: str = ""
    """MODULE:FUNCTION, called as ``loader`` is, that returns the digest of the weights; for a
    network so large that it is not loaded only to learn that."""
    scale: tuple[float, float] | None = None
    """Typical lowest and highest value, for metrics that curation scores by; not bounds."""
    default_threshold: float | None = None
    """What curation keeps when the user names no threshold; None keeps everything."""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares an image with another."""
        return self.against != "none"

    def dtype_on(self, device: str) -> str:
        """Return the dtype in which it computes on a kind of device, "cpu" or "cuda"."""
        return (self.dtype_on_cuda if device == "cuda" else "") or self.dtype

    def digest(self, folder: str | Path | None = None) -> str:
        """Return the digest of its weights, as its judge has it; empty for a formula.

        Raises:
            ValueError: as `load`.
        """
        if self.identify:
            digest: str = _function(self.identify)(self.variant, folder, "cpu")
            return digest
        return self._load(folder, "cpu").digest

    def load(self, folder: str | Path | None = None, device: "torch.device | str" = "cpu") -> Judge:
        """Load a metric of single images.

        Args:
            folder: where its weights are; None: where the metric's module looks for them.
            device: where to compute.

        Raises:
            ValueError: weights are missing, damaged or of another network; the message says which
                and where to get them. `models.checkpoint.CheckpointError` is such an error. Or the
                metric is one of whole sets.
        """
        self._require("image", "load_set")
        return self._load(folder, device)

    def load_set(
        self,
        folder: str | Path | None = None,
        device: "torch.device | str" = "cpu",
        shared: SetJudge | None = None,
    ) -> SetJudge:
        """Load a metric of whole sets.

        Args:
            folder: where the network's weights are; None: where its module looks for them.
            device: where to compute the features.
            shared: a loaded metric of the same ``features``, whose network serves this one too.

        Raises:
            ValueError: see `load`; or the metric is one of single images.
        """
        self._require("set", "load")
        distance = self.distance_function()
        if shared is not None:
            return shared._replace(distance=distance)
        network = self._load(folder, device)
        return SetJudge(network.compute, distance, network.digest)

    def distance_function(self) -> "Callable[[Tensor, Compared], float]":
        """Return what compares the features of two sets, without loading the network."""
        function: Callable[[Tensor, Compared], float] = _function(self.distance)
        return function

    def prepared(self, features: "Tensor") -> "Compared":
        """Return a reference [m, D] as ``distance`` takes it fastest, for many sets."""
        compared: Compared = _function(self.prepare)(features)
        return compared

    def _load(self, folder: str | Path | None, device: "torch.device | str") -> Judge:
        judge: Judge = _function(self.loader)(self.variant, folder, device)
        return judge

    def _require(self, kind: str, other: str) -> None:
        if self.kind != kind:
            raise ValueError(f"{self.loader}: a metric of kind {self.kind!r}; load it by {other}()")


def _function(name: str) -> Any:
    """Import MODULE:FUNCTION, or MODULE:CLASS.FUNCTION."""
    module, _, function = name.partition(":")
    return attrgetter(function)(importlib.import_module(module))


METRICS: dict[str, Metric] = {
    "psnr": Metric(
        loader="models.metrics.fidelity:load_psnr",
        dtype="float64",
        variant="rgb",
        against="hq",
        higher_is_better=True,
    ),
    "ssim": Metric(
        loader="models.metrics.fidelity:load_ssim",
        dtype="float64",
        variant="rgb",
        against="hq",
        higher_is_better=True,
        min_side=11,
    ),
    "ms_ssim": Metric(
        loader="models.metrics.fidelity:load_ms_ssim",
        dtype="float64",
        variant="luma",
        against="hq",
        higher_is_better=True,
        min_side=161,
    ),
    "lpips": Metric(
        loader="models.metrics.lpips:load",
        variant="alex",
        against="hq",
        higher_is_better=False,
        min_side=31,
    ),
    "lpips_vgg": Metric(
        loader="models.metrics.lpips:load",
        variant="vgg",
        against="hq",
        higher_is_better=False,
        min_side=16,
    ),
    "dists": Metric(
        loader="models.metrics.dists:load",
        variant="vgg",
        against="hq",
        higher_is_better=False,
    ),
    "colour": Metric(
        loader="models.metrics.colour:load",
        dtype="float64",
        variant="cie76-blurred",
        against="hq",
        higher_is_better=False,
    ),
    "indrmse": Metric(
        loader="models.metrics.fidelity:load_indrmse",
        dtype="float64",
        variant="authors",
        against="posterior_mean",
        higher_is_better=False,
    ),
    "indrmse_pmrf": Metric(
        loader="models.metrics.fidelity:load_indrmse",
        dtype="float64",
        variant="pmrf",
        against="posterior_mean",
        higher_is_better=False,
        pooled="root_mean",
    ),
    "deg": Metric(
        loader="models.metrics.deg:load",
        variant="authors",
        against="hq",
        higher_is_better=False,
        resize="grey, torch bicubic 128",
    ),
    "deg_vqfr": Metric(
        loader="models.metrics.deg:load",
        variant="vqfr",
        against="hq",
        higher_is_better=False,
        resize="grey, cv2 bilinear 128",
    ),
    "lmd": Metric(
        loader="models.metrics.lmd:load",
        variant="authors",
        against="hq",
        higher_is_better=False,
        resize="torch bicubic 256",
    ),
    "lmd_vqfr": Metric(
        loader="models.metrics.lmd:load",
        variant="vqfr",
        against="hq",
        higher_is_better=False,
        resize="cv2 bilinear 256",
    ),
    "identity_dlib": Metric(
        loader="models.metrics.dlib_faces:load_identity",
        against="hq",
        higher_is_better=False,
        resize="the face's FFHQ square to 300",
    ),
    "landmarks_dlib": Metric(
        loader="models.metrics.dlib_faces:load_landmarks",
        against="hq",
        higher_is_better=False,
    ),
    "brisque": Metric(
        loader="models.metrics.brisque:load_judge",
        dtype="float64",
        against="none",
        higher_is_better=False,
        min_side=16,
        # Crops of real photographs scored from -13 (crisp texture) to 116 (empty gradients). Above
        # 40 they begin to be out of focus or empty; textured parts of fair ones lie below 30.
        scale=(0.0, 100.0),
        default_threshold=40.0,
    ),
    "qalign": Metric(
        loader="models.metrics.qalign:load",
        identify="models.metrics.qalign:identify",
        dtype_on_cuda="float16",
        variant="quality",
        against="none",
        higher_is_better=True,
        scale=(1.0, 5.0),
        default_threshold=3.5,  # the paper's
    ),
    "fid": Metric(
        loader="models.metrics.inception:load",
        variant="clean",
        against="hq",
        higher_is_better=False,
        kind="set",
        features="inception/clean",
        distance="models.metrics.frechet:frechet_distance",
        prepare="models.metrics.frechet:Statistics.of",
        takes_statistics=True,
        resize="299: Pillow bicubic, floats, antialiased",
    ),
    "fid_legacy": Metric(
        loader="models.metrics.inception:load",
        variant="legacy_pytorch",
        against="hq",
        higher_is_better=False,
        kind="set",
        features="inception/legacy_pytorch",
        distance="models.metrics.frechet:frechet_distance",
        prepare="models.metrics.frechet:Statistics.of",
        takes_statistics=True,
        resize="299: PyTorch bilinear, not antialiased",
    ),
    "fid_dinov2": Metric(
        loader="models.metrics.dinov2:load",
        variant="vitl14",
        against="hq",
        higher_is_better=False,
        kind="set",
        features="dinov2/vitl14",
        distance="models.metrics.frechet:frechet_distance",
        prepare="models.metrics.frechet:Statistics.of",
        takes_statistics=True,
        resize="224: Pillow bicubic, floats, antialiased",
    ),
    "mmd_dinov2": Metric(
        loader="models.metrics.dinov2:load",
        variant="biased",
        against="hq",
        higher_is_better=False,
        kind="set",
        features="dinov2/vitl14",
        distance="models.metrics.mmd:mmd",
        prepare="models.metrics.mmd:KernelSet.of",
        resize="224: Pillow bicubic, floats, antialiased",
    ),
    "mmd_dinov2_unbiased": Metric(
        loader="models.metrics.dinov2:load",
        variant="unbiased",
        against="hq",
        higher_is_better=False,
        kind="set",
        features="dinov2/vitl14",
        distance="models.metrics.mmd:unbiased_mmd",
        prepare="models.metrics.mmd:KernelSet.of",
        resize="224: Pillow bicubic, floats, antialiased",
    ),
    "musiq": Metric(
        loader="models.metrics.musiq:load",
        variant="koniq/pyiqa-resize",
        against="none",
        higher_is_better=True,
        resize="224 and 384 by the longer side: PyTorch bicubic, not antialiased; and native",
    ),
    "clipiqa": Metric(
        loader="models.metrics.clipiqa:load",
        variant="rn50/pyiqa",
        against="none",
        higher_is_better=True,
        min_side=31,
    ),
    "niqe": Metric(
        loader="models.metrics.niqe:load",
        dtype="float64",
        variant="pyiqa",
        against="none",
        higher_is_better=False,
        min_side=192,
    ),
}


def to_pixels(images: "Tensor") -> "list[npt.NDArray[np.uint8]]":
    """uint8 images [B, 3, H, W] => an array [H, W, 3] of each, as metrics outside PyTorch take."""
    return list(images.permute(0, 2, 3, 1).cpu().numpy())


def best_by(name: str) -> str:
    """Name a metric for the choice of the best checkpoint: prefixed by "-" if less is better."""
    return name if METRICS[name].higher_is_better else f"-{name}"
