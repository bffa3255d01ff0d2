"""Validation's numbers: which there are, over whom they are averaged, on one rank or two."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datasets.reading.image_set import ImageSet
from datasets.reading.images import Crops
from infra.errors import UserError
from models.metrics.brisque import Brisque
from models.metrics.fidelity import ms_ssim
from models.metrics.lpips import load_lpips
from models.ranges import to_uint8, uint8_to_model
from tests.support.training_sets import (
    SMOKE,
    Files,
    log,
    run_trainer,
    write_dists,
    write_files,
    write_image_set,
    write_lpips,
)
from trainers.loop.config import LoopConfig
from trainers.loop.task import Interrupted
from trainers.recipes import flow_config, judging, pictures, predictor_config, vae_config
from trainers.recipes.data import keys_of_sources, sweep, swept
from trainers.recipes.flow import FlowTask
from trainers.recipes.flow_config import FlowConfig
from trainers.recipes.judging import FIDELITY, Averages, Judges
from trainers.recipes.pictures import Gallery
from trainers.recipes.predictor import PredictorTask
from trainers.recipes.predictor_config import PredictorConfig
from trainers.recipes.vae import VAETask
from trainers.recipes.vae_config import VAEConfig

CPU = torch.device("cpu")
LOOP = LoopConfig(workers=0)
REFERENCES = ("lq", "posterior_mean", "reconstruction")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give torch.hub a cache without weights, whatever this machine's own has."""
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Images of 64 pixels, so that even the degraded have a BRISQUE; latents of 8 x 8."""
    return write_files(tmp_path_factory.mktemp("files"), size=64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """LPIPS's files with random weights."""
    return str(write_lpips(tmp_path_factory.mktemp("lpips")))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten pictures of 32 pixels, three of them held out."""
    return str(write_image_set(tmp_path_factory.mktemp("small"), size=32))


def flow_task(files: Files, **values: Any) -> FlowTask:
    """Build the tiny flow with all its files."""
    paths = {"latents": files.latents, "images": (files.images,), "vae": files.vae}
    values = {**paths, "predictor": files.predictor, "loop": LOOP, **values}
    values = {"model": "tiny", "sampling_steps": 3, **values}
    return FlowTask(replace(flow_config.PRESETS["tiny"], **values), CPU)


def vae_task(*data: str, **values: Any) -> VAETask:
    """Build the tiny autoencoder."""
    values = {"model": "tiny", "data": data, "crop": 16, "loop": LOOP, **values}
    return VAETask(replace(vae_config.PRESETS["tiny"], **values), CPU)


def predictor_task(*sets: str, **values: Any) -> PredictorTask:
    """Build the tiny predictor."""
    values = {"model": "tiny", "images": sets, "loop": LOOP, **values}
    return PredictorTask(replace(predictor_config.PRESETS["tiny"], **values), CPU)


def judges(lpips: str | None) -> Judges:
    """Load the metrics of an autoencoder's pictures."""
    return Judges(FIDELITY, {"lpips": lpips}, CPU)


def picture(side: int, seed: int = 0) -> Tensor:
    """Draw two uint8 pictures."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)


def held_out(folder: str) -> Tensor:
    """Load the held-out pictures of a set, uint8."""
    whole = Crops([ImageSet(Path(folder), split="val")], crop=None, flip=False)
    return torch.cat(
        [to_uint8(batch.images[:count]) for batch, count, _ in sweep(whole, LOOP, CPU)]
    )


@pytest.mark.parametrize(
    ("side", "names"),
    [
        (161, {"psnr", "ms_ssim", "lpips"}),
        (160, {"psnr", "lpips"}),
        (31, {"psnr", "lpips"}),
        (30, {"psnr"}),
    ],
)
def test_a_metric_needs_its_smallest_image(weights: str, side: int, names: set[str]) -> None:
    """What has no value for pictures of a size is not there."""
    assert judges(weights)(picture(side), picture(side, 1)).keys() == names


def test_lpips_is_that_of_the_pictures_in_the_models_range(weights: str) -> None:
    """Of eight bits, as they would be saved, not of what the decoder gave."""
    x, hq = picture(40), picture(40, 1)
    expected = load_lpips("alex", weights)(uint8_to_model(x), uint8_to_model(hq))

    assert torch.equal(judges(weights)(x, hq)["lpips"], expected)


def test_absent_weights_are_announced(capsys: pytest.CaptureFixture[str]) -> None:
    """With the file that is missing, where to get it, and the option."""
    found = judges(None)(picture(40), picture(40, 1))

    assert found.keys() == {"psnr"}
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    for part in ("without LPIPS", "download.pytorch.org/models/alexnet-owt", "--lpips"):
        assert part in said


def test_weights_in_the_cache_are_found(
    empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an option and without a word."""
    write_lpips(empty_cache)

    assert "lpips" in judges(None)(picture(40), picture(40, 1))
    assert not capsys.readouterr().out


@pytest.mark.parametrize("program", ["flow", "vae", "predictor"])
def test_a_wrong_folder_is_an_error(
    program: str, files: Files, images: str, tmp_path: Path
) -> None:
    """What was asked for is never left out; the message names the file and the option."""
    build: dict[str, Callable[[str], Any]] = {
        "flow": lambda folder: flow_task(files, lpips=folder),
        "vae": lambda folder: vae_task(images, lpips=folder),
        "predictor": lambda folder: predictor_task(images, lpips=folder),
    }

    with pytest.raises(UserError, match=r"--lpips: .*nowhere/alexnet-owt-7be5be79.pth"):
        build[program](str(tmp_path / "nowhere"))


def test_a_flow_is_validated_with_dists_where_its_weights_are_given(
    files: Files, tmp_path: Path
) -> None:
    """Of restorations, and of what they are compared with; without the option there is none."""
    task = flow_task(files, dists=str(write_dists(tmp_path)))

    assert {"dists", "dists_lq"} <= task.validate(task.network).metrics.keys()
    assert "dists" not in flow_task(files).restorations.metrics()


def test_damaged_weights_in_the_cache_are_an_error(empty_cache: Path) -> None:
    """They were meant to be used."""
    write_lpips(empty_cache)
    (empty_cache / "alexnet-owt-7be5be79.pth").write_bytes(b"<html>not found</html>")

    with pytest.raises(UserError, match=r"--lpips: .*damaged"):
        judges(None)


def test_what_one_rank_lacks_all_leave_out(
    weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Machines may differ in their caches; a metric is of all held-out images or not there."""
    monkeypatch.setattr(judging, "gathered", lambda mine: [mine, {"lpips": "/b/alex.pth: absent"}])

    assert judges(weights)(picture(40), picture(40, 1)).keys() == {"psnr"}
    assert "/b/alex.pth" in capsys.readouterr().out


def test_lpips_without_pictures_is_refused(weights: str, files: Files) -> None:
    """An option that would do nothing is a mistake."""
    with pytest.raises(ValueError, match="give --images"):
        FlowConfig(latents=files.latents, lpips=weights)


@pytest.mark.parametrize("is_given", [True, False])
def test_a_flow_is_judged_next_to_its_references(
    files: Files, weights: str, *, is_given: bool
) -> None:
    """PSNR, LPIPS and BRISQUE of the restored and of each reference; LPIPS with weights only."""
    task = flow_task(files, lpips=weights if is_given else None)
    names = set(task.validate(task.network).metrics)
    distances = {"psnr", "lpips"} if is_given else {"psnr"}
    expected = distances | {"brisque", "brisque_hq"}
    expected |= {f"{name}_{other}" for name in {*distances, "brisque"} for other in REFERENCES}

    assert {name for name in names if not name.startswith("loss")} == expected


def test_references_are_those_of_the_held_out_pictures(files: Files, weights: str) -> None:
    """Means over the degraded and the flipped as they come; the same at every validation."""
    task = flow_task(files, lpips=weights)
    first, second = (task.validate(task.network).metrics for _ in range(2))
    assert task.restorations is not None
    pairs = [(b.lq[:n], b.hq[:n]) for b, n, _ in sweep(task.restorations.samples, LOOP, CPU)]
    lq, hq = (to_uint8(torch.cat(side)) for side in zip(*pairs, strict=True))
    scores = Brisque().score(list(hq.permute(0, 2, 3, 1).numpy()))

    assert first["brisque_hq"] == pytest.approx(sum(scores) / len(scores), abs=1e-9)
    for name, values in judges(weights)(lq, hq).items():
        assert first[f"{name}_lq"] == pytest.approx(values.mean().item(), rel=1e-5)
    assert first == second


@pytest.mark.parametrize("is_given", [True, False])
def test_the_other_networks_have_lpips_with_weights_only(
    images: str, weights: str, *, is_given: bool
) -> None:
    """An autoencoder of its reconstructions, a predictor also of its input."""
    folder = weights if is_given else None
    autoencoder, mean = vae_task(images, lpips=folder), predictor_task(images, lpips=folder)
    names = set(mean.validate(mean.network).metrics)

    assert ("lpips" in autoencoder.validate(autoencoder.network).metrics) == is_given
    assert names == {"psnr", "psnr_lq"} | ({"lpips", "lpips_lq"} if is_given else set())


def test_a_metric_is_averaged_over_the_images_that_have_it(images: str, tmp_path: Path) -> None:
    """MS-SSIM of a set of large images is not diluted by one of small images."""
    large = str(write_image_set(tmp_path / "large", size=168, train=1))
    task = vae_task(images, large)
    found = task.validate(task.network).metrics["ms_ssim"]
    hq = held_out(large)
    reconstruction, _ = task.network(uint8_to_model(hq))

    assert found == pytest.approx(ms_ssim(to_uint8(reconstruction), hq).mean().item(), abs=1e-6)


def test_averages_know_what_only_another_rank_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are those of any rank, and what has no sample on any has no average."""
    averages = Averages()
    averages.add({"psnr": torch.tensor([20.0, 30.0]), "brisque": torch.tensor([])}, "_lq")
    monkeypatch.setattr(judging, "gathered", lambda mine: [mine, ["lpips_lq", "psnr_lq"]])
    theirs = {"brisque_lq": (0.0, 0), "lpips_lq": (0.5, 1), "psnr_lq": (40.0, 1)}
    flat = [number for name in sorted(theirs) for number in theirs[name]]
    monkeypatch.setattr(
        judging, "sums", lambda mine, _: [a + b for a, b in zip(mine, flat, strict=True)]
    )

    assert averages.over_ranks(CPU) == {"lpips_lq": 0.5, "psnr_lq": 30.0}


def test_two_ranks_judge_as_one(files: Files, weights: str, tmp_path: Path) -> None:
    """The validation before the first step: each rank has its share of the pictures."""
    command = ["trainers.flow", *SMOKE, "--workers", "0", "--max-steps", "1"]
    command += ["--sampling-steps", "3"]
    command += ["--latents", files.latents, "--images", files.images, "--vae", files.vae]
    command += ["--predictor", files.predictor, "--lpips", weights]
    run_trainer(command, tmp_path / "run", ranks=2)
    task = flow_task(files, lpips=weights)
    alone = {f"val/{name}": value for name, value in task.validate(task.network).metrics.items()}

    assert log(tmp_path / "run")[0] == pytest.approx({"step": 0, **alone}, rel=1e-4)


def test_a_gallery_keeps_the_samples_wanted_on_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of its columns, those that came; another rank keeps nothing."""
    kept: list[dict[str, Tensor]] = []
    monkeypatch.setattr(pictures, "grid", lambda shown, *_: kept.append(shown))
    first = Gallery(["a0", "b2"], ("lq", "restored", "hq"))
    monkeypatch.setattr(pictures, "rank", lambda: 1)
    other = Gallery(["a0", "b2"], ("lq", "hq"))
    for seed in range(3):
        for mine in (first, other):
            pair = {"hq": picture(32, seed), "lq": picture(32, seed + 3)}
            mine.add(pair, [f"a{seed}", f"b{seed}"])
    first.grid()
    other.grid()

    assert first.wants(["c", "b2"])
    assert not other.wants(["b2"])
    assert [list(shown) for shown in kept] == [["lq", "hq"]]
    expected = [picture(32, 0)[0], picture(32, 2)[1]]
    assert torch.equal(kept[0]["hq"], torch.stack(expected))


SOURCES = "aaaabbbbccdddddd"


@pytest.mark.parametrize(
    ("numbers", "count", "expected"),
    [
        (range(16), 3, [0, 5, 10]),  # evenly spaced, if those are of different photographs
        (range(16), 4, [0, 4, 8, 12]),
        (range(16), 6, [0, 2, 5, 8, 10, 13]),  # each photograph, then further ones
        ([12, 13, 14, 15, 0], 2, [12, 0]),  # a rank's own share
        ([3, 1], 6, [3, 1]),
    ],
)
def test_pictures_to_look_at_are_of_different_photographs(
    tmp_path: Path, numbers: list[int], count: int, expected: list[int]
) -> None:
    """Not neighbouring patches of one, as long as there are others; else as many as are asked."""
    images = write_image_set(
        tmp_path / "set", size=8, train=0, held_out=16, sources=[f"{s}.jpg" for s in SOURCES]
    )
    crops = Crops([ImageSet(images, split="val")], crop=None)
    chosen = keys_of_sources(crops, list(numbers), count)

    assert chosen == [f"p{number:02d}" for number in expected]
    assert len(set(chosen)) == min(count, len(numbers))


def test_a_limit_takes_samples_from_all_of_the_set(images: str) -> None:
    """Of three held-out pictures, the first and the second; each is met once."""
    crops = Crops([ImageSet(Path(images), split="val")], crop=None)
    found = [
        key
        for batch, count, _ in sweep(crops, replace(LOOP, validate_limit=2), CPU)
        for key in batch.keys[:count]
    ]

    assert found == ["p07", "p08"]
    assert swept(crops, replace(LOOP, validate_limit=2)) == [0, 1]
    assert swept(crops, LOOP) == [0, 1, 2]


def test_whoever_watches_is_asked_before_each_batch(files: Files) -> None:
    """With what is done, and how much; what is raised there leaves the validation at once."""
    task, asked = flow_task(files), list[tuple[str, int, int]]()

    def between(*progress: Any) -> None:
        asked.append(progress)
        if progress[0] == "restorations":
            raise Interrupted

    with pytest.raises(Interrupted):
        task.validate(task.network, between)

    assert asked == [("pairs", 0, 1), ("restorations", 0, 1)]


@pytest.mark.parametrize(
    ("lpips", "asked", "best", "hint"),
    [
        (True, None, "-lpips", 0),
        (True, "psnr", "psnr", 0),
        (False, None, "psnr", 1),
        (False, "brisque", "-brisque", 0),
        (False, "loss", "-loss", 0),
    ],
)
def test_the_best_flow_is_by_lpips_where_it_is_computed(
    files: Files,
    weights: str,
    capsys: pytest.CaptureFixture[str],
    *,
    lpips: bool,
    asked: str | None,
    best: str,
    hint: int,
) -> None:
    """Else by PSNR, and that is said; or by what is asked for."""
    loop = replace(LOOP, best=asked)
    task = flow_task(files, lpips=weights if lpips else None, loop=loop)

    assert task.best == best
    assert capsys.readouterr().out.count("highest PSNR, which falls") == hint
    assert best.removeprefix("-") in task.validate(task.network).metrics


def test_a_best_that_is_not_computed_is_refused(files: Files, images: str) -> None:
    """With what is; MS-SSIM needs 161 pixels, LPIPS its weights."""
    with pytest.raises(UserError, match=r"--best ms_ssim: .*one of psnr, brisque, loss$"):
        flow_task(files, loop=replace(LOOP, best="ms_ssim"))
    with pytest.raises(UserError, match=r"--best lpips: .*one of psnr; lpips needs --lpips FOLDER"):
        predictor_task(images, loop=replace(LOOP, best="lpips"))
    with pytest.raises(ValueError, match="validate_every=0"):
        LoopConfig(best="psnr", validate_every=0)


@pytest.mark.parametrize("kind", ["vae", "predictor"])
def test_other_networks_are_best_by_what_they_are_trained_for(
    kind: str, images: str, weights: str
) -> None:
    """PSNR, also where there is LPIPS, unless it is asked for."""
    build: Any = {"vae": vae_task, "predictor": predictor_task}[kind]

    assert build(images, lpips=weights).best == "psnr"
    assert build(images, lpips=weights, loop=replace(LOOP, best="lpips")).best == "-lpips"


def test_without_validation_no_held_out_split_is_needed(files: Files, tmp_path: Path) -> None:
    """The refusal of a set without one advises `--validate-every 0`, which opens none."""
    images = str(write_image_set(tmp_path / "set", size=64, held_out=0))
    online = {"draws": "online", "latents": ""}
    builds: list[Callable[[LoopConfig], Any]] = [
        lambda loop: vae_task(images, loop=loop),
        lambda loop: predictor_task(images, loop=loop),
        lambda loop: flow_task(files, loop=loop, images=(images,)),
        lambda loop: flow_task(files, loop=loop, images=(images,), **online),
    ]

    for build in builds:
        with pytest.raises(UserError, match="leave validation out: --validate-every 0"):
            build(LOOP)
        build(replace(LOOP, validate_every=0))


@pytest.mark.parametrize(
    "config", [FlowConfig(), VAEConfig(), PredictorConfig()], ids=["flow", "vae", "predictor"]
)
def test_weights_may_move_between_resumes(config: FlowConfig | VAEConfig | PredictorConfig) -> None:
    """Where they are does not change what is learnt."""
    assert config.may_change("lpips")
