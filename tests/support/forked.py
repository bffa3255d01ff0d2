"""An engine whose units may kill their process."""

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from infra.errors import UserError
from pipelines.jobs.stage import carried_out
from tests.support.curation_jobs import InProcess


class Forked(InProcess):
    """An engine whose every attempt at a unit is a process; a killed one is followed by another."""

    def __init__(self, survives: bool = True) -> None:
        super().__init__()
        self.survives = survives
        self.deaths = 0

    def run(self, name: str, units: Sequence[dict[str, Any]], *rest: Any) -> Iterator[Any]:
        """Do every unit; without ``survives`` the job dies with its first worker."""
        worker, arguments, *_ = rest
        for unit in units:
            while (result := self._attempt(worker, arguments, unit)) is None:
                self.deaths += 1
                assert self.deaths < 50, "the job goes on for ever"
                if not self.survives:
                    raise KeyboardInterrupt
            if "failure" in result:
                raise UserError(result["failure"])
            yield result

    def _attempt(self, worker: Any, arguments: Any, unit: dict[str, Any]) -> Any:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, json.dumps(carried_out(worker(*arguments), unit)).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as answer:
            text = answer.read()
        os.waitpid(child, 0)
        return json.loads(text) if text else None
