"""A Ray cluster of two nodes on this machine, one of which is killed while a batch runs on both; prints the result.

Run as a script: Ray starts processes of its own, and its warnings are not ours to turn into errors.
"""

from __future__ import annotations

import json
import sys

from ray.cluster_utils import Cluster
from saltlm import batch
from saltlm.batch_config import BatchConfig


class Kill(batch.Watcher):
    """Takes the second node away as soon as the first job is done: what runs there is lost."""

    def __init__(self, cluster: Cluster, node: object) -> None:
        self.cluster, self.node, self.lost = cluster, node, 0

    def tell(self, job: object, stage: str) -> None:
        self.lost += "lost" in stage

    def ended(self, job: object, outcome: object) -> None:
        if self.node is not None:
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = None


def main() -> None:
    size = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**size, "memory": 4_000_000_000})
    try:
        node = cluster.add_node(**size, memory=4_000_000_000)
        cluster.wait_for_nodes()
        watcher = Kill(cluster, node)
        done = batch.run(sys.argv[1], BatchConfig(ray=cluster.address, workers=2), watcher=watcher)
        sys.stdout.write(json.dumps({**done.to_json(), "killed": watcher.node is None, "lost": watcher.lost}) + "\n")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
