"""Run a job as its command does, but in one process and without Ray.

python -m tests.support.without_ray curate --input raw --output set --no-track

A test that kills a job at many moments starts it as many times, and most of a start is Ray's. What
is killed here is the driver and its worker at once; the tests that kill Ray's own processes say so.
"""

import sys

from infra import cli
from tests.support.curation_jobs import InProcess


def main() -> None:
    """Run the job that the first argument names, with the other arguments."""
    name, *arguments = sys.argv[1:]
    if name == "curate":
        from pipelines.curate.config import PRESETS as CURATIONS
        from pipelines.curate.config import CurateConfig
        from pipelines.curate.job import Curation

        curation = cli.parse(CurateConfig, CURATIONS, arguments, "pipelines.curate", "")
        Curation(curation).run(InProcess())
    elif name == "restore":
        from pipelines.restore.config import PRESETS as RESTORATIONS
        from pipelines.restore.config import RestoreConfig
        from pipelines.restore.job import Restoration

        restoration = cli.parse(RestoreConfig, RESTORATIONS, arguments, "pipelines.restore", "")
        Restoration(restoration).run(InProcess())
    else:
        from pipelines.encode.config import PRESETS as ENCODINGS
        from pipelines.encode.config import EncodeConfig
        from pipelines.encode.job import Encoding

        encoding = cli.parse(EncodeConfig, ENCODINGS, arguments, "pipelines.encode", "")
        Encoding(encoding).run(InProcess())


if __name__ == "__main__":
    main()
