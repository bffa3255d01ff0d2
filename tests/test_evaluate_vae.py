"""Autoencoders are compared by the very pictures that they make, and by what they cost."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from infra.config import from_dict
from infra.errors import BudgetExceeded, UsageError, UserError
from infra.paths import path_of
from models.flops import counted
from models.frozen import Identity, load_autoencoder, load_vae
from models.ranges import uint8_to_model
from models.vae.autoencoder import Posterior
from models.vae.folder import save_sim_vae
from models.vae.public import save_public_vae
from models.vae.sim_vae import SimVAE, preset
from pipelines.evaluate.summary import Value
from pipelines.evaluate.vae import filling
from pipelines.evaluate.vae.job import Reconstruction
from pipelines.evaluate.vae.latents import LatentSums
from pipelines.evaluate.vae.networks import Compared, inside
from pipelines.evaluate.vae.report import difference, shown
from pipelines.evaluate.writing import written
from tests.conftest import picture
from tests.support import vae_jobs
from tests.support.curation_jobs import InProcess
from tests.support.encoding_jobs import Stopping
from tests.support.faulty_proxy import FaultyProxy
from tests.support.in_a_bucket import uploaded
from tests.support.published_sets import write_images
from tests.support.restore_jobs import made, restore
from tests.support.tiny_bundle import public_vae, write_faces, write_tiny_bundle
from tests.support.tiny_vae import build
from tests.support.vae_jobs import reconstruct, write_constant

SIDE, COUNT = 32, 3
KEY = "more/face-2"
Levels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write three pictures and the folders of several autoencoders, and compare two in peace."""
    folder = tmp_path_factory.mktemp("world")
    write_faces(folder / "hq", COUNT, SIDE)
    save_sim_vae(build(), folder / "run" / "vae")
    save_public_vae(public_vae(), folder / "public")
    reconstruct(folder / "hq", folder / "whole", both(folder))
    return folder


@pytest.fixture(autouse=True)
def units_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have units of two pictures, so that three make two of them."""
    monkeypatch.setattr(filling, "UNIT", 2)


def both(folder: Path) -> dict[str, object]:
    """Name the autoencoders that are compared."""
    return {"ours": folder / "run", "public": folder / "public"}


def levels(path: Path) -> Levels:
    """Read a picture."""
    return np.asarray(Image.open(path).convert("RGB"))


def said(output: Path) -> dict[str, Any]:
    """Read the numbers of a job."""
    found: dict[str, Any] = json.loads((output / "vae.json").read_text())
    return found


@pytest.mark.parametrize(("name", "folder"), [("ours", "run/vae"), ("public", "public")])
def test_a_picture_is_the_decoded_mode(world: Path, name: str, folder: str) -> None:
    """The PNG holds D(mode of E(x)), rounded; and so it is with a folder of diffusers."""
    vae = load_autoencoder(str(world / folder))
    original = torch.tensor(levels(world / "hq" / f"{KEY}.png")).permute(2, 0, 1)[None]
    decoded = vae.decode(vae.encode(uint8_to_model(original)).mode())
    expected = ((decoded[0].permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255)

    found = levels(world / "whole" / "reconstructed" / name / f"{KEY}.png")

    assert found.std() > 1
    assert np.abs(found - expected).max() <= 0.51


def test_restoring_by_the_autoencoder_gives_the_same_pictures(world: Path, tmp_path: Path) -> None:
    """`restore --method vae-reconstruction` of a bundle with the same autoencoder agrees."""
    bundle = write_tiny_bundle(tmp_path / "bundle", alignment="any")
    restore(world / "hq", tmp_path / "restored", bundle, method="vae-reconstruction")
    reconstruct(world / "hq", tmp_path / "out", {"bundle": bundle})

    for key in ("face-0", KEY):
        one = levels(tmp_path / "restored" / f"{key}.png")
        assert np.array_equal(one, levels(tmp_path / "out" / "reconstructed/bundle" / f"{key}.png"))


def test_the_originals_are_the_pictures_as_they_are_read(world: Path) -> None:
    """Every picture of the input is there under its key, level by level, and no other."""
    given = {path.relative_to(world / "hq") for path in (world / "hq").rglob("*.png")}
    kept = world / "whole" / "originals"

    assert {path.relative_to(kept) for path in kept.rglob("*.png")} == given
    assert all(np.array_equal(levels(world / "hq" / x), levels(kept / x)) for x in given)


def test_no_picture_depends_on_the_others(world: Path, tmp_path: Path) -> None:
    """By themselves, and behind another autoencoder, pictures have the bytes that they have."""
    few = reconstruct(world / "hq", tmp_path / "few", dict(reversed(both(world).items())), first=2)

    for name in few.vaes:
        found = made(tmp_path / "few" / "reconstructed" / name)
        whole = made(world / "whole" / "reconstructed" / name)
        assert len(found) == 2
        assert found == {key: whole[key] for key in found}


def test_the_better_autoencoder_has_the_higher_psnr(world: Path, tmp_path: Path) -> None:
    """One that makes the mean colour of everything is better than one that makes black."""
    stacked = np.stack([levels(path) for path in sorted((world / "hq").rglob("*.png"))])
    mean = torch.tensor(stacked.mean((0, 1, 2)) / 127.5 - 1)
    vaes: dict[str, object] = {
        "black": write_constant(tmp_path / "black", torch.full((3,), -1.0)),
        "mean": write_constant(tmp_path / "mean", mean),
    }
    found = reconstruct(world / "hq", tmp_path / "out", vaes).vaes

    psnr = {name: row.values["psnr"].value for name, row in found.items()}
    by_hand = [10 * np.log10(255**2 / np.square(x.astype(float)).mean()) for x in stacked]
    assert psnr["black"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert psnr["mean"] is not None
    assert psnr["mean"] > psnr["black"]


def test_a_killed_job_is_finished_by_the_same_command(world: Path, tmp_path: Path) -> None:
    """Wherever it was killed, the files are those of a job that ran in peace."""
    expected = comparable(world / "whole")
    for units in (0, 1, 1, 2):  # in each of the four stages
        with pytest.raises(KeyboardInterrupt):
            reconstruct(world / "hq", tmp_path / "out", both(world), Stopping(units))
        assert not (tmp_path / "out" / "vae.json").exists()

    reconstruct(world / "hq", tmp_path / "out", both(world))

    assert comparable(tmp_path / "out") == expected


def test_everything_may_lie_in_a_bucket(
    world: Path, tmp_path: Path, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures, autoencoder and output: killed, it is finished there, and no picture is another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hq = uploaded(world / "hq", "s3://tests/vaes/hq")
    run = uploaded(world / "run", "s3://tests/vaes/run")
    output = path_of("s3://tests/vaes/out")
    with pytest.raises(KeyboardInterrupt):
        reconstruct(hq, output, {"ours": run}, Stopping(1), first=2)
    reconstruct(hq, output, {"ours": run}, first=2)

    expected = made(world / "whole" / "reconstructed" / "ours")
    for key in ("face-0.png", "face-1.png"):
        assert (output / "reconstructed/ours" / key).read_bytes() == expected[key]
    psnr = json.loads((output / "vae.json").read_bytes())["vaes"]["ours"]["values"]["psnr"]
    assert psnr["fingerprint"]["n"] == 2
    assert (output / "vae.html").is_file()


def comparable(output: Path) -> dict[str, bytes]:
    """Return the files of a job that do not name its folder."""
    return {name: x for name, x in made(output).items() if name.endswith((".png", "vae.json"))}


def test_only_what_is_not_there_is_made(world: Path, tmp_path: Path) -> None:
    """A lost picture costs its unit; other weights or another precision cost all of theirs."""
    hq, output = world / "hq", tmp_path / "out"
    shutil.copytree(world / "run", tmp_path / "run")
    vaes: dict[str, object] = {"ours": tmp_path / "run"}

    def units(**fields: Any) -> Counter[str]:
        engine = InProcess()
        reconstruct(hq, output, vaes, engine, **fields)
        return Counter(name for name, _ in engine.units if name != "measure")

    assert units() == {"originals": 2, "reconstruct ours": 2}
    (output / "reconstructed" / "ours" / "more" / "face-2.png").unlink()
    (output / "originals" / "more" / "face-2.png").write_bytes(b"")
    vaes["public"] = world / "public"
    assert units() == {"originals": 1, "reconstruct ours": 1, "reconstruct public": 2}
    save_sim_vae(build("sd_resize"), tmp_path / "run" / "vae")
    assert units() == {"reconstruct ours": 2}
    assert units(precision="bfloat16") == {"reconstruct ours": 2, "reconstruct public": 2}


def test_a_set_may_grow_and_not_shrink(world: Path, tmp_path: Path) -> None:
    """More pictures are added to those that are there; fewer are refused by name."""
    vaes: dict[str, object] = {"ours": world / "run"}
    reconstruct(world / "hq", tmp_path / "out", vaes, first=2)
    assert reconstruct(world / "hq", tmp_path / "out", vaes).test_set.n == 3

    with pytest.raises(UsageError, match=r"originals has 2 pictures .* face-1, more/face-2"):
        reconstruct(world / "hq", tmp_path / "out", vaes, first=1)


def test_of_a_published_set_the_held_out_pictures_are_taken(world: Path, tmp_path: Path) -> None:
    """By key, from the shards; another split where it is asked for, and none that is not there."""
    pixels = [(f"k{n}", np.asarray(picture(n, SIDE, SIDE))) for n in (2, 0, 1)]
    folder = write_images(tmp_path / "set", pixels, split="val", per_shard=2)
    vaes: dict[str, object] = {"ours": world / "run"}

    reconstruct(folder, tmp_path / "out", vaes, first=2)

    assert sorted(made(tmp_path / "out" / "originals")) == ["k0.png", "k1.png"]
    assert np.array_equal(levels(tmp_path / "out" / "originals" / "k1.png"), pixels[2][1])
    assert reconstruct(folder, tmp_path / "all", vaes, split="all").test_set.n == 3
    with pytest.raises(UsageError, match="no image of split 'train'"):
        reconstruct(folder, tmp_path / "none", vaes, split="train")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lower_precision_is_near_and_named(world: Path, tmp_path: Path, precision: Any) -> None:
    """Autocast changes a few levels, and the result says what it is of."""
    vaes: dict[str, object] = {"ours": world / "run"}
    result = reconstruct(world / "hq", tmp_path / "out", vaes, precision=precision, first=1)

    found = levels(tmp_path / "out/reconstructed/ours/face-0.png").astype(int)
    full = levels(world / "whole/reconstructed/ours/face-0.png").astype(int)
    assert 0 < np.abs(found - full).max() < 12
    assert said(tmp_path / "out")["precision"] == result.precision == precision
    assert f"in {precision} on a CPU" in (tmp_path / "out" / "vae.html").read_text()


def test_one_convolution_costs_what_its_formula_says() -> None:
    """A multiplication and an addition for each weight at each place."""
    network = nn.Conv2d(3, 5, 3, padding=1, device="meta")

    image = torch.empty(1, 3, 16, 24, device="meta")
    assert counted(network, image) == 2 * (3 * 3 * 3) * 5 * 16 * 24


def test_sim_vae_costs_what_is_published() -> None:
    """Its parameters, counted in the released weights; operations in proportion to the pixels."""
    with torch.device("meta"):
        vae = SimVAE(preset("sim-vae-f8c32"))
    ours = Compared(name="", where="", identity=Identity("", {}), network=vae)
    costs, smaller = ours.costs((512, 512)), ours.costs((256, 128))

    assert costs["latent"] == [32, 64, 64]
    assert costs["values"] == 131_072
    assert costs["parameters"] == {"encoder": 40_130_368, "decoder": 50_900_227}
    assert costs["flops"]["encoder"] == pytest.approx(1.2219e12, rel=1e-4)
    assert costs["flops"]["decoder"] == pytest.approx(2.0131e12, rel=1e-4)
    assert smaller["latent"] == [32, 16, 32]
    assert {name: 8 * count for name, count in smaller["flops"].items()} == costs["flops"]


def test_a_convolution_beside_a_network_counts_with_it(world: Path) -> None:
    """Of diffusers' networks quant_conv is the encoder's, post_quant_conv the decoder's."""
    network, identity = load_vae(str(world / "public"))
    counts = Compared(name="", where="", identity=identity, network=network).parameters()
    parts = {
        name: sum(p.numel() for p in m.parameters()) for name, m in network.vae.named_children()
    }

    assert counts["encoder"] == parts["encoder"] + parts["quant_conv"]
    assert counts["decoder"] == parts["decoder"] + parts["post_quant_conv"]


def test_statistics_are_those_of_all_latents_at_once() -> None:
    """Sums of parts, also through JSON, give mean, deviation and KL of the whole."""
    draw = torch.Generator().manual_seed(0)
    mean = torch.randn(5, 3, 4, 6, generator=draw) * torch.tensor([1.0, 2, 3])[:, None, None] + 1
    whole = Posterior(mean, torch.randn(mean.shape, generator=draw))
    sums = [
        LatentSums.from_json(LatentSums.of(Posterior(*parts)).to_json())
        for parts in zip(whole.mean.split(2), whole.logvar.split(2), strict=True)
    ]
    found = sum(sums[1:], start=sums[0]).statistics()

    expected = {
        "mean": mean.mean((0, 2, 3)),
        "std": mean.std((0, 2, 3), correction=0),
        "std_of_all": mean.var((0, 2, 3), correction=0).mean().sqrt(),
        "posterior_std": whole.std.square().mean().sqrt(),
        "kl_nats": whole.kl().mean(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value.tolist(), rel=1e-5)


@pytest.mark.parametrize("place", ["", "vae", "bundle/vae"])
def test_an_autoencoder_is_found_in_what_holds_it(tmp_path: Path, place: str) -> None:
    """Its own folder, a training run's or a bundle's, and that of a flow's run."""
    folder = tmp_path / "named"
    save_sim_vae(build(), folder / place)
    if place:
        (folder / "config.json").write_text("{}")  # of the run

    assert inside(str(folder)) == str(folder / place)
    assert inside("sd15-f8c4=anywhere") == "sd15-f8c4=anywhere"


def test_what_is_no_autoencoder_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    """No folder, none in it, a flow of pixels, damaged weights: each is said, and nothing begun."""
    pixel = write_tiny_bundle(tmp_path / "pixel", "pixel")
    save_sim_vae(build(), tmp_path / "damaged")
    (tmp_path / "damaged" / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
    wrong = {
        str(tmp_path / "nowhere"): "no such folder; give the folder of an autoencoder",
        str(world / "hq"): "no autoencoder: no config.json with diffusion_pytorch_model",
        str(pixel): "a bundle without an autoencoder: its flow is one of pixels",
        str(tmp_path / "damaged"): "diffusion_pytorch_model.safetensors",
    }
    for where, sentence in wrong.items():
        with pytest.raises(UsageError, match=sentence) as refused:
            reconstruct(world / "hq", tmp_path / "out", {"ours": world / "run", "it": where})
        assert f"it={where}: " in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("vae", "sentence"),
    [
        (("runs/vae",), "give NAME=DIR"),
        (("ours=",), "give NAME=DIR"),
        (("=runs/vae",), "give NAME=DIR"),
        (("a/b=runs/vae",), "no '/' at its ends, and none inside"),
        (("..=runs/vae",), "a NAME has no dot"),
        (("a=x", "a=y"), "the name a comes twice"),
    ],
)
def test_names_that_are_none_are_refused(vae: tuple[str, ...], sentence: str) -> None:
    """A name is of a folder and of a row, so that each has one of its own."""
    with pytest.raises(ValueError, match=sentence):
        vae_jobs.VAEsConfig(vae=vae)


def test_sides_that_the_factor_does_not_divide_are_refused(world: Path, tmp_path: Path) -> None:
    """By name, before any network has computed."""
    write_faces(tmp_path / "hq", 2, SIDE)
    picture(5, 36, 32).save(tmp_path / "hq" / "wide.png")
    engine = InProcess()

    with pytest.raises(UsageError, match=r"ours .* multiples of 8; 1 of 3 .* 36 x 32 .*: wide"):
        reconstruct(tmp_path / "hq", tmp_path / "out", {"ours": world / "run"}, engine)
    assert engine.count("reconstruct ours") == 0


def test_pictures_of_several_sizes_are_taken_and_said(world: Path, tmp_path: Path) -> None:
    """Each is reconstructed at its own size; costs are counted at that of most."""
    write_faces(tmp_path / "hq", 2, SIDE)
    picture(5, 40, 24).save(tmp_path / "hq" / "wide.png")

    result = reconstruct(tmp_path / "hq", tmp_path / "out", {"ours": world / "run"})

    assert levels(tmp_path / "out/reconstructed/ours/wide.png").shape == (24, 40, 3)
    assert result.size == (SIDE, SIDE)
    assert "costs are counted at 32 x 32 pixels, which 2 of 3 pictures have" in result.notes


def test_a_picture_that_cannot_be_used_ends_the_command(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named with the reason; mended, the same command goes on."""
    write_faces(tmp_path / "hq", 3, SIDE)
    Image.new("RGBA", (SIDE, SIDE)).save(tmp_path / "hq" / "clear.png")
    vaes: dict[str, object] = {"ours": world / "run"}

    with pytest.raises(UserError, match="1 pictures cannot be used"):
        reconstruct(tmp_path / "hq", tmp_path / "out", vaes)
    assert "transparent\t--input clear\t" in capsys.readouterr().err
    assert not (tmp_path / "out" / "vae.json").exists()

    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "hq" / "clear.png")
    assert reconstruct(tmp_path / "hq", tmp_path / "out", vaes).test_set.n == 4


def test_numbers_that_are_not_finite_end_the_command(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An autoencoder that overflows has no picture, and so no numbers."""
    write_constant(tmp_path / "vae", torch.tensor([0.0, float("nan"), 0.0]))

    with pytest.raises(UserError, match="3 pictures cannot be used"):
        reconstruct(world / "hq", tmp_path / "out", {"it": tmp_path / "vae"}, precision="bfloat16")
    assert "not_finite\tit face-0" in (lines := capsys.readouterr().err)
    assert "in bfloat16; give --precision float32" in lines
    assert not made(tmp_path / "out" / "reconstructed").keys()


def test_an_autoencoder_that_is_replaced_meanwhile_is_noticed(world: Path, tmp_path: Path) -> None:
    """A worker compares what it loads with what the command saw."""
    shutil.copytree(world / "run", tmp_path / "run")
    job = Reconstruction(vae_jobs.job(world / "hq", tmp_path / "out", {"ours": tmp_path / "run"}))
    save_sim_vae(build("group_norm"), tmp_path / "run" / "vae")

    with pytest.raises(UserError, match="on a worker, and the command began with"):
        job.run(InProcess())


def test_an_output_inside_the_input_is_refused(world: Path) -> None:
    """Else its pictures would be read as the input's."""
    with pytest.raises(UsageError, match="lies in --input"):
        reconstruct(world / "hq", world / "hq" / "out", {"ours": world / "run"})


def test_a_missing_metric_is_named_and_the_rest_is_written(world: Path, tmp_path: Path) -> None:
    """Asked for by name, it ends the command with exit code 3, once all else is there."""
    fields: dict[str, Any] = {"metrics": ("psnr", "lpips"), "weights": str(tmp_path), "first": 2}
    with pytest.raises(BudgetExceeded, match="without lpips"):
        reconstruct(world / "hq", tmp_path / "out", {"ours": world / "run"}, **fields)

    assert said(tmp_path / "out")["missing"].keys() == {"lpips"}
    page = (tmp_path / "out" / "vae.html").read_text()
    assert "<h2>Missing metrics</h2>" in page
    assert "<th>lpips ↓</th>" in page


def test_the_table_is_the_papers(world: Path) -> None:
    """A row for each autoencoder; of metrics those that were asked for."""
    page = (world / "whole" / "vae.html").read_text()
    found = said(world / "whole")["vaes"]
    values = [from_dict(Value, row["values"]["psnr"]) for row in found.values()]

    for cell in ("VAE", "latent", "parameters, M", "GFLOP", "psnr ↑", "f8c4"):
        assert f">{cell}</t" in page
    assert list(found) == ["ours", "public"]
    assert all(f">{cell}</td>" in page for cell in written(values))
    assert {value.fingerprint.n for value in values} == {COUNT}
    assert "http" not in page.replace("https://github.com", "")
    assert page.count("data:image/jpeg") >= 2 * (2 * 2 + 2)


def test_what_is_shown_is_spread_and_the_worst() -> None:
    """Three pictures evenly spaced, and the three of the lowest PSNR by any autoencoder."""
    keys = [f"k{n}" for n in range(9)]
    psnr: dict[str, list[float | None]] = {key: [30.0, 40.0 + n] for n, key in enumerate(keys)}
    psnr |= {"k1": [30.0, 9.0], "k5": [8.0, 50.0], "k6": [None, 7.0], "k8": [None, None]}

    assert shown(keys, psnr) == ["k0", "k1", "k3", "k5", "k6"]
    assert shown(keys[:2], {key: [None] for key in keys[:2]}) == ["k0", "k1"]


def test_differences_are_eight_times_as_large() -> None:
    """In levels, in both directions, cut off at white."""
    one, other = (np.array([[x]], np.uint8) for x in ([10, 200, 5], [12, 199, 255]))

    assert difference(one, other).tolist() == [[[16, 8, 255]]]
