"""Runs several adaptations in the same processes of torchrun, so that the libraries are imported once.

Usage: torchrun ... adapt_two.py JOBS, a JSON list of {"model", "text", "out", "config", "stop": step or null}.
A job with a step to stop at sends SIGTERM to one of the processes after that step, and is then resumed.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from saltlm.adaptation import session
from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.run import adapt
from saltlm.adaptation.sharding import is_sharded


def sizes_of(model) -> tuple[int, int]:
    """Number of weights of the model, and of those that this process holds."""
    parameters = list(model.parameters())
    local = [parameter.to_local() if is_sharded(parameter) else parameter for parameter in parameters]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in local)


def run(job: dict, **more) -> None:
    def stop(report):
        if report.step == job.get("stop") and not more.get("resume"):
            os.kill(os.getpid(), signal.SIGTERM)

    adapt(job["model"], job["text"], job["out"], AdaptConfig(**job["config"]), progress=stop, **more)


def main(jobs: list[dict]) -> None:
    torch.set_num_threads(1)
    sizes = []
    prepare_model = session.prepare_model

    def prepare_and_measure(model, *rest):
        chunked = prepare_model(model, *rest)
        sizes.append(sizes_of(model))
        return chunked

    session.prepare_model = prepare_and_measure
    for job in jobs:
        try:
            run(job)
        except KeyboardInterrupt:
            run(job, resume=True)
    if os.environ["RANK"] == "1":
        print(json.dumps(sizes))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
