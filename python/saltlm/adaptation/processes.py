"""The processes of a run: which of them this one is, on which device and in which precision, and how they are told to end."""

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

# Signals closer together than this are one wish, among several processes.
ECHO_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run: its number, how many there are, and its device."""

    number: int
    count: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.number == 0

    def barrier(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            torch.distributed.barrier()


def find_processes(config: AdaptConfig) -> Processes:
    """Join the processes that torchrun or accelerate launch has started, if any.

    Raises:
        InputError: sharding or precision do not go with these processes or this device.
    """
    precision_and_device = training_arguments(config)
    check_sharding(config, precision_and_device)
    arguments = TrainingArguments(output_dir="unused", report_to="none", **precision_and_device)
    return Processes(arguments.process_index, arguments.world_size, arguments.device)


def training_arguments(config: AdaptConfig) -> dict[str, Any]:
    """Device and precision for :func:`~saltlm.adaptation.training.train_phase`."""
    cuda = config.device != "cpu" and torch.cuda.is_available()
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not cuda:  # Accelerate scales gradients on accelerators alone
        raise input_error("precision", "fp16 on a CPU", "fp32 or bf16 there", "choose one of them")
    found: dict[str, Any] = {"bf16": precision == "bf16", "fp16": precision == "fp16", "dataloader_pin_memory": cuda}
    if not cuda:
        found["use_cpu"] = True
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            found["ddp_backend"] = "gloo"
    return found


def one_device(arguments: TrainingArguments) -> TrainingArguments:
    """Keep a process to its one device.

    Where it sees several GPUs, Trainer would spread it over all of them by torch's DataParallel, whose copies of the model
    know nothing of its own forward, and whose batches are so many times larger.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def check_sharding(config: AdaptConfig, arguments: dict[str, Any]) -> None:
    """Refuse sharding that these processes, or what :func:`training_arguments` found for them, cannot do."""
    outside = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true", "yes")
    if outside:
        raise input_error(
            "ACCELERATE_USE_FSDP", "sharding by accelerate's own configuration", "processes without it",
            "turn FSDP off in that configuration and add --sharding fsdp2",
        )  # fmt: skip
    if config.sharding == "none":
        return
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise input_error(
            "sharding", f"{config.sharding} in one process", "two processes or more",
            "start it by torchrun --nproc-per-node N -m saltlm adapt ..., or leave --sharding out",
        )  # fmt: skip
    if arguments["fp16"]:
        # torch's GradScaler looks for overflows in the slices that a process holds: one would skip a step that others take.
        raise input_error("precision", f"fp16 with sharding {config.sharding}", "bf16 or fp32", "choose one of them")
    if (
        config.compile
    ):  # torch keeps the hooks that gather a layer out of its graphs, so the body would fall apart into layers
        raise input_error(
            "compile", f"compilation with sharding {config.sharding}", "one of them", "leave --compile out"
        )


class Stoppable(Protocol):
    """Something that can be asked to stop."""

    stop: bool


@contextlib.contextmanager
def polite_signals(run: Stoppable) -> Iterator[None]:
    """The first SIGTERM or SIGINT asks for a checkpoint after the current step; a second one ends at once.

    Among several processes a second one counts after a moment only: on Ctrl-C a process gets one from the terminal and one
    from torchrun.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    first = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if not run.stop:
            run.stop, first = True, now
        elif alone or now - first > ECHO_SECONDS:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
