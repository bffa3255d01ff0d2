"""The table of compared autoencoders, in markdown and on a page with their pictures."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq

from datasets.decoding import Pixels, decode
from infra.config import pretty_json
from infra.paths import AnyPath, write_bytes
from pipelines.evaluate.report import missing_metrics
from pipelines.evaluate.summary import VALUES
from pipelines.evaluate.vae.config import EVALUATION, ORIGINALS, RECONSTRUCTED
from pipelines.evaluate.vae.result import Result, Row
from pipelines.evaluate.writing import named, written
from pipelines.jobs import page

JSON, PAGE = "vae.json", "vae.html"
PAPER = ("psnr", "lpips", "fid", "mmd_dinov2")
"""The metrics of the paper's Tables 1 to 3, in their order."""
AMPLIFIED = 8
EVEN, WORST = 3, 3
"""Pictures that are shown: evenly spaced over the keys, and those of the lowest PSNR."""
SIDE, WIDEST = 512, 300
"""Of a shown picture in pixels at most, and on the page in CSS pixels."""


def write(folder: AnyPath, result: Result) -> None:
    """Write the numbers and the page into the output folder, and the table to the terminal."""
    write_bytes(folder / JSON, pretty_json(asdict(result)))
    write_bytes(folder / PAGE, build(folder, result).encode())
    sys.stdout.write(f"\n{markdown(result)}\n{what(result)}\n{folder / PAGE}\n")


def markdown(result: Result) -> str:
    """Return the table of the paper's Tables 1 to 3."""
    header, rows = table(result)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table: the metrics that were asked for, or else the paper's."""
    metrics = result.asked or PAPER
    header = ["VAE", "latent", "parameters, M", "GFLOP"]
    header += map(named, metrics)
    values = [written([row.values.get(one) for row in result.vaes.values()]) for one in metrics]
    rows = [
        [name, *_costs(row), *(column[place] for column in values)]
        for place, (name, row) in enumerate(result.vaes.items())
    ]
    return header, rows


def _costs(row: Row) -> list[str]:
    costs = row.costs
    millions = [f"{count / 1e6:.3g}" for count in costs["parameters"].values()]
    giga = [_short(count / 1e9) for count in costs["flops"].values()]
    return [f"f{costs['factor']}c{costs['latent'][0]}", " + ".join(millions), " + ".join(giga)]


def _short(value: float) -> str:
    """Write a number with three digits, or with all that it has before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def what(result: Result) -> str:
    """Say what the numbers are of, in a line below the table."""
    wide, high = result.size
    return (
        f"{result.test_set.n:,} pictures through D(mode of E(x)) in {result.precision} on a "
        f"{'GPU' if result.device == 'cuda' else 'CPU'}, compared with themselves. Intervals are "
        "of 95 %. Parameters and operations are those of encoder + decoder, the latter for a "
        f"picture of {wide} x {high}, a multiplication and an addition being two."
    )


def build(folder: AnyPath, result: Result) -> str:
    """Return the page.

    Args:
        folder: the output folder, with the pictures and the evaluation.
        result: the numbers.
    """
    notes = [what(result), *result.notes]
    sections = [
        ("", page.table(*table(result)) + "".join(map(page.note, notes))),
        ("Latents", page.table(*latents(result)) + page.note(LATENTS)),
        ("Pictures", "".join(_pictures(folder, result))),
        ("Missing metrics", missing_metrics(result.missing)),
    ]
    return page.page("Autoencoders", f"{result.input}, {result.test_set.n:,} pictures", sections)


LATENTS = (
    "Deviations are root mean squares over the channels: of the encoder's means over all pictures "
    "and places, about the mean of the channel, and of its own Gaussian. KL is that to N(0, 1), of "
    "a picture's whole latent. Latents of autoencoders with a scale are scaled. vae.json has the "
    "numbers of each channel."
)


def latents(result: Result) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of latents."""
    wide, high = result.size
    header = ["VAE", "C x h x w", "values", "kB in bfloat16", "bytes of pixels to one"]
    header += ["deviation", "of the Gaussian", "KL, nats", "weights"]
    rows = [
        [
            name,
            " x ".join(map(str, row.costs["latent"])),
            f"{row.costs['values']:,}",
            _short(row.costs["bytes_bfloat16"] / 1000),
            _short(3 * wide * high / row.costs["bytes_bfloat16"]),
            *(_short(row.latents[key]) for key in ("std_of_all", "posterior_std", "kl_nats")),
            row.weights[:12],
        ]
        for name, row in result.vaes.items()
    ]
    return header, rows


def _pictures(folder: AnyPath, result: Result) -> Iterator[str]:
    """Yield pictures, their reconstructions, and below them the differences, amplified."""
    columns = pq.read_table(BytesIO((folder / EVALUATION / VALUES).read_bytes())).to_pydict()
    values = columns.get("psnr", [None] * len(columns["key"]))
    psnr = dict(zip(zip(columns["method"], columns["key"], strict=True), values, strict=True))
    keys = list(dict.fromkeys(columns["key"]))
    for key in shown(keys, {key: [psnr[name, key] for name in result.vaes] for key in keys}):
        original = decode((folder / ORIGINALS / f"{key}.png").read_bytes())
        made = {
            name: decode((folder / RECONSTRUCTED / name / f"{key}.png").read_bytes())
            for name in result.vaes
        }
        said = {name: f"{name} {_decibels(psnr[name, key])}" for name in made}
        beside = [("original", original), *((said[name], made[name]) for name in made)]
        yield page.beside(key, [(text, page.data_uri(x, SIDE)) for text, x in beside], WIDEST)
        below = [("", np.full_like(original, 255))]  # so that each lies below its picture
        below += [
            (f"{name}, difference x {AMPLIFIED}", difference(x, original))
            for name, x in made.items()
        ]
        yield page.beside("", [(text, page.data_uri(x, SIDE)) for text, x in below], WIDEST)


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} dB"


def shown(keys: Sequence[str], psnr: Mapping[str, Sequence[float | None]]) -> list[str]:
    """Choose which pictures are shown: some evenly spaced, and those of the lowest PSNR by any.

    Args:
        keys: of all pictures.
        psnr: of each by every autoencoder; None where it was not measured.
    """
    count = min(EVEN, len(keys))
    even = [keys[number * len(keys) // count] for number in range(count)]
    lowest = {key: [value for value in values if value is not None] for key, values in psnr.items()}
    worst = sorted((min(values), key) for key, values in lowest.items() if values)
    return sorted({*even, *(key for _, key in worst[:WORST])})


def difference(picture: Pixels, original: Pixels) -> Pixels:
    """Return the absolute difference of two pictures, `AMPLIFIED` times, cut off at white."""
    apart = np.abs(picture.astype(np.int16) - original.astype(np.int16))
    amplified: Pixels = np.minimum(AMPLIFIED * apart, 255).astype(np.uint8)
    return amplified
