"""A dozen model classes of different kinds, from config to checked result; ``bench/models.py`` runs all of them."""

from __future__ import annotations

from pathlib import Path

import models_every
import pytest
from models_tiny import save_bert
from tokenizers_tiny import tiny

from saltlm import TransferConfig, transfer

# Attention of several kinds, mixtures of experts, recurrent models, learned and rotary positions, a head with scale or bias.
CLASSES = (
    "bloom",
    "cohere",
    "deepseek_v3",
    "falcon",
    "gemma2",
    "gpt_oss",
    "jamba",
    "mamba",
    "mixtral",
    "opt",
    "phi",
    "qwen3_next",
    "xlnet",
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A donor."""
    return save_bert(tmp_path_factory.mktemp("donor"), tiny("sentencepiece_unigram"))


@pytest.mark.filterwarnings("ignore")  # classes warn of slow paths and of kernels that are not installed
@pytest.mark.parametrize("model_type", CLASSES)
def test_a_result_of_each_class_computes_what_its_source_computes(target, tmp_path, model_type: str) -> None:
    source = models_every.save(tmp_path / "source", model_type, tiny("byte_level_bpe"))
    done = transfer(source, target, out=tmp_path / "out", config=TransferConfig(heldout=0.0))
    report = done.summary["reload_check"]
    assert report["checked"] == "full" and report["reason"] is None
    assert report["difference"] <= report["tolerance"] <= 1e-4
