"""The processes of a run: the rank of this one, their number, device and precision, and the signals that stop them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol

import torch
from transformers import TrainingArguments

from ..errors import input_error
from .config import AdaptConfig

# Among several processes, a signal within this time after the first counts as the same request.
REPEAT_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among the processes of the run.

    Attributes:
        number: rank of this process, in [0, count).
        count: number of processes.
        device: device of this process.
    """

    number: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.number == 0

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            torch.distributed.barrier()


def find_processes(config: AdaptConfig) -> Processes:
    """Join the processes that torchrun or accelerate launch has started; without them this process is the only one.

    Raises:
        InputError: the sharding or the precision is not possible with these processes or this device.
    """
    options = training_arguments(config)
    check_sharding(config, options)
    arguments = TrainingArguments(output_dir="unused", report_to="none", **options)
    return Processes(arguments.process_index, arguments.world_size, arguments.device)


def training_arguments(config: AdaptConfig) -> dict[str, Any]:
    """Device and precision as keyword arguments of ``TrainingArguments``.

    Raises:
        InputError: precision fp16 on a CPU.
    """
    cuda = config.device != "cpu" and torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not cuda:  # accelerate scales gradients on GPUs only
        raise input_error("precision", "fp16 on a CPU", "fp32 or bf16 there", "choose one of them")
    options: dict[str, Any] = {
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "dataloader_pin_memory": cuda,
    }
    if not cuda:
        options["use_cpu"] = True
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            options["ddp_backend"] = "gloo"
    return options


def use_one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Limit a process to one device.

    Where a process sees several GPUs, Trainer would wrap the model in torch's DataParallel: its copies of the model lack the
    forward of :class:`~saltlm.adaptation.chunked_loss.ChunkedLM`, and its batches are larger by the number of GPUs.

    Args:
        arguments: changed in place.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def check_sharding(config: AdaptConfig, arguments: dict[str, Any]) -> None:
    """Refuse options that sharding does not allow.

    Args:
        config: the options.
        arguments: from :func:`training_arguments`.

    Raises:
        InputError: accelerate's configuration shards by itself, there is one process, or the options ask for fp16 or
            compilation.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes"):
        raise input_error(
            "ACCELERATE_USE_FSDP",
            "sharding by accelerate's own configuration",
            "processes without it",
            "turn FSDP off in that configuration and add --sharding fsdp2",
        )
    if config.sharding == "none":
        return
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise input_error(
            "sharding",
            f"{config.sharding} in one process",
            "two processes or more",
            "start it by torchrun --nproc-per-node N -m saltlm adapt ..., or leave --sharding out",
        )
    if arguments["fp16"]:
        # torch's GradScaler looks for overflows in the shards of each process by itself, so one process could skip a step that
        # the others take.
        raise input_error("precision", f"fp16 with sharding {config.sharding}", "bf16 or fp32", "choose one of them")
    if config.compile:
        # torch.compile breaks the graph at the hooks that gather a layer, so the body would be compiled layer by layer.
        raise input_error(
            "compile", f"compilation with sharding {config.sharding}", "one of them", "leave --compile out"
        )


class Stoppable(Protocol):
    """A run that can be asked to stop."""

    stop: bool


@contextlib.contextmanager
def stop_on_signal(run: Stoppable) -> Iterator[None]:
    """Set ``run.stop`` on the first SIGTERM or SIGINT inside the ``with`` block; raise KeyboardInterrupt on a second one.

    Among several processes a second signal counts only after :data:`REPEAT_SECONDS`, because on Ctrl-C a process gets one
    signal from the terminal and one from torchrun. Outside the main thread signals are not handled.

    Args:
        run: its ``stop`` asks for a checkpoint and the end of the run after the current step.

    Raises:
        KeyboardInterrupt: a second signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    single = int(os.environ.get("WORLD_SIZE", "1")) == 1
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if not run.stop:
            run.stop, first = True, now
        elif single or now - first > REPEAT_SECONDS:
            raise KeyboardInterrupt

    handlers = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
