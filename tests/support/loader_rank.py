"""Read batches as one rank of a training does, and note each in a log, until it is killed.

python -m tests.support.loader_rank SET LOG RANK RANKS [START_METHOD]
"""

import json
import sys
import time
from pathlib import Path

from datasets.reading.latents import LatentPairs
from datasets.reading.loader import Loader, LoaderConfig
from datasets.reading.order import Layout


def main(folder: str, log: str, rank: str, ranks: str, method: str = "") -> None:
    """Read by two processes of a start method, or by two threads without one."""
    start = {"start_method": method} if method else {}
    config = LoaderConfig(workers=2, processes=bool(method), **start)
    layout = Layout(ranks=int(ranks), rank=int(rank), micro_batch=3)
    with Path(log).open("a") as file:
        for batch, state in Loader(LatentPairs(Path(folder)), layout, config):
            file.write(json.dumps([batch.keys, state]) + "\n")
            file.flush()
            time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
