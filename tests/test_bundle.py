"""A bundle comes back to the bit, or it is refused: whatever happens to its files."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models import bundle as bundles
from models.bundle import UNFINISHED, Bundle, in_memory, load_bundle, part_digest, write_bundle
from models.bundle_card import CARD
from models.bundle_facts import BUNDLE, BundleConfig, TrainingFacts
from models.checkpoint import CheckpointError
from models.noise import NamedNoise
from models.restorer import RestorationRule, Restorer
from models.vae.public import load_diffusers_vae
from models.velocity.looformer import PRESETS, LooUFormer
from tests.support.tiny_bundle import SIDE, bundle, public_vae, seeded

KINDS = ("latent", "public", "regressed", "pixel")
FACTS = TrainingFacts(
    step=1250,
    max_steps=4000,
    batch=16,
    flops=98_765_432_101_234,
    data={"faces-latents": "ab" * 32},
    degradation={"blur_sigma": [0.1, 3.75], "kernel_size": 11, "among": False},
    validation={"lpips": 0.21071234, "psnr": 26.38871, "psnr_lq": 24.05},
    held_out=34,
    networks={"vae": "runs/vae/vae", "predictor": "swinir_restoration512_L1.pth"},
    licences={"predictor": "NTU S-Lab 1.0, non-commercial use only"},
    origin={"init": {"from": "runs/first", "sha256": "cd" * 32}},
    versions={"torch": "2.13.0"},
)


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a bundle of each kind; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("bundles") / str(request.param)
    write_bundle(folder, bundle(str(request.param), training=FACTS))
    return folder


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(written, tmp_path / "bundle")


def restored(found: Bundle) -> Tensor:
    """Restore a picture that is always the same."""
    generator = torch.Generator().manual_seed(9)
    lq = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=generator) / 255
    return found.restorer.restore(found.velocity, lq, NamedNoise(0, ["face"]), steps=2)


def files(folder: Path) -> Iterator[Path]:
    """Yield all files of a bundle."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_a_bundle_comes_back_to_the_bit(kind: str, tmp_path: Path) -> None:
    """What was put in restores as before, and its configuration is the same."""
    original = bundle(kind, training=FACTS, alignment="any", steps=7, solver="heun")
    write_bundle(tmp_path, original)

    loaded = load_bundle(tmp_path)

    assert loaded.config == original.config
    assert torch.equal(restored(loaded), restored(original))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [BUNDLE, CARD, *original.parts]
    )


@pytest.mark.parametrize("count", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_any_byte_that_changes_is_noticed_or_irrelevant(count: int, copied: Path) -> None:
    """A bundle with one other byte, in any file, is refused or restores as before."""
    expected, draw = restored(load_bundle(copied)), np.random.default_rng(0)
    refused = 0
    for path in files(copied):
        content = path.read_bytes()
        for position in draw.integers(len(content), size=count):
            changed = bytearray(content)
            changed[position] ^= 1 << draw.integers(8)
            path.write_bytes(changed)
            try:
                found = load_bundle(copied)
            except CheckpointError:
                refused += 1
            else:
                assert torch.equal(restored(found), expected), f"{path} at {position}"
        path.write_bytes(content)
    assert refused > count


def test_a_missing_file_is_named_with_its_part(copied: Path) -> None:
    """The part, the file, and what to do; the card alone may be missing."""
    for path in list(files(copied)):
        if path.name == CARD:
            continue
        aside = path.rename(copied.parent / "aside")
        named = path.parent.name if path.name != BUNDLE else BUNDLE
        with pytest.raises(CheckpointError, match=rf"{named}.*(again|export)") as error:
            load_bundle(copied)
        assert path.name in str(error.value)
        aside.rename(path)


def test_a_foreign_part_is_refused(tmp_path: Path) -> None:
    """Another network of the same shape, whole by itself, is not the bundle's."""
    write_bundle(tmp_path / "mine", bundle())
    other = bundle()
    network = seeded(lambda: LooUFormer(PRESETS["tiny"]), 77)
    write_bundle(tmp_path / "other", in_memory(other.config, network, other.restorer))
    shutil.rmtree(tmp_path / "mine" / "velocity")
    shutil.copytree(tmp_path / "other" / "velocity", tmp_path / "mine" / "velocity")

    with pytest.raises(CheckpointError, match=r"velocity.*another network.*copy the whole bundle"):
        load_bundle(tmp_path / "mine")


def test_the_digest_covers_the_configuration() -> None:
    """Equal weights with another window of attention are another network; so is other scaling."""
    velocity = seeded(lambda: LooUFormer(PRESETS["tiny"]), 1)
    wider = LooUFormer(replace(PRESETS["tiny"], kernel_size=5))
    wider.load_state_dict(velocity.state_dict())

    assert part_digest(velocity) == part_digest(seeded(lambda: LooUFormer(PRESETS["tiny"]), 1))
    assert part_digest(velocity) != part_digest(wider)
    assert part_digest(public_vae(scale=0.5)) != part_digest(public_vae(scale=0.25))
    assert part_digest(public_vae(shift=0.5)) != part_digest(public_vae(shift=0.25))


@pytest.mark.parametrize(
    "change",
    [
        {"rule": RestorationRule(sigma_s=0.2)},
        {"steps": 24},
        {"solver": "heun"},
        {"alignment": "any"},
        {"size": 64},
        {"parts": {"velocity": "0"}},
    ],
)
def test_the_bundles_digest_covers_what_a_picture_depends_on(change: dict[str, object]) -> None:
    """Whatever the command reads changes it; facts for people do not."""
    config = BundleConfig(rule=RestorationRule(), size=SIDE)

    assert replace(config, **change).digest != config.digest  # type: ignore[arg-type]
    assert replace(config, training=FACTS).digest == config.digest


def test_a_public_autoencoder_comes_back_with_its_scaling(tmp_path: Path) -> None:
    """Diffusers itself reads the folder, and the scaling is exact."""
    from diffusers import AutoencoderKL

    original = bundle("public")
    write_bundle(tmp_path, original)
    loaded = load_diffusers_vae(tmp_path / "vae")
    theirs = AutoencoderKL.from_pretrained(tmp_path / "vae")

    assert (loaded.scale, loaded.shift) == (0.3611, 0.1159)
    assert theirs.config.scaling_factor == 0.3611
    state = theirs.state_dict()
    assert all(torch.equal(state[name], value) for name, value in loaded.vae.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_takes_half_the_space(kind: str, tmp_path: Path) -> None:
    """Matrices are rounded to float16, constants are not, and it loads to float32."""
    whole, half = bundle(kind), bundle(kind, "float16")
    write_bundle(tmp_path / "whole", whole)
    write_bundle(tmp_path / "half", half)
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / name).rglob("*.safetensors"))
        for name in ("whole", "half")
    ]
    loaded = load_bundle(tmp_path / "half")

    assert loaded.config.dtype == "float16"
    assert loaded.config.digest == half.config.digest != whole.config.digest
    assert sizes[1] < 0.62 * sizes[0]  # of networks as tiny, vectors and names are a large share
    for name, part in loaded.parts.items():
        ours = whole.parts[name].state_dict()
        for key, value in part.state_dict().items():
            assert value.dtype == ours[key].dtype
            assert torch.equal(value, ours[key]) or torch.equal(value, ours[key].half().float())
    frequencies = {"pixel": "time_emb.weight"}.get(kind, "time_proj.weight")
    stored = load_file(tmp_path / "half" / "velocity" / "model.safetensors")
    assert stored[frequencies].dtype == torch.float32
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.float32}


def test_weights_beyond_half_precision_are_refused() -> None:
    """They would be infinite; float32 is the remedy, and works."""
    original = bundle()
    with torch.no_grad():
        next(value for value in original.velocity.parameters() if value.ndim > 1).fill_(1e5)

    with pytest.raises(CheckpointError, match=r"reaches 1e\+05.*store the bundle in float32"):
        in_memory(original.config, original.velocity, original.restorer, "float16")
    in_memory(original.config, original.velocity, original.restorer, "float32")


@pytest.mark.parametrize("stop", range(12))
def test_a_killed_writer_leaves_the_old_bundle_or_none(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step between files: the old one loads, or a sentence; and the next writer ends it."""
    old, new = bundle("regressed", steps=5), bundle("latent", steps=6)
    write_bundle(tmp_path, old)
    done = 0

    def dies(real: object) -> object:
        def step(*arguments: object, **options: object) -> object:
            nonlocal done
            done += 1
            if done > stop:
                raise KeyboardInterrupt
            return real(*arguments, **options)  # type: ignore[operator]

        return step

    with monkeypatch.context() as patch:
        patch.setattr(bundles, "_save", dies(bundles._save))
        patch.setattr(bundles, "replace_file", dies(bundles.replace_file))
        patch.setattr(bundles.shutil, "rmtree", dies(shutil.rmtree))
        patch.setattr(Path, "rename", dies(Path.rename))
        with pytest.raises(KeyboardInterrupt):
            write_bundle(tmp_path, new)
    if (tmp_path / BUNDLE).exists():
        assert load_bundle(tmp_path).config == old.config
    else:
        with pytest.raises(CheckpointError, match="no such file"):
            load_bundle(tmp_path)

    write_bundle(tmp_path, new)
    assert load_bundle(tmp_path).config == new.config
    assert not (tmp_path / "regressor").exists()
    assert not (tmp_path / UNFINISHED).exists()


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    """A trained autoencoder in a folder of this name stays; other files stay in any case."""
    (tmp_path / "run" / "vae").mkdir(parents=True)
    (tmp_path / "run" / "vae" / "mine").touch()
    with pytest.raises(CheckpointError, match=r"holds vae, .*give a folder of its own"):
        write_bundle(tmp_path / "run", bundle())
    assert (tmp_path / "run" / "vae" / "mine").exists()

    (tmp_path / "project").mkdir()
    (tmp_path / "project" / CARD).write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds README.md, .*or move that away"):
        write_bundle(tmp_path / "project", bundle())
    (tmp_path / "project" / CARD).rename(tmp_path / "aside")
    write_bundle(tmp_path / "project", bundle())

    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / ".gitattributes").touch()
    write_bundle(tmp_path / "clone", bundle())
    assert (tmp_path / "clone" / ".gitattributes").exists()


def test_a_bundle_of_another_format_is_refused(tmp_path: Path) -> None:
    """By name; and one that somebody edited, with how to change a setting."""
    write_bundle(tmp_path, bundle())
    path = tmp_path / BUNDLE
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "format": "latent-pmrf bundle 9"}))
    with pytest.raises(CheckpointError, match=r"'latent-pmrf bundle 9'.*update the program"):
        load_bundle(tmp_path)
    path.write_text(json.dumps({**values, "steps": 5}))
    with pytest.raises(CheckpointError, match=r"was changed since.*export it again"):
        load_bundle(tmp_path)


def test_a_bundle_needs_every_part() -> None:
    """A flow of latents without its autoencoder is none; the missing are named."""
    whole = bundle("regressed")
    with pytest.raises(CheckpointError, match=r"needs the vae and the predictor and the regressor"):
        in_memory(whole.config, whole.velocity, Restorer(whole.config.rule))


def test_every_number_of_the_card_is_the_bundles(written: Path) -> None:
    """What the card says is in bundle.json, and the command that it names is the real one."""
    card, text = (written / CARD).read_text(), (written / BUNDLE).read_text()
    body = re.sub(r"SHA-256|`[0-9a-f]{64}`", "", card.partition("\n---\n")[2])
    known = [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)]
    numbers = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)*(?:e[+-]?\d+)?", body)
    assert len(numbers) > 8
    for number in numbers:
        if number == FACTS.versions["torch"]:
            continue
        value = float(number.replace(",", ""))
        assert any(value == pytest.approx(one, rel=5e-4) for one in known), number
    for said in (FACTS.licences["predictor"], "python -m pipelines.restore -i", "26.39", "34 held"):
        assert said in card
    for digest in re.findall(r"`([0-9a-f]{64})`", card):
        assert digest in text
    assert card.startswith("---\nlibrary_name: latent-pmrf\npipeline_tag: image-to-image\n")
