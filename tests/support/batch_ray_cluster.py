"""Runs a batch on a Ray cluster of two nodes on this machine, one of which is killed during the run; prints the result as JSON.

This is a script and not a test, because Ray starts processes and issues warnings, which the tests would turn into errors.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time

import psutil
from ray.cluster_utils import Cluster

from saltlm.batches.config import BatchConfig
from saltlm.batches.run import Watcher, batch


class Kill(Watcher):
    """Kills a node while it runs a task, after the first job of the batch has ended."""

    def __init__(self, node: object) -> None:
        """Start the thread that kills the node.

        Args:
            node: node of the cluster.
        """
        self.node = psutil.Process(node.all_processes["raylet"][0].process.pid)
        self.lost = 0
        self.job_ended = threading.Event()
        threading.Thread(target=self.kill, daemon=True).start()

    def kill(self) -> None:
        """Wait until a job has ended and a task runs on the node, then kill all processes of the node."""
        self.job_ended.wait()
        while True:
            for process in self.node.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "_task" in " ".join(process.cmdline()):  # Ray sets the process title to the name of the task
                        for victim in (self.node, *self.node.children(recursive=True)):
                            with contextlib.suppress(psutil.Error):
                                victim.kill()
                        return
            time.sleep(0.01)

    def is_alive(self) -> bool:
        """Whether the node still runs."""
        return self.node.is_running() and self.node.status() != psutil.STATUS_ZOMBIE

    def tell(self, job: object, stage: str) -> None:
        """Count the jobs that were lost."""
        self.lost += "lost" in stage

    def ended(self, job: object, outcome: object) -> None:
        """Let the thread kill the node."""
        self.job_ended.set()


def main() -> None:
    """Run the batch; the first argument is the jobs file."""
    size = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "memory": 4_000_000_000})
    try:
        node = cluster.add_node(**size, memory=4_000_000_000)
        cluster.wait_for_nodes()
        watcher = Kill(node)
        done = batch(sys.argv[1], BatchConfig(ray=cluster.address, workers=2), watcher=watcher)
        sys.stdout.write(json.dumps({**done.to_json(), "killed": not watcher.is_alive(), "lost": watcher.lost}) + "\n")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
