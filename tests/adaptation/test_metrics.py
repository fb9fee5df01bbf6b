"""Metrics of a run: a run that diverges is stopped, and metrics.jsonl stays whole."""

from __future__ import annotations

import math

import pytest

from saltlm.adaptation.metrics import Recorder
from saltlm.adaptation.training import AfterStep
from saltlm.errors import BackendError, InputError


def test_a_rising_loss_stops_the_run_and_a_high_first_loss_does_not(tmp_path):
    def losses(*values: float) -> None:
        with Recorder(tmp_path / "m", steps=99, rows=100, writes=False, progress=None) as recorder:
            for step, loss in enumerate(values, 1):
                recorder.check(loss, step, "all", None)
                recorder.step({"step": step, "phase": "all", "loss": loss}, tokens=1, size=1.0)
                recorder.write()

    losses(*[30.0] * 30)  # above the uniform loss of 4.6, but no higher than the first loss
    losses(5.0, *[9.0] * 30)
    with pytest.raises(BackendError, match=r"step 10: a mean loss of 27.50 over 10 steps, where guessing costs 4.61"):
        losses(5.0, *[30.0] * 30)


def test_an_overflow_in_fp16_has_no_gradient_norm_and_does_not_stop_the_run():
    assert AfterStep(None).gradient_norm({"grad_norm": math.inf}, 1, fp16=True) is None  # the scaler skips such a step
    assert AfterStep(None).gradient_norm({"grad_norm": 2.0}, 1, fp16=True) == 2


def test_a_full_disk_under_the_metrics_names_the_last_checkpoint(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    recorder = Recorder(tmp_path / "metrics.jsonl", steps=9, rows=100, writes=True, progress=None)
    with recorder, pytest.raises(InputError, match=r"a full disk.*the last checkpoint, step-7, is safe"):
        recorder.step({"step": 8, "phase": "all", "loss": 1.0}, tokens=1, size=1.0)
        recorder.write(last=tmp_path / "step-7")
