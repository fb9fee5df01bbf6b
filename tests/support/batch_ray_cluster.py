"""A Ray cluster of two nodes on this machine, one of which is killed while a batch runs on both; prints the result.

Run as a script: Ray starts processes of its own, and its warnings are not ours to turn into errors.
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
    """Once a job is done, kills the second node in the midst of the next task that runs there."""

    def __init__(self, node: object) -> None:
        self.node = psutil.Process(node.all_processes["raylet"][0].process.pid)
        self.lost = 0
        self.half_way = threading.Event()
        threading.Thread(target=self.kill, daemon=True).start()

    def kill(self) -> None:
        self.half_way.wait()
        while True:
            for process in self.node.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "_task" in " ".join(process.cmdline()):  # Ray names a process by what it runs
                        for one in (self.node, *self.node.children(recursive=True)):
                            with contextlib.suppress(psutil.Error):
                                one.kill()
                        return
            time.sleep(0.01)

    def lives(self) -> bool:
        return self.node.is_running() and self.node.status() != psutil.STATUS_ZOMBIE

    def tell(self, job: object, stage: str) -> None:
        self.lost += "lost" in stage

    def ended(self, job: object, outcome: object) -> None:
        self.half_way.set()


def main() -> None:
    size = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "memory": 4_000_000_000})
    try:
        node = cluster.add_node(**size, memory=4_000_000_000)
        cluster.wait_for_nodes()
        watcher = Kill(node)
        done = batch(sys.argv[1], BatchConfig(ray=cluster.address, workers=2), watcher=watcher)
        sys.stdout.write(json.dumps({**done.to_json(), "killed": not watcher.lives(), "lost": watcher.lost}) + "\n")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
