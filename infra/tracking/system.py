"""CPU, memory, disk, network and GPU of this machine as metrics, under MLflow's own names.

MLflow's own sampler asks the store at every sample whether the run still exists, and stops when it
does not answer; this one only measures.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

PERIOD = 10.0  # seconds between samples


class SystemSampler(threading.Thread):
    """The thread that measures, until :meth:`stop`."""

    def __init__(self, record: Callable[[dict[str, float], int], None], since: float) -> None:
        """Hand each sample to ``record``, its step being the seconds since the time ``since``."""
        super().__init__(name="system-metrics", daemon=True)
        self._record = record
        self._since = since
        self._stopping = threading.Event()
        self._monitors = _monitors()

    def run(self) -> None:
        """Sample every ten seconds; the first sample after one."""
        pause = 1.0
        while not self._stopping.wait(pause):
            sample: dict[str, float] = {}
            for monitor in self._monitors:
                monitor.collect_metrics()
                sample |= {
                    f"system/{key}": value for key, value in monitor.aggregate_metrics().items()
                }
                monitor.clear_metrics()
            self._record(sample, int(time.time() - self._since))
            pause = PERIOD

    def stop(self) -> None:
        """End the thread; the sample being taken is still recorded."""
        self._stopping.set()
        self.join(timeout=1.0)


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except (ImportError, RuntimeError):  # no NVIDIA library or no GPU: nothing to measure
        return monitors
    return monitors
