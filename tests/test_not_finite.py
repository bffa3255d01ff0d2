"""A number that is none: the sample is named, nothing is updated, and each advised remedy works."""

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from datasets import shards
from tests.support.training_sets import assert_equal, log, saved_weights, write_latent_set
from trainers.loop.config import ChangesConfig
from trainers.loop.not_finite import Suspect, remedy, said
from trainers.recipes.flow_config import PRESETS

if TYPE_CHECKING:
    from tests.support.trainers_here import Train

pytest_plugins = ["tests.support.trainers_here"]
TINY = ["trainers.flow", "--preset", "tiny", "--model", "tiny", "--global-batch-size", "4"]
RUN = ["--workers", "0", "--max-steps", "6", "--log-every", "1", "--save-every", "1"]


def latents_with(value: float, folder: Path) -> Path:
    """Write eight pairs, of which train5 has one such value in its source."""
    latents = write_latent_set(folder / "set")
    manifest = json.loads((latents / shards.MANIFEST).read_bytes())
    entry = next(entry for entry in manifest["shards"] if entry["split"] == "train")
    tar = bytearray((latents / entry["name"]).read_bytes())
    where = tar.index(b"train5.source_0.npy") + 512 + 128
    tar[where : where + 4] = np.float32(value).tobytes()
    (latents / entry["name"]).write_bytes(tar)
    return latents


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """Train on a set in which the loss of one sample is infinite, once in two steps."""
    latents = latents_with(3e38, tmp_path_factory.mktemp("huge"))
    return [*TINY, *RUN, "--latents", latents]


def advised(said: str, option: str) -> list[str]:
    """Take an option with its values out of a message, as one would copy them."""
    found = re.search(rf"{option}(?: [\d.e+-]+)+", said)
    assert found, said
    return shlex.split(found.group().rstrip("."))


def test_a_latent_that_is_no_number_is_an_unreadable_sample(train: "Train", tmp_path: Path) -> None:
    """It is named with its shard; the advised budget skips it and counts it."""
    command = [*TINY, *RUN, "--latents", latents_with(np.nan, tmp_path)]
    ended = train(command, tmp_path / "run")
    assert ended.code == 1
    assert "train-000000.tar: train5 (0) holds values that are not finite" in ended.said
    assert not re.search("train[^5-]", ended.said.partition("train-000000")[2])

    again = train([*command, *advised(ended.said, "--skip-budget")], tmp_path / "run")
    assert again.code == 0, again.said
    assert log(tmp_path / "run")[-1]["step"] == 6
    assert max(line.get("data/skipped", 0) for line in log(tmp_path / "run")) >= 2


@pytest.mark.parametrize(
    "layout", ["--zero-stage 0", "--zero-stage 2 --micro-batch-size 1", "--zero-stage 3"]
)
def test_the_one_sample_whose_loss_is_not_finite_is_named(
    huge: list[str | Path], train: "Train", tmp_path: Path, layout: str
) -> None:
    """Its inputs are finite, so that it can only be found by its own loss; no other is named."""
    ended = train([*huge, *layout.split()], tmp_path / "run")

    assert ended.code == 1
    assert "that of 'train5' (rank 0) by itself is not" in ended.said
    assert "the inputs are finite, up to 3e+38" in ended.said
    assert "those of the other 3 samples are finite. Nothing was updated" in ended.said
    assert set(re.findall(r"train\d", ended.said)) == {"train5"}
    assert ended.said.count("error:") == 1


def test_leaving_the_batch_out_as_advised_goes_on(
    huge: list[str | Path], train: "Train", tmp_path: Path
) -> None:
    """Each time another batch fails the message has the whole option; at last all are left out."""
    options: list[str] = []
    for _ in range(4):
        ended = train([*huge, *options], tmp_path / "run")
        if ended.code == 0:
            break
        options = advised(ended.said, "--skip-steps")

    assert ended.code == 0
    assert len(options) == 1 + 3  # six steps are three epochs
    steps = [int(step) for step in options[1:]]
    record = tmp_path / "run" / "checkpoints" / "step-00000006" / "record.json"
    assert json.loads(record.read_bytes())["skipped_steps"] == steps
    learnt = [line["step"] for line in log(tmp_path / "run") if "train/loss" in line]
    assert learnt == [step + 1 for step in range(6) if step not in steps]
    assert all(value.isfinite().all() for value in saved_weights(tmp_path / "run", 6).values())


def test_leaving_such_batches_out_as_they_come_is_the_same_run(
    huge: list[str | Path], train: "Train", tmp_path: Path
) -> None:
    """As one that leaves out those steps by number; counted, named, and the same when resumed."""
    ended = train(huge, tmp_path / "run")
    option = advised(ended.said, "--skip-non-finite")
    again = train([*huge, *option], tmp_path / "run")
    unbroken = train([*huge, *option], tmp_path / "unbroken")
    record = tmp_path / "run" / "checkpoints" / "step-00000006" / "record.json"
    steps = json.loads(record.read_bytes())["skipped_steps"]
    by_number = train([*huge, "--skip-steps", *map(str, steps)], tmp_path / "numbers")

    assert (again.code, unbroken.code, by_number.code) == (0, 0, 0)
    assert again.said.count("'train5' (rank 0)") == len(steps) == 3
    assert "It is left out, 3 of 100 such steps" in again.said
    assert max(line.get("train/skipped_steps", 0) for line in log(tmp_path / "run")) == 3
    for other in ("unbroken", "numbers"):
        assert log(tmp_path / "run") == log(tmp_path / other)
        assert_equal(saved_weights(tmp_path / "run", 6), saved_weights(tmp_path / other, 6))


def test_no_more_batches_are_left_out_than_allowed(
    huge: list[str | Path], train: "Train", tmp_path: Path
) -> None:
    """Those before a resume count too."""
    first = train([*huge, "--skip-non-finite", "1"], tmp_path / "run")
    step = int(advised(first.said, "--skip-steps")[-1])
    again = train([*huge, "--skip-non-finite", "1"], tmp_path / "run")

    for ended in (first, again):
        assert ended.code == 1
        assert "--skip-non-finite 1 is used up by [" in ended.said
        assert f"of step {step} is not finite" in ended.said
    more = train([*huge, "--skip-non-finite", "3"], tmp_path / "run")
    assert more.code == 0


@pytest.mark.parametrize("save_every", ["1", "100"])
def test_a_rate_that_is_too_high_goes_on_as_advised(
    command: list[str | Path], train: "Train", tmp_path: Path, save_every: str
) -> None:
    """Each message names a smaller rate, and weights from before the step, until it goes through.

    With a checkpoint of the spoilt weights themselves, an older one is named.
    """
    command = [*command, "--peak", "2e4", "--save-every", save_every, "--keep-last", "9"]
    options: list[str] = []
    output = tmp_path / "0"
    for number in range(1, 6):
        ended = train([*command, *options], output)
        if ended.code == 0:
            break
        options = advised(ended.said, "--peak-from")
        assert ("with another --output" in ended.said) == (save_every == "1")
        if save_every == "1":
            output = tmp_path / str(number)
            options += shlex.split(" ".join(re.findall(r"--resume \S+", ended.said)))

    assert ended.code == 0, ended.said
    assert number > 1


def test_diverged_weights_are_told_from_a_bad_sample() -> None:
    """Most samples fail though their inputs are sound: no sample is blamed, no batch left out."""
    bad = [Suspect(key=f"k{n}", rank=n % 2, magnitude=3.0, loss=math.nan) for n in range(7)]
    good = Suspect(key="k7", rank=1, magnitude=3.0, loss=0.5)
    config = PRESETS["latent-pmrf"]
    explained = said("the loss", 9, [*bad, good])
    advice = remedy(9, [], [*bad, good], config)

    assert "the losses of 7 of 8 samples are not finite, though their inputs are" in explained
    assert "'k" not in explained
    assert advice.startswith("Run the same command again with --peak-from 0 5e-05,")
    assert "--skip" not in advice


def test_inputs_that_are_not_finite_are_blamed_first() -> None:
    """A NaN in an input names its sample alone, though every loss of the batch may be one too."""
    good = [Suspect(key=f"k{n}", rank=0, magnitude=3.0, loss=math.nan) for n in range(3)]
    bad = Suspect(key="k3", rank=1, magnitude=math.inf, loss=math.nan)
    config = replace(PRESETS["latent-pmrf"], changes=ChangesConfig(skip_steps=(2, 5)))

    assert "the inputs of 'k3' (rank 1) hold" in said("the loss", 9, [*good, bad])
    assert remedy(9, [], [*good, bad], config).startswith(
        "Run the same command again with --skip-steps 2 5 9,"
    )
