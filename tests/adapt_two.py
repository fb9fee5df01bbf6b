"""Runs adaptations one after the other in the processes of torchrun, whose imports are paid once.

Usage: torchrun ... adapt_two.py JOBS, a JSON list of {"model", "text", "out", "config", "stop": step or null}.
A job that is to stop gets a SIGTERM after that step in one of the processes, and goes on with resume.
"""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from saltlm.adaptation import session as adapt_model
from saltlm.adaptation.config import AdaptConfig
from saltlm.adaptation.run import adapt
from saltlm.adaptation.sharding import is_sharded


def numbers(model) -> tuple[int, int]:
    """Floats of the model, and those of them that this process holds."""
    parameters = list(model.parameters())
    held = [parameter.to_local() if is_sharded(parameter) else parameter for parameter in parameters]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in held)


def run(job: dict, **more) -> None:
    def stop(report):
        if report.step == job.get("stop") and not more.get("resume"):
            os.kill(os.getpid(), signal.SIGTERM)

    adapt(job["model"], job["text"], job["out"], AdaptConfig(**job["config"]), progress=stop, **more)


def main(jobs: list[dict]) -> None:
    torch.set_num_threads(1)
    sizes = []
    stock = adapt_model.prepare_model

    def watched(model, *rest):
        found = stock(model, *rest)
        sizes.append(numbers(model))
        return found

    adapt_model.prepare_model = watched
    for job in jobs:
        try:
            run(job)
        except KeyboardInterrupt:
            run(job, resume=True)
    if os.environ["RANK"] == "1":
        print(json.dumps(sizes))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
