"""Encode image shards into latent shards for the flow: `python -m pipelines.encode`.

    python -m pipelines.encode --input sets/ffhq --output latents/ffhq --vae sim-vae-c32/
        --predictor swinir_restoration512_L1.pth --draws 8
    python -m pipelines.encode ... --dry-run                     # hours and GB, nothing written
    python -m pipelines.encode ... --draws 16                    # later: adds 8, keeps the first 8
    python -m pipelines.encode ... --reuse latents/ffhq --output latents/ffhq-more  # copy the same
    python -m pipelines.encode verify latents/ffhq               # recompute every claim
    python -m pipelines.encode verify latents/ffhq --repair      # first mend what is damaged
    python -m pipelines.encode verify latents/ffhq --recompute 8 # and eight latents from pixels

Of every image: x_1 = E(HQ), as it is and flipped; and of each of K seeded degradations, LQ ->
SwinIR -> x_0 = E(posterior mean), with every parameter of the draw. To resume, run the same command
again.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from infra import cli
from infra.config import read_object, to_dict
from infra.errors import UsageError
from infra.paths import AnyPath, path_of
from pipelines.encode.config import PRESETS, STATE, EncodeConfig, VerifyConfig
from pipelines.jobs.verdict import verdict


def main(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    if arguments and arguments[0] == "verify":
        return verify(list(arguments[1:]))
    config = cli.parse(EncodeConfig, PRESETS, arguments, "pipelines.encode", __doc__ or "")
    needed = ["input", "output", "vae", *(["predictor"] * (config.rule.source != "lq"))]
    needed += ["regressor"] * (config.rule.source == "regressed")
    given = {"input": config.input, "output": config.output, **to_dict(config.rule)}
    missing = [f"--{name}" for name in needed if not given[name]]
    if missing:
        raise UsageError(f"no {', '.join(missing)}; python -m pipelines.encode --help says what")
    if config.dry_run:
        from pipelines.encode.estimate import estimate

        sys.stdout.write(estimate(config))
        return 0
    from pipelines.encode.job import Encoding

    Encoding(config).run()
    return 0


def verify(arguments: list[str]) -> int:
    """Recompute every claim of a set; returns 1 and names what is wrong where, 0 if nothing is."""
    if not arguments or arguments[0].startswith("-"):
        raise UsageError(
            "usage: python -m pipelines.encode verify PATH [--repair] [--recompute N ...]"
        )
    folder = path_of(arguments[0])
    presets = {"default": VerifyConfig()}
    description = "Verify a latent set."
    config = cli.parse(VerifyConfig, presets, arguments[1:], "verify PATH", description)
    from datasets.sets import claimed_set
    from pipelines.encode.verify import all_problems

    if not (config.repair and (folder / STATE).is_dir()):  # where a lost manifest can be repaired
        claimed_set(folder, "latent set")
    if config.repair:
        _repair(folder, config)
    return verdict(folder, all_problems(folder, config))


def _repair(folder: AnyPath, options: VerifyConfig) -> None:
    from pipelines.encode.job import Encoding
    from pipelines.encode.repair import repair

    saved = folder / "config.json"
    config = options.over(read_object(saved, str(saved)))
    for name in repair(Encoding(replace(config, output=str(folder)))):
        sys.stdout.write(f"{name}: made again\n")


if __name__ == "__main__":
    cli.run(main)
