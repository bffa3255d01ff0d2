"""A set that changes under a run: one that grew keeps its versions, a replaced one says so."""

import dataclasses
import shlex
import shutil
from itertools import islice
from pathlib import Path

import pytest
import torch

from datasets.reading.image_set import ImageSet
from datasets.reading.images import Crops
from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.order import Layout
from infra.errors import UsageError, UserError
from pipelines.curate.config import CurateConfig
from pipelines.curate.job import Curation
from pipelines.encode.verify import problems
from tests.support.curation_jobs import InProcess
from tests.support.encoding_jobs import curation, published, run, write_images, write_networks
from trainers.loop.config import LoopConfig
from trainers.recipes.data import open_latents, training_loader

LAYOUT = Layout(micro_batch=2)
LOOP = LoopConfig(workers=0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write small networks, an image set of four, a latent set of one draw, one that grew twice."""
    folder = tmp_path_factory.mktemp("the world")
    write_networks(folder)
    write_images(folder, 4)
    run(folder, folder / "latents")
    shutil.copytree(folder / "latents", folder / "grown")
    for draws in (2, 3):
        run(folder, folder / "grown", draws=draws)
    return folder


@pytest.fixture
def grown(world: Path, tmp_path: Path) -> Path:
    """Return a copy of the set that grew from one draw to two, and to three."""
    return Path(shutil.copytree(world / "grown", tmp_path / "the latents", symlinks=True))


def test_a_set_that_grew_keeps_what_it_was(world: Path, grown: Path) -> None:
    """Every version is a set of its own, bit for bit, and takes no place but its tables'."""
    before = published(world / "latents")
    kept = [path.parent for path in (grown / "versions").glob("*/manifest.json")]
    draws = {LatentPairs(path).manifest["draws"]: path for path in kept}

    assert sorted(draws) == [1, 2]
    assert published(draws[1]) == before
    for path in kept:
        assert list(problems(path)) == []
        assert all(tar.is_symlink() for tar in path.glob("*.tar"))
    moved = grown.rename(grown.with_name("moved"))
    assert published(moved / draws[1].relative_to(grown)) == before


def test_a_run_on_a_set_that_grew_is_told_how_to_go_on(world: Path, grown: Path) -> None:
    """The message's command opens what the run began with, and gives what it would have given."""
    batches = iter(Loader(LatentPairs(world / "latents"), LAYOUT, LoaderConfig(workers=0)))
    _, state = next(batches)
    with pytest.raises(UsageError, match=r"grown since this run began, from 1 draws to 3") as told:
        open_and_resume(str(grown), state)
    words = shlex.split(str(told.value).replace(", or", " , or"))
    advised = words[words.index("--latents") + 1]
    resumed = open_and_resume(advised, state)
    for (one, _), (other, _) in zip(islice(batches, 5), resumed, strict=False):
        assert one.keys == other.keys
        assert torch.equal(one.source, other.source)


def open_and_resume(path: str, state: object) -> Loader:  # type: ignore[type-arg]
    """Open latents as a trainer that resumes."""
    samples = open_latents(path, LOOP, "train")
    return training_loader(samples, LAYOUT, state, LOOP, CPU)  # type: ignore[arg-type]


def test_a_set_that_is_replaced_keeps_no_version(world: Path, grown: Path) -> None:
    """Its shards are others, to which no link of an earlier version would belong."""
    run(world, grown, seed=1, overwrite=True)

    assert not (grown / "versions").exists()
    assert list(problems(grown)) == []


def test_a_set_may_grow_while_it_is_read(world: Path, tmp_path: Path) -> None:
    """What was opened before goes on as if nothing had happened."""
    folder = Path(shutil.copytree(world / "latents", tmp_path / "set"))
    expected = Loader(LatentPairs(world / "latents"), LAYOUT, LoaderConfig(workers=0))
    reading = iter(Loader(LatentPairs(folder), LAYOUT, LoaderConfig(workers=0)))
    run(world, folder, draws=2)
    for (one, _), (other, _) in zip(islice(expected, 6), reading, strict=False):
        assert torch.equal(one.target, other.target)
        assert torch.equal(one.source, other.source)


@pytest.mark.parametrize("budget", [0, 99])
def test_a_set_that_is_cut_again_under_a_run_says_so(tmp_path: Path, budget: int) -> None:
    """It is no damage to be skipped, and copying a shard anew would not help."""
    folder = write_images(tmp_path, 6)
    sets = [ImageSet(folder, split="train")]
    loader = Loader(
        Crops(sets, crop=8),
        Layout(micro_batch=1),
        LoaderConfig(workers=0, skip_budget=budget),
        None,
    )
    saved = loader.state
    cut_again(tmp_path)
    with pytest.raises(UserError, match=r"images was replaced while it was read.*new run on this"):
        list(islice(loader, 20))
    with pytest.raises(UsageError, match=r"A set that was made again .* is another set"):
        Loader(
            Crops([ImageSet(folder, split="train")], crop=8),
            Layout(micro_batch=1),
            LoaderConfig(),
            saved,
        )


def cut_again(folder: Path) -> None:
    """Curate what `write_images` curated with fewer samples in a shard and another split."""
    made = curation(folder)
    cut = dataclasses.replace(made.cut, samples_per_shard=2, seed=3, val_fraction=0.5)
    config: CurateConfig = dataclasses.replace(made, cut=cut)
    Curation(config).run(InProcess())
