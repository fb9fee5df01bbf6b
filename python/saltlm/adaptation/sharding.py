"""FSDP2: each process holds a slice of every parameter, of its gradient and of its optimizer state.

Accelerate's own FSDP2 plugin is not used. On CPUs it is left out without a word (AcceleratorState looks for a plugin only
where processes run on accelerators, so they would train with DDP instead), and on GPUs it puts an untied embedding into a
group apart from the head. Here decoder layers are groups and everything else is the root's: within the root's forward,
embeddings and head are whole, and the chunked loss runs as it does on one device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..errors import input_error


def shard(model: Any, device: torch.device, count: int) -> None:
    """Shard a causal LM over all processes, in place; its slices go to the device.

    Args:
        model: a transformers causal LM with the same weights in every process.
        device: of this process.
        count: processes.

    Raises:
        InputError: a parameter cannot be cut into slices.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (count,))
    try:
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    except ValueError as error:  # such as a parameter without a dimension
        raise input_error(
            "sharding", f"a model that FSDP2 cannot take ({error})", "a model whose parameters can be cut by their rows",
            "leave --sharding out",
        ) from error  # fmt: skip
    # The first gathering makes the tensors that all later ones fill. Were it that of an evaluation, they would be inference
    # tensors, which no gradient may need.
    for module in groups(model):
        module.unshard()
        module.reshard()


def decoder_layers(model: Any) -> list[Any]:
    """The modules that a transformers model says to keep in one piece: its decoder layers."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def groups(model: Any) -> list[Any]:
    """The modules whose parameters are gathered together, the root first; none where nothing is sharded."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def gathered_root(model: Any) -> Iterator[None]:
    """Embeddings and head whole, so that the body can be called by itself; all processes must enter it together."""
    root = groups(model)[:1]
    for module in root:
        module.unshard()
    try:
        yield
    finally:
        for module in root:
            module.reshard()


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a slice of one that lies in several processes."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def rows_here(parameter: torch.Tensor) -> tuple[torch.Tensor, int]:
    """What this process holds of a parameter, sharing its memory, and the number of the first row of it."""
    if not is_sharded(parameter):
        return parameter, 0
    size = -(-parameter.shape[0] // parameter.device_mesh.size())  # slices are cut as torch.chunk does
    return parameter.to_local(), min(size * parameter.device_mesh.get_local_rank(), parameter.shape[0])


def whole_state(model: Any, *, keep: bool = True) -> dict[str, torch.Tensor]:
    """A model's tensors by name, whole and on the CPU where it is sharded; all processes must call it together.

    Not by torch's ``get_model_state_dict``: it gathers a tied matrix once for each of its names, into tensors apart, and
    what is saved after that no longer knows that they are one.

    Args:
        model: a transformers causal LM.
        keep: whether this process needs them; without, it only helps to gather them.
    """
    if not groups(model):
        return model.state_dict() if keep else {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    gathered: dict[int, torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        own = id(parameters.get(name, tensor))
        if own not in gathered:
            gathered[own] = _whole(tensor, keep)
        state[name] = gathered[own]
    return state if keep else {}


def load_state(model: Any, state: Mapping[str, torch.Tensor]) -> set[str]:
    """Put whole tensors into a model, of which this process keeps its slices; returns the names that were missing."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = {name: slice_like(tensor, parameters.get(name)) for name, tensor in state.items()}
    return set(model.load_state_dict(own, strict=False).missing_keys)


def whole_optimizer(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """An optimizer's state as if nothing were sharded; all processes must call it together."""
    state = optimizer.state_dict()
    whole = {
        number: {name: _whole(value, keep) if torch.is_tensor(value) else value for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": whole} if keep else {}


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Put such a state into an optimizer, of which this process keeps its slices.

    They are copies: a view would keep the whole tensor in memory, and each step would change what was given.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=True))
    own = {
        number: {
            name: slice_like(value, by_number[number] if value.dim() else None).clone()
            if torch.is_tensor(value)
            else value
            for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": own})


def slice_like(whole: torch.Tensor, parameter: Any) -> torch.Tensor:
    """A whole tensor, sharded as a parameter is; nothing is sent, since every process has it all."""
    if not is_sharded(parameter):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh
    return distribute_tensor(whole.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


def _whole(tensor: torch.Tensor, keep: bool) -> torch.Tensor:
    whole = tensor.full_tensor() if is_sharded(tensor) else tensor
    return whole.detach().cpu() if keep else whole.new_empty(0)
