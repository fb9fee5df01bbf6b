"""Training speed and memory: saltlm adapt compared with a bare Trainer loop on the same model, blocks and optimizer.

Usage: python bench/adapt.py [--steps 12] [--device auto] [--out FILE.json]

1. Tokens per second: a Llama of SmolLM2-135M's shape (fewer layers on a CPU) with a vocabulary of 30,000. Both loops run
   alternately, three times; the result is the median over each loop's steps, without the first two. The losses must agree to
   1e-4 (relative). Bar: 0.95 of the bare loop's tokens per second.
2. Peak memory of the loss and its gradients over a vocabulary of 256,000, stock and chunked, each in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from harness import peak_megabytes, record

ROWS, LENGTH, BATCH = 30_000, 512, 1
MEMORY = {"tokens": 2048, "width": 256, "rows": 256_000}


def model_and_blocks(layers: int, steps: int):
    """Create a model with random weights, and packed blocks of random tokens with four documents each.

    Returns:
        The model, and ``steps * BATCH`` blocks of ``LENGTH`` tokens.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    blocks = []
    for _ in range(steps * BATCH):
        ids = torch.randint(3, ROWS, (LENGTH,))
        positions = torch.arange(LENGTH) % (LENGTH // 4)
        blocks.append({"input_ids": ids, "labels": torch.where(positions == 0, -100, ids), "position_ids": positions})
    return LlamaForCausalLM(config), blocks


def bare(model, blocks, steps: int, device: str) -> tuple[list[float], list[float]]:
    """Train with the transformers Trainer, the stock loss and AdamW.

    Returns:
        The end time of each step, and its loss.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    times, losses = [], []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                times.append(time.perf_counter())
                losses.append(logs["loss"])

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            use_cpu=device == "cpu",
            learning_rate=1e-4,
            bf16=device != "cpu",
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            weight_decay=0.0,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
        )
        trainer = Trainer(model, arguments, train_dataset=blocks, callbacks=[Watch()])
        trainer.remove_callback(PrinterCallback)
        model.config.use_cache = False
        trainer.train()
    return times, losses


def ours(model, blocks, steps: int, device: str) -> tuple[list[float], list[float]]:
    """Train with a phase of ``saltlm adapt`` over the same blocks.

    Returns:
        The end time of each step, and its loss.
    """
    from saltlm.adaptation import session, training
    from saltlm.adaptation.checkpoints import RunFolder
    from saltlm.adaptation.config import AdaptConfig
    from saltlm.adaptation.metrics import Recorder
    from saltlm.adaptation.processes import find_processes, training_arguments

    def not_used(*_):
        raise RuntimeError("the phase 'all' has neither a row mask nor a teacher")

    class GivenBlocks:
        marks, passes = (), 0

        def block(self, number):
            block = blocks[number]
            return block["input_ids"].numpy().astype("int32"), (block["position_ids"] == 0).numpy(), 2000.0

    with tempfile.TemporaryDirectory() as name:
        config = AdaptConfig(
            phases=f"all:{steps}@1e-4",
            schedule="constant",
            warmup_steps=0,
            seq_length=LENGTH,
            batch_size=BATCH,
            eval_steps=10**6,
            device=device,
            save_steps=10**6,
        )
        folder = RunFolder(Path(name), main=True, barrier=lambda: None)
        folder.save = lambda *args, **kwargs: None
        times = []
        recorder = Recorder(
            Path(name) / "metrics.jsonl",
            steps=steps,
            rows=ROWS,
            writes=True,
            progress=lambda report: times.append(time.perf_counter()),
        )
        with recorder:
            chunked = session.prepare_model(model, config, find_processes(config))
            run = training.Run(
                config=config,
                model=model,
                chunked=chunked,
                streams=[GivenBlocks()],
                shares=[1.0],
                folder=folder,
                recorder=recorder,
                evaluate=dict,
                phases=config.schedule_of_phases,
                row_mask=not_used,
                distillation=not_used,
            )
            session.train_phase(run, training_arguments(config), None)
        return times, [line["loss"] for line in recorder.lines]


def speed(steps: int, device: str, layers: int) -> dict:
    """Compare the losses of both loops, and time their steps."""
    seconds: dict[str, list[float]] = {"bare": [], "saltlm": []}
    losses = {}
    for repeat in range(3):
        for name, loop in (("bare", bare), ("saltlm", ours)):
            model, blocks = model_and_blocks(layers, steps)
            times, losses[name] = loop(model, blocks, steps, device)
            seconds[name] += [b - a for a, b in itertools.pairwise(times[1:])]
            del model
        worst = max(abs(a - b) / a for a, b in zip(losses["bare"], losses["saltlm"], strict=True))
        limit = 1e-4 if device == "cpu" else 1e-2
        if worst > limit:
            raise SystemExit(f"the losses differ by {worst:.1e} (relative), so the loops cannot be compared")
        print(f"round {repeat + 1}: losses agree to {worst:.0e}", file=sys.stderr)
    tokens = BATCH * (LENGTH - 4)
    rates = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    return {"tokens_per_second": rates, "ratio": rates["saltlm"] / rates["bare"], "layers": layers, "steps": steps}


def memory(how: str, device: str) -> dict:
    """Measure one loss with its gradients: peak bytes above the inputs, seconds, loss, and norm of the gradient."""
    tokens, width, rows = MEMORY.values()
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width, device=device, requires_grad=True)
    head = torch.nn.Linear(width, rows, bias=False, device=device)
    targets = torch.randint(0, rows, (tokens,), device=device)
    from saltlm.adaptation.chunked_loss import DEFAULT_LOGITS, chunked_cross_entropy

    before = peak(device)
    started = time.perf_counter()
    if how == "stock":
        loss = torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum")
    else:
        loss = chunked_cross_entropy(hidden, targets, head, list(head.parameters()), DEFAULT_LOGITS // rows)
    loss.backward()
    total = float(loss.detach())
    return {
        "peak": peak(device) - before,
        "seconds": time.perf_counter() - started,
        "loss": total,
        "norm": float(hidden.grad.norm()),
    }


def peak(device: str) -> int:
    """Peak memory so far, in bytes: resident memory of the process on a CPU, allocated memory on a GPU."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    return int(peak_megabytes() * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="training steps of each loop (default: 8)")
    parser.add_argument(
        "--layers",
        type=int,
        default=None,
        help="layers of the model; SmolLM2-135M has 30 (default: 6 on a CPU, 30 on a GPU)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--speed-only", action="store_true", help="do not measure the memory of the loss")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--memory", choices=("stock", "chunked"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.memory:
        print(json.dumps(memory(arguments.memory, device)))
        return
    report = {"device": torch.cuda.get_device_name() if device == "cuda" else device}
    for how in ("stock", "chunked") if not arguments.speed_only else ():
        done = subprocess.run(
            [sys.executable, __file__, "--memory", how, "--device", device], capture_output=True, text=True, check=True
        )
        report[how] = json.loads(done.stdout)
    for key in ("loss", "norm") if not arguments.speed_only else ():
        if abs(report["stock"][key] - report["chunked"][key]) > 1e-5 * abs(report["stock"][key]):
            raise SystemExit(f"{key} differs: {report['stock'][key]} and {report['chunked'][key]}")
    report["speed"] = speed(arguments.steps, device, arguments.layers or (6 if device == "cpu" else 30))
    rate, ratio = report["speed"]["tokens_per_second"], report["speed"]["ratio"]
    layers = report["speed"]["layers"]
    rows = [
        (f"tokens per second, saltlm adapt, {layers} layers", f"{rate['saltlm']:.0f}"),
        ("tokens per second, bare Trainer loop, stock loss", f"{rate['bare']:.0f}"),
        ("saltlm / bare", f"**{ratio:.3f}** (bar 0.95: {'met' if ratio >= 0.95 else 'missed'})"),
    ]
    if not arguments.speed_only:
        tokens, width, vocabulary = MEMORY.values()
        for key, unit, scale in (("peak", "peak GB", 1e9), ("seconds", "seconds", 1.0)):
            chunked, stock = (report[how][key] / scale for how in ("chunked", "stock"))
            what = f"loss and gradients, {tokens} tokens x {width} x {vocabulary:,}: {unit}, chunked; stock"
            rows.append((what, f"{chunked:.2f}; {stock:.2f} (ratio {chunked / stock:.2f})"))
    record(
        f"Adaptation, {report['device']}, {torch.get_num_threads()} threads",
        rows,
        f"python bench/adapt.py --steps {arguments.steps} --device {device}",
        ["Checked before timing: the losses of both loops are equal, and so is the chunked loss with its gradients."],
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
