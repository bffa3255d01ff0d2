"""Restore photographs on a page in the browser: `python -m pipelines.demo`.

    python -m pipelines.demo                                         # http://127.0.0.1:7860
    python -m pipelines.demo --model runs/flow                       # your own, not the included
    python -m pipelines.demo --model runs/flow --host 0.0.0.0 --names gpu-box      # for others too

Photographs and results are in the memory of this process alone, and are forgotten after
--keep-minutes. Ctrl-C ends it at once.
"""

import sys
from collections.abc import Sequence

from infra import cli
from pipelines.demo.config import PRESETS, DemoConfig


def main(arguments: Sequence[str]) -> int:
    """Serve the page until a signal, which ends the process.

    Raises:
        UsageError: a model that cannot be used, or a port that is taken.
    """
    config = cli.parse(DemoConfig, PRESETS, arguments, "pipelines.demo", __doc__ or "")
    from pipelines.demo.server import listen, serve, url

    with listen(config.host, config.port) as listener:
        from pipelines.demo.app import build
        from pipelines.demo.job_queue import JobQueue
        from pipelines.demo.restoring import Restoration

        restoration = Restoration(config)
        queue = JobQueue(restoration, config)
        app = build(config, queue, restoration.facts)
        queue.start()
        sys.stdout.write(f"{restoration.facts.described}\n{url(listener)}  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        serve(app, listener)


if __name__ == "__main__":
    cli.run(main)
