"""FSDP2: each process holds a shard of every parameter, of its gradient and of its optimizer state.

Accelerate's FSDP2 plugin is not used, for two reasons. On CPUs accelerate ignores it silently (AcceleratorState looks for a
plugin only where processes run on accelerators, so they would train with DDP). On GPUs it puts an untied embedding and the head
into different groups. Here each decoder layer is a group, and the root group holds all other parameters: during the root's
forward embeddings and head are whole, and the chunked loss runs as on one device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch

from ..errors import input_error
from ..files.open_file import check_file
from .optimizer import vocabulary_parameters

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(model: Any, device: torch.device, count: int) -> None:
    """Shard a causal LM over all processes, in place, and move the shards to the device.

    Args:
        model: a transformers causal LM with the same weights in every process.
        device: device of this process.
        count: number of processes.

    Raises:
        InputError: a parameter cannot be sharded.
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
            "sharding",
            f"a model that FSDP2 cannot take ({error})",
            "a model whose parameters can be cut by their rows",
            "leave --sharding out",
        ) from error
    # The first unshard() allocates the tensors that all later ones fill. If an evaluation called it first, they would be
    # inference tensors, and autograd refuses those.
    for module in fsdp_modules(model):
        module.unshard()
        module.reshard()


def decoder_layers(model: Any) -> list[Any]:
    """The decoder layers: modules of the classes that a transformers model lists in ``_no_split_modules``."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def fsdp_modules(model: Any) -> list[Any]:
    """The modules whose parameters FSDP2 gathers together, the root first; empty if the model is not sharded."""
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextlib.contextmanager
def unsharded_root(model: Any) -> Iterator[None]:
    """Keep embeddings and head whole inside the ``with`` block, so that the body can be called without the model.

    All processes must enter the block together.
    """
    root = fsdp_modules(model)[:1]
    for module in root:
        module.unshard()
    try:
        yield
    finally:
        for module in root:
            module.reshard()


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor is distributed over several processes."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_rows(parameter: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The rows of a parameter that this process holds.

    Args:
        parameter: [R, ...], sharded by rows or whole.

    Returns:
        The rows [r, ...], r <= R, which share the parameter's memory, and the number of the first of them.
    """
    if not is_sharded(parameter):
        return parameter, 0
    size = -(-parameter.shape[0] // parameter.device_mesh.size())  # FSDP2 cuts rows as torch.chunk does
    return parameter.to_local(), min(size * parameter.device_mesh.get_local_rank(), parameter.shape[0])


def full_state(model: Any, *, keep: bool = True) -> dict[str, torch.Tensor]:
    """A model's state dict with whole tensors; all processes must call this together.

    torch's ``get_model_state_dict`` is not used: it gathers a tied matrix once for each of its names, into different tensors,
    so the written file would hold the matrix twice.

    Args:
        model: a transformers causal LM.
        keep: whether this process needs the tensors; without it, the process only takes part in gathering them.

    Returns:
        Name -> tensor, on the CPU if the model is sharded, a tied matrix as one tensor under two names; empty without ``keep``.
    """
    if not fsdp_modules(model):
        return model.state_dict() if keep else {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    gathered: dict[int, torch.Tensor] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        key = id(parameters.get(name, tensor))
        if key not in gathered:
            gathered[key] = _full_tensor(tensor, keep)
        state[name] = gathered[key]
    return state if keep else {}


def load_full_state(model: Any, state: Mapping[str, torch.Tensor]) -> set[str]:
    """Load whole tensors into a model; a sharded model takes its shards of them.

    Args:
        model: a transformers causal LM, changed in place.
        state: name -> whole tensor.

    Returns:
        The names that the model has and ``state`` lacks.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    local = {name: shard_like(tensor, parameters.get(name)) for name, tensor in state.items()}
    return set(model.load_state_dict(local, strict=False).missing_keys)


def load_weights(model: Any, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a model, sharded or whole.

    Args:
        model: a transformers causal LM, changed in place.
        checkpoint: folder with the safetensors files of a model with the same architecture.

    Raises:
        InputError: the checkpoint lacks a parameter.
    """
    from safetensors.torch import load_file

    missing: set[str] | None = None
    for file in sorted(checkpoint.glob("*.safetensors")):
        check_file(file, inside=checkpoint)
        absent = load_full_state(model, load_file(file))
        missing = absent if missing is None else missing & absent
    # A tied matrix is stored under one of its names.
    tied = {id(parameter) for parameter in vocabulary_parameters(model).values()}
    named = dict(model.named_parameters(remove_duplicate=False))
    if missing is None or any(id(named.get(key)) not in tied for key in missing if key in named):
        raise input_error(f"checkpoint {checkpoint}", "weights missing", "all of them", "remove it and resume again")


def full_optimizer_state(optimizer: torch.optim.Optimizer, *, keep: bool = True) -> dict[str, Any]:
    """An optimizer's state dict with whole tensors; all processes must call this together.

    Args:
        optimizer: its parameters may be sharded.
        keep: whether this process needs the tensors; without it, the result is empty.
    """
    state = optimizer.state_dict()
    full = {
        number: {name: _full_tensor(value, keep) if torch.is_tensor(value) else value for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    return {**state, "state": full} if keep else {}


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state dict with whole tensors into an optimizer; sharded parameters take their shards of it.

    The tensors are copied: a view would keep the whole tensor in memory, and each step would change the given tensors.

    Args:
        optimizer: changed in place.
        state: from :func:`full_optimizer_state`.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    by_number = dict(zip(numbers, parameters, strict=True))

    def local(value: Any, parameter: torch.Tensor) -> Any:
        if not torch.is_tensor(value):
            return value
        return shard_like(value, parameter if value.dim() else None).clone()

    local_state = {
        number: {name: local(value, by_number[number]) for name, value in entry.items()}
        for number, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": local_state})


def shard_like(tensor: torch.Tensor, parameter: torch.Tensor | None) -> torch.Tensor:
    """Shard a whole tensor as a parameter is sharded. No data is sent, because every process has the whole tensor.

    Args:
        tensor: the whole tensor, the same in every process.
        parameter: a sharded parameter of the same shape; ``None`` or a whole parameter leaves the tensor as it is.
    """
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)


def _full_tensor(tensor: torch.Tensor, keep: bool) -> torch.Tensor:
    full = tensor.full_tensor() if is_sharded(tensor) else tensor
    return full.detach().cpu() if keep else full.new_empty(0)
