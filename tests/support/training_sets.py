"""Small sets to train on, and trainers run on them as a user runs them."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets import shards
from datasets.decoding import encode_png
from datasets.degradation.parameters import degradation_preset
from datasets.latent_format import LatentDraw, LatentFormat, LatentSample
from datasets.latent_pairs import PAIRS, pair_table
from infra.config import canonical_json, to_dict
from infra.storage import sha256, write_bytes
from models.checkpoint import load_checkpoint, save_checkpoint
from models.frozen import load_posterior_mean, load_vae
from models.metrics import dists
from models.metrics.lpips import LPIPS, VARIANTS, Net
from models.predictor import swinir
from models.predictor.swinir import SwinIR
from models.vae.folder import save_sim_vae
from models.velocity import looformer
from models.velocity.looformer import LooUFormer
from tests.conftest import PATIENCE, ROOT, environment, free_port, picture
from tests.support import tiny_vae
from tests.support.preloaded import Preloaded
from tests.support.published_sets import finish, write_latent_shard

SMOKE = ("--preset", "tiny", "--model", "tiny", "--global-batch-size", "4")  # the smallest run
GOLDEN = ROOT / "tests" / "fixtures" / "golden_losses.json"


def write_image_set(
    folder: Path, *, size: int, train: int = 7, held_out: int = 3, sources: Sequence[str] = ()
) -> Path:
    """Write an image set of two splits; returns its folder.

    Args:
        folder: where.
        size: side of the images.
        train: number of images of that split.
        held_out: number of images of the other.
        sources: the photograph of each image, for its JSON; without, images have none.
    """
    written = []
    for split, first, count in (("train", 0, train), ("val", train, held_out)):
        if not count:
            continue
        images = (
            (
                f"p{number:02d}",
                {"png": encode_png(np.asarray(picture(number, size, size)))}
                | ({"json": canonical_json({"source": sources[number]})} if sources else {}),
            )
            for number in range(first, first + count)
        )
        written.append(shards.write_shard(folder / shards.shard_name(split, 0), images))
    return finish(folder, written, "image set")


def write_latent_set(
    folder: Path,
    *,
    channels: int = 4,
    side: int = 4,
    train: int = 8,
    identity: Mapping[str, Any] | None = None,
) -> Path:
    """Write pairs whose target is a function of the source, and three more, held out."""
    latent = LatentFormat(channels=channels, height=side, width=side, dtype="float32")
    rng = np.random.default_rng(0)
    written = []
    for split, count in (("train", train), ("val", 3)):
        samples = []
        for number in range(count):
            source = rng.normal(size=latent.shape).astype(np.float32)
            target = np.tanh(2 * source) + 0.5
            draw = LatentDraw(number=0, source=source, flip=False)
            samples.append(
                LatentSample(key=f"{split}{number}", targets=(target, target), draws=(draw,))
            )
        written.append(write_latent_shard(folder / shards.shard_name(split, 0), samples, latent))
    write_bytes(folder / PAIRS, shards.parquet_bytes(pair_table(folder, written)))
    made_by = {"source": "posterior_mean", **(identity or {})}
    return finish(folder, written, "latent set", [PAIRS], latent=to_dict(latent), identity=made_by)


@dataclass
class Files:
    """What there is to train a tiny flow on."""

    latents: str
    images: str
    vae: str
    predictor: str
    regressor: str


def write_files(folder: Path, *, size: int) -> Files:
    """Write small sets, and tiny networks with weights of their own.

    Args:
        folder: where.
        size: side of the images; that of the latents is an eighth.
    """
    vae = tiny_vae.build()
    save_sim_vae(vae, folder / "vae")
    write_predictor(folder / "swinir", seed=1)
    write_regressor(folder / "regressor", seed=1)
    identity = {
        "vae": load_vae(str(folder / "vae"))[1].weights,
        "predictor": load_posterior_mean(str(folder / "swinir"))[1].weights,
        "posterior": "sample",
        "precision": "float32",
        "degradation": to_dict(degradation_preset("pmrf-128")),
    }
    return Files(
        latents=str(write_latent_set(folder / "latents", side=size // 8, identity=identity)),
        images=str(write_image_set(folder / "images", size=size)),
        vae=str(folder / "vae"),
        predictor=str(folder / "swinir"),
        regressor=str(folder / "regressor"),
    )


def write_predictor(folder: Path, seed: int) -> Path:
    """Write a tiny predictor with weights of a seed; returns the folder."""
    return _write_seeded(folder, seed, lambda: SwinIR(swinir.PRESETS["tiny"]))


def write_regressor(folder: Path, seed: int) -> Path:
    """Write a tiny regressor with weights of a seed; returns the folder."""
    return _write_seeded(folder, seed, lambda: LooUFormer(looformer.PRESETS["tiny"]))


def _write_seeded(folder: Path, seed: int, build: Callable[[], SwinIR | LooUFormer]) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build()
    save_checkpoint(folder, network.state_dict(), asdict(network.config))
    return folder


def write_lpips(folder: Path, net: Net = "alex") -> Path:
    """Write LPIPS's two files as they are published, with random weights; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model, generator = LPIPS(net), torch.Generator().manual_seed(0)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            value.data.normal_(0, 0.05, generator=generator)
        elif name.startswith("trunk"):  # features keep the variance of the image
            value.data.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        else:
            value.data.uniform_(0, 1, generator=generator)
    classifier = {"classifier.1.weight": torch.ones(2, 2), "classifier.1.bias": torch.ones(2)}
    torch.save({**model.trunk.state_dict(), **classifier}, folder / model.trunk.CHECKPOINT)
    torch.save(dict(model.weights.state_dict()), folder / VARIANTS[net].file)
    return folder


def write_dists(folder: Path) -> Path:
    """Write DISTS's two files as they are published, with random weights; returns the folder."""
    write_lpips(folder, "vgg")
    generator = torch.Generator().manual_seed(1)
    shape = (1, sum(dists.WIDTHS), 1, 1)
    weights = {name: torch.rand(shape, generator=generator) for name in ("alpha", "beta")}
    torch.save(weights, folder / dists.FILE)
    return folder


def launch(command: Sequence[str | Path], output: Path) -> "subprocess.CompletedProcess[str]":
    """Run a launcher, by its path or as a module, to its end.

    One by its path starts at the root, as the README says; a module starts outside the project, as
    nothing obliges it to be inside.
    """
    is_module = not Path(command[0]).is_absolute()
    done = subprocess.run(
        [
            *([sys.executable, "-m"] * is_module),
            *map(str, command),
            *("--output", str(output), "--no-track"),
        ],
        cwd=output.parent if is_module else ROOT,
        env={**environment(output.parent), "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done


def start_trainer(
    command: Sequence[str | Path], output: Path, *, track: bool = False, **variables: str
) -> Preloaded:
    """Start `[MODULE, OPTIONS...]` in a process that has imported the libraries already."""
    module, *options = command
    tracked = "--track" if track else "--no-track"
    arguments = [*options, "--output", output, tracked]
    return Preloaded(str(module), arguments, output.parent, **variables)


def variables_of_ranks(count: int) -> list[dict[str, str]]:
    """Return what launchers tell the ranks of a job on this machine, by their environment."""
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    together["WORLD_SIZE"] = str(count)
    return [{**together, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def start_ranks(commands: Sequence[Sequence[str | Path]], output: Path) -> list[Preloaded]:
    """Start a rank for each command, in the processes of `start_trainer`."""
    return [
        start_trainer(command, output, **variables)
        for command, variables in zip(commands, variables_of_ranks(len(commands)), strict=True)
    ]


def run_trainer(
    command: Sequence[str | Path], output: Path, *, ranks: int = 1, track: bool = False
) -> str:
    """Run `[MODULE, OPTIONS...]` to its end, which must be a good one; returns what rank 0 said."""
    processes = (
        start_ranks([command] * ranks, output)
        if ranks > 1
        else [start_trainer(command, output, track=track)]
    )
    said = [process.communicate() for process in processes]
    for process, (out, errors) in zip(processes, said, strict=True):
        assert process.returncode == 0, out[-1000:] + errors[-3000:]
    return said[0][0]


def log(output: Path) -> list[dict[str, Any]]:
    """Read the numbers of each step from a run's log, without times and speeds."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "time" and "speed/" not in key}
        for line in lines
        if "step" in line
    ]


def assert_golden(name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Compare training losses with those kept in fixtures/golden_losses.json.

    Other processors sum in another order, and fifty updates let that grow: 1e-3 is what they get.
    """
    golden = json.loads(GOLDEN.read_text())[name]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses == pytest.approx(golden, rel=1e-3)


def same_curve(mine: list[dict[str, Any]], expected: list[dict[str, Any]], rel: float) -> None:
    """Assert that two logs agree, at every step and in every number."""
    assert len(mine) == len(expected)
    for one, other in zip(mine, expected, strict=True):
        assert one == pytest.approx(other, rel=rel, abs=1e-5)


def digests(folder: Path) -> dict[str, str]:
    """Hash every file of a folder."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def saved_weights(output: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    """Read weights of a checkpoint."""
    return load_checkpoint(output / "checkpoints" / f"step-{step:08d}" / name)[1]


def assert_equal(mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Assert equality to the bit."""
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
