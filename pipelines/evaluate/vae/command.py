"""Reconstruct pictures by autoencoders: `python -m pipelines.evaluate vae`.

    python -m pipelines.evaluate vae ours=runs/vae --input celeba-test/hq/ --first 1000 -o vaes/
    python -m pipelines.evaluate vae ours=runs/vae flux=flux-f8c16 --input sets/ffhq -o vaes/
    python -m pipelines.evaluate vae ... --precision float16      # as the paper's authors do

Every picture through D(mode of E(x)), measured against itself, beside what the networks cost: the
reconstruction half of the paper's Tables 1 to 3. To go on, or to add an autoencoder or a metric,
run the command again: what is made stays.
"""

from infra import cli
from infra.errors import UsageError
from pipelines.evaluate.vae.config import PRESETS, VAEsConfig


def main(arguments: list[str]) -> int:
    """Run the command line behind `vae`; returns the exit code.

    Raises:
        UsageError: no autoencoder, no pictures, or nothing to write into.
        UserError: pictures that cannot be reconstructed or measured.
        BudgetExceeded: metrics that were asked for are missing.
    """
    prog = "pipelines.evaluate vae"
    config = cli.parse(VAEsConfig, PRESETS, arguments, prog, __doc__ or "")
    given = {"NAME=DIR": config.vae, "--input": config.input, "--output": config.output}
    if lacks := [name for name, value in given.items() if not value]:
        raise UsageError(
            f"no {', '.join(lacks)}; python -m pipelines.evaluate vae --help says what"
        )
    from pipelines.evaluate.vae.job import Reconstruction

    Reconstruction(config).run()
    return 0
