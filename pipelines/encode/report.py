"""The report of an encoding: the lines that it ends with, its numbers for MLflow, its page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from datasets.decoding import decode
from infra.config import flat
from infra.paths import AnyPath
from pipelines.encode.bound import REGRESSED, SHOWN, picture_path
from pipelines.jobs import page as report
from pipelines.jobs.stage import StageTime
from pipelines.jobs.times import closing_lines, stage_metrics, time_section

SOURCE_NOISE = 0.1  # sigma_s of the flow, which the posterior's sigma is compared with
TITLES = {
    "hq": "HQ, x",
    "lq": "LQ",
    "posterior_mean": "posterior mean, x̂",
    "hq_decoded": "D(E(x))",
    "posterior_mean_decoded": "D(E(x̂))",
    REGRESSED: "D(g(E(x̂)))",
}


def rms(values: Sequence[float]) -> float:
    """Return the root mean square over channels."""
    return float(np.sqrt(np.mean(np.square(values))))


def metrics(manifest: dict[str, Any], times: Sequence[StageTime]) -> dict[str, float]:
    """Return the run's numbers for MLflow."""
    totals, distortion = manifest["totals"], manifest["distortion"]
    reused, computed = latents_by_origin(manifest)
    target, source = manifest["statistics"]["target"], manifest["statistics"]["source"]
    return {
        **{name: float(value) for name, value in totals.items()},
        "latents/reused": float(reused),
        "latents/computed": float(computed),
        **{f"distortion/{k}": v for k, v in distortion.items() if isinstance(v, float)},
        "target/sigma": rms(target["sigma"]),
        "source/sigma": rms(source["sigma"]),
        "target/std": rms(target["std"]),
        "source/std": rms(source["std"]),
        "rounding_error": rms(target["rounding_error"]),
        **stage_metrics(times),
    }


def latents_by_origin(manifest: dict[str, Any]) -> tuple[int, int]:
    """Count the set's latents: those that were copied from an earlier set, and the others."""
    totals = manifest["totals"]
    parts = [generation.get("reused", {}) for generation in manifest["generations"]]
    reused = sum(part.get(side, 0) for part in parts for side in ("targets", "sources"))
    return reused, 2 * totals["samples"] + totals["pairs"] + totals["gray"] - reused


def summary(manifest: dict[str, Any], times: Sequence[StageTime], folder: AnyPath) -> str:
    """Return the lines that a run ends with."""
    totals, found = manifest["totals"], manifest["distortion"]
    reused, computed = latents_by_origin(manifest)
    return (
        f"{totals['samples']:,} images, {manifest['draws']} draws each: {totals['pairs']:,} pairs, "
        f"{totals['gray']:,} of them gray; {computed:,} latents computed, {reused:,} reused\n"
        f"distortion bound on {found['images']} images: D(E(x)) {found['psnr_hq_decoded']:.2f} dB "
        f"against x; D(E(x̂)) {found['psnr_posterior_mean_decoded']:.2f} dB against x̂, "
        f"{found['rmse_posterior_mean_decoded']:.2f} levels of 255\n"
        + "".join(f"{line}\n" for line in _remarks(manifest))
        + closing_lines(totals, times, folder)
    )


def build(
    manifest: dict[str, Any], probe: dict[str, Any], folder: AnyPath, times: Sequence[StageTime]
) -> str:
    """Make the page of a set.

    Args:
        manifest: manifest of the set.
        probe: result of the probe, image by image.
        folder: folder of the probe's pictures.
        times: times of this run's stages.
    """
    totals = manifest["totals"]
    lead = (
        f"{totals['pairs']:,} pairs of latents {list(_shape(manifest))} in "
        f"{manifest['latent']['dtype']}, from {totals['samples']:,} images"
    )
    sections = [
        ("", report.facts(_headline(manifest))),
        ("Distortion bound", _bound_section(manifest, probe)),
        *_galleries(probe, folder),
        ("Latents, channel by channel", _channel_section(manifest)),
        ("Generations", _generation_table(manifest)),
        ("Time", time_section(times)),
        ("Identity", report.table(["field", "value"], list(flat(manifest["identity"]).items()))),
    ]
    return report.page("Encoding report", lead, sections)


def _shape(manifest: dict[str, Any]) -> tuple[int, int, int]:
    latent = manifest["latent"]
    return latent["channels"], latent["height"], latent["width"]


def _headline(manifest: dict[str, Any]) -> dict[str, str]:
    totals, found = manifest["totals"], manifest["distortion"]
    return {
        "pairs": f"{totals['pairs']:,}",
        "draws of an image": f"{manifest['draws']}",
        "size": f"{totals['bytes'] / 1e6:,.1f} MB",
        "D(E(x)) against x": f"{found['psnr_hq_decoded']:.2f} dB",
        "D(E(x̂)) against x̂": f"{found['psnr_posterior_mean_decoded']:.2f} dB",
    }


def _bound_section(manifest: dict[str, Any], probe: dict[str, Any]) -> str:
    found = manifest["distortion"]
    rows = [
        ("D(E(x)) against x: about the best a restoration can reach", found["psnr_hq_decoded"]),
        ("x̂ against x: the predictor itself", found["psnr_posterior_mean"]),
        ("D(E(x̂)) against x: the same through the VAE", found["psnr_restored_by_decoding"]),
        ("D(E(x̂)) against x̂: what the flow starts from", found["psnr_posterior_mean_decoded"]),
    ]
    if "psnr_regressed_decoded" in found:
        rows[-1] = ("D(E(x̂)) against x̂: what the regressor is shown", rows[-1][1])
        what = "D(g(E(x̂))) against x: what the flow starts from, g(E(x̂)), decoded"
        rows.append((what, found["psnr_regressed_decoded"]))
    images = [
        (
            image["key"],
            image["psnr_hq_decoded"],
            image["psnr_posterior_mean"],
            image["psnr_posterior_mean_decoded"],
            image["rmse_posterior_mean_decoded"],
        )
        for image in probe["images"]
    ]
    header = ["image", "D(E(x)), x", "x̂, x", "D(E(x̂)), x̂", "the last as RMSE, of 255"]
    return (
        report.table([f"mean over {found['images']} images", "PSNR, dB"], rows)
        + report.note(
            f"‖D(E(x̂)) - x̂‖: {found['rmse_posterior_mean_decoded']:.2f} levels of 255 (root mean "
            "square per image, averaged). x is an image of the set as its draw 0 turned it; modes "
            "of the posterior; PSNR on 8-bit RGB. The bound holds for D(E(x̂)), without the noise "
            "that the flow adds to its source."
        )
        + "".join(report.note(line) for line in [*_regressed(found), *_precision(manifest)])
        + report.table(header, images)
    )


def _galleries(probe: dict[str, Any], folder: AnyPath) -> list[tuple[str, str]]:
    """Show the first images, each from HQ to both reconstructions."""
    sections = []
    for number, image in enumerate(probe["images"][:SHOWN]):
        captions = {
            "hq": image["key"],
            "lq": ", ".join(f"{k.split('_')[0]} {v:.3g}" for k, v in image["severity"].items()),
            "posterior_mean": f"{image['psnr_posterior_mean']:.2f} dB against x",
            "hq_decoded": f"{image['psnr_hq_decoded']:.2f} dB against x",
            "posterior_mean_decoded": f"{image['psnr_posterior_mean_decoded']:.2f} dB against x̂",
        }
        if "psnr_regressed_decoded" in image:
            captions[REGRESSED] = f"{image['psnr_regressed_decoded']:.2f} dB against x"
        thumbnails = [
            report.Thumbnail(
                decode(picture_path(folder, number, name).read_bytes()),
                TITLES[name],
                captions[name],
            )
            for name in captions
        ]
        sections.append(("Pictures" if number == 0 else "", report.gallery(thumbnails)))
    return sections


def _regressed(found: dict[str, Any]) -> list[str]:
    """Say in one line what a regressor does to the probe's latents, if there is one."""
    if "regressed_error" not in found:
        return []
    part = found["regressed_error"]
    verdict = "" if part < 1 else "; no nearer than without it: was it trained for such latents?"
    return [
        f"regressor g: D(g(E(x̂))) {found['psnr_regressed_decoded']:.2f} dB against x, "
        f"‖g(E(x̂)) - E(x)‖ is {part:.3f} of ‖E(x̂) - E(x)‖{verdict}"
    ]


def _precision(manifest: dict[str, Any]) -> list[str]:
    """Say in one line what a precision below float32 does to the probe's images, if it is one."""
    found, made = manifest["distortion"], manifest["identity"]
    if "target_error_by_precision" not in found:
        return []
    predictor = made.get("predictor_precision", "float32")
    said = f"VAE in {made['precision']}"
    if made["source"] != "lq" and predictor != "float32":
        said += f", predictor in {predictor}"
    return [
        f"{said}, against float32: x̂ differs by {found['rmse_posterior_mean_by_precision']:.3f} "
        f"levels of 255, E(x) by {found['target_error_by_precision']:.2g} and E(x̂) by "
        f"{found['source_error_by_precision']:.2g} of a standard deviation (root mean square)"
    ]


def _remarks(manifest: dict[str, Any]) -> list[str]:
    """Return what a run ends with about its regressor, its precision and its posterior."""
    return [*_regressed(manifest["distortion"]), *_precision(manifest), _posterior(manifest)]


def _posterior(manifest: dict[str, Any]) -> str:
    """Say whether mode or sample matters for this VAE."""
    sigma = rms(manifest["statistics"]["target"]["sigma"])
    kind = manifest["identity"]["posterior"]
    if sigma < SOURCE_NOISE / 3:
        advice = f"small against the flow's source noise {SOURCE_NOISE}: mode and sample agree"
    elif kind == "mode":
        advice = (
            f"not small against the flow's source noise {SOURCE_NOISE}: the authors' flow sees "
            "samples (--posterior sample), this set holds modes"
        )
    else:
        advice = f"not small against the flow's source noise {SOURCE_NOISE}: sampled, as theirs"
    return f"posterior sigma {sigma:.3g} (targets), {advice}"


def _channel_section(manifest: dict[str, Any]) -> str:
    target, source = manifest["statistics"]["target"], manifest["statistics"]["source"]
    names = ("mean", "std", "sigma", "rounding_error")
    shown = [
        (channel, *(f"{side[name][channel]:.3g}" for side in (target, source) for name in names))
        for channel in range(len(target["mean"]))
    ]
    labels = [name.split("_")[0] for name in names]
    header = ["channel", *(f"{side} {label}" for side in ("x_1", "x_0") for label in labels)]
    relative = rms(target["rounding_error"]) / (rms(target["std"]) or 1)
    return report.note(
        f"{_posterior(manifest)}. Storing as {manifest['latent']['dtype']} errs by "
        f"{relative:.2g} of a standard deviation (root mean square)."
    ) + report.table(header, shown)


def _generation_table(manifest: dict[str, Any]) -> str:
    rows = [
        (
            f"{g['draws'][0]} to {g['draws'][1] - 1}",
            len(g["shards"]),
            ", ".join(g["devices"]),
            ", ".join(map(str, g["batches"])),
            g["versions"]["torch"],
            g["reused"]["targets"] + g["reused"]["sources"] if "reused" in g else 0,
        )
        for g in manifest["generations"]
    ]
    header = ["draws", "shards", "computed on", "batch", "torch", "latents reused"]
    return report.table(header, rows)
