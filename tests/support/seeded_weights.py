"""Weights and pictures by formula, for networks whose published weights are not at hand.

Each tensor is drawn from a seed and its own name, so that an independent implementation that loads
the same names computes the same values: the tests compare with values that the metrics' reference
implementations gave under these weights. Names and shapes are those of the published files; lists
of them are in tests/fixtures/*_keys.tsv, a name and its shape a line.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = ("position_emb", "scale_emb", ".cls")  # ends of names of what is added to tokens
Shape = tuple[int, ...]


def read_keys(name: str) -> dict[str, Shape]:
    """Read the names and shapes of a published file: ``name`` is such as "musiq"."""
    lines = (FIXTURES / f"{name}_keys.tsv").read_text().splitlines()
    pairs = (line.split("\t") for line in lines)
    return {key: tuple(int(size) for size in shape.split()) for key, shape in pairs}


def keys_hash(keys: Mapping[str, Shape]) -> str:
    """Hash names and shapes: 16 hexadecimal digits of SHA-256 over their sorted lines."""
    lines = sorted(f"{key} {shape}" for key, shape in keys.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def seeded(keys: Mapping[str, Shape], seed: int) -> dict[str, Tensor]:
    """Draw a tensor for each name and shape: float32, but int64 for counters of batches."""
    return {key: _draw(key, shape, seed) for key, shape in keys.items()}


def repeated(keys: Mapping[str, Shape], seed: int, count: int = 65537) -> dict[str, Tensor]:
    """Draw as `seeded` does, but ``count`` values at most, which large tensors repeat: quick."""
    normal = _tensor(np.random.default_rng(seed).standard_normal(count))
    drawn = {}
    for key, shape in keys.items():
        size = math.prod(shape)
        if size > count:
            whole = normal.repeat(-(-size // count))[:size].view(shape)
            drawn[key] = whole.mul_(_deviation(key, shape))
        else:
            drawn[key] = _draw(key, shape, seed)
    return drawn


def zeros(keys: Mapping[str, Shape], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Return zeros of these names and shapes, which take next to no room in memory or a file."""
    return {
        key: torch.zeros((), dtype=dtype).expand(shape)
        if math.prod(shape) > 1
        # of a single value, PyTorch would keep the step of 0
        else torch.zeros(shape, dtype=dtype)
        for key, shape in keys.items()
    }


def _draw(key: str, shape: Shape, seed: int) -> Tensor:
    """Draw one tensor at the scale that its name says; the first rule that fits counts."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if key.endswith("running_var"):
        return _tensor(0.5 + rng.random(shape))
    if key == "logit_scale":
        return _tensor(np.full(shape, math.log(100)))
    normal = np.asarray(rng.standard_normal(shape))
    if len(shape) <= 1 and key.endswith("weight"):
        return _tensor(1 + 0.1 * normal)
    return _tensor(_deviation(key, shape) * normal)


def _deviation(key: str, shape: Shape) -> float:
    """Return the standard deviation of a tensor whose mean is zero."""
    if key.endswith("running_mean"):
        return 0.1
    if key.endswith("bias"):
        return 0.05
    if "positional_embedding" in key or "token_embedding" in key or key.endswith(SMALL):
        return 0.02
    if key == "text_projection":
        return 1 / math.sqrt(shape[0])
    if len(shape) >= 2:
        return math.sqrt((2 if len(shape) == 4 else 1) / math.prod(shape[1:]))
    return 0.02


def _tensor(values: object) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def sines512() -> Tensor:
    """Draw a wave of each colour, of another direction and frequency: uint8 [1, 3, 512, 512]."""
    y, x = np.mgrid[:512, :512]
    waves = [
        np.sin(2 * np.pi * (x * across + y * down) / 512 + phase)
        for across, down, phase in ((3, 5, 0), (17, 2, 1), (1, 29, 2))
    ]
    return torch.from_numpy(np.rint(127.5 + 127.5 * np.stack(waves)).astype(np.uint8))[None]


def grey512() -> Tensor:
    """Draw one grey, 128, everywhere: uint8 [1, 3, 512, 512]."""
    return torch.full((1, 3, 512, 512), 128, dtype=torch.uint8)
