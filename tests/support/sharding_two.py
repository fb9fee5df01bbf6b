"""Trains a small model sharded over two forked processes and whole in one; prints one JSON list of checks by process.

Usage: sharding_two.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from saltlm.adaptation.row_mask import RowMask
from saltlm.adaptation.sharding import (
    fsdp_modules,
    full_optimizer_state,
    full_state,
    load_full_optimizer_state,
    load_full_state,
    local_rows,
    shard,
    unsharded_root,
)

ROWS = 7  # odd, so that the shards differ in length


class Layer(torch.nn.Linear):
    pass


class Model(torch.nn.Module):
    _no_split_modules = ("Layer",)

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = torch.nn.Embedding(ROWS, 4), torch.nn.Linear(4, ROWS)
        self.layers = torch.nn.Sequential(Layer(4, 4), Layer(4, 4))
        self.head.weight = self.rows.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.head(self.layers(self.rows(ids))), ids)


def new_model() -> Model:
    torch.manual_seed(0)
    return Model()


def train(model: Model, ids: torch.Tensor, steps: int, state: dict | None = None) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    mask = RowMask([model.rows.weight, model.head.bias], np.arange(ROWS) % 3 == 0, 0.1)
    mask.attach(optimizer)
    if state is not None:
        load_full_optimizer_state(optimizer, state)
    for _ in range(steps):
        model(ids).backward()
        mask.zero_frozen_gradients()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def same(result: dict, expected: dict, exactly: bool) -> bool:
    close = torch.equal if exactly else lambda a, b: torch.allclose(a, b, atol=1e-6)
    return result.keys() == expected.keys() and all(close(result[name], expected[name]) for name in expected)


def checks(rank: int, folder: Path) -> dict[str, bool]:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ids = torch.arange(ROWS)[:6].reshape(2, 3)
    whole, start = new_model(), new_model().state_dict()
    optimizer = train(whole, ids.flatten(), 4)
    model = new_model()
    shard(model, torch.device("cpu"), 2)
    parts = [local_rows(parameter) for parameter in model.parameters()]
    first = train(model, ids[rank], 2)
    halfway, state = full_state(model), full_optimizer_state(first)
    train(model, ids[rank], 2, state)
    other = new_model()
    shard(other, torch.device("cpu"), 2)
    missing = load_full_state(other, halfway)
    last = train(other, ids[rank], 2, state)
    end, moments = full_state(other), full_optimizer_state(last)["state"]
    with torch.inference_mode(), unsharded_root(other):
        seen = other.head(other.layers(other.rows(ids)))
    frozen = np.arange(ROWS) % 3 != 0
    return {
        "groups": [type(module).__name__ for module in fsdp_modules(other)] == ["FSDPModel", "FSDPLayer", "FSDPLayer"],
        "slices": [(len(part), at) for part, at in parts][:2] == [(4 - rank, 4 * rank)] * 2,
        "tied": halfway["rows.weight"] is halfway["head.weight"],
        "as one process": same(end, whole.state_dict(), False),
        "moments": all(same(moments[i], entry, False) for i, entry in optimizer.state_dict()["state"].items()),
        "stopped as not": same(end, full_state(model), True) and not missing,
        "frozen": end["rows.weight"][frozen].equal(start["rows.weight"][frozen]),
        "trained": bool((end["rows.weight"][~frozen] != start["rows.weight"][~frozen]).any()),
        "states": torch.allclose(seen, whole.head(whole.layers(whole.rows(ids))), atol=1e-5),
        "only one keeps": full_state(model, keep=False) == {} == full_optimizer_state(last, keep=False),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    child = os.fork()
    results = checks(0 if child else 1, folder)
    (folder / f"{0 if child else 1}.json").write_text(json.dumps(results))
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    print(json.dumps([json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
