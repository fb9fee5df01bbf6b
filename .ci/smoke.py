"""Smoke test of an installed wheel with the ``adapt`` extra: every command answers, and a tiny model passes through them.

The operators are compiled, a transfer loads in stock transformers, and what was transferred is evaluated and trained.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TEXT = [
    "the cat sat on the mat and the dog slept",
    "der hund schläft und die katze sitzt auf der matte",
    "pöytä ja tuoli",
]


def save_source(folder: Path) -> None:
    """Save a tiny Llama with a byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=320, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


def save_target(folder: Path) -> list[str]:
    """Save a tiny BERT with a Unigram tokenizer; returns its words."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TEXT, trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>")
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    config = BertConfig(
        vocab_size=len(fast), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    BertModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return [word for word in {token.replace("▁", "").strip() for token in fast.get_vocab()} - set(special) if word]


def saltlm_command(*arguments: str, flags: tuple[str, ...] = ()) -> str:
    """Run ``python FLAGS -m saltlm ARGUMENTS``; returns its standard output, and raises if it fails."""
    command = [sys.executable, *flags, "-m", "saltlm", *arguments]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def check_help() -> None:
    """Every command has a help text, and the installed script runs."""
    script = Path(sys.executable).with_name("saltlm")
    overview = subprocess.run([script, "--help"], check=True, text=True, stdout=subprocess.PIPE).stdout
    commands = re.findall(r"^    ([a-z]+)  +\w", overview, re.MULTILINE)
    assert {"transfer", "evaluate", "adapt", "status"} <= set(commands), f"no list of commands in:\n{overview}"
    for command in commands:
        assert "usage: saltlm" in saltlm_command(command, "--help"), command
    print(f"help: {' '.join(commands)}")


def check_status() -> None:
    """The compiled operators run; the command works without assertions and docstrings, too."""
    for flags in ((), ("-OO",)):
        status = json.loads(saltlm_command("status", "--json", flags=flags))
        assert status["operators"]["cpu"]["name"] == "compiled", f"the wheel's CPU operators did not load: {status}"
    print(f"status: {json.dumps(status)}")


def check_transfer(root: Path) -> Path:
    """A tiny transfer, loaded by transformers; returns its folder."""
    save_source(root / "source")
    words = save_target(root / "target")
    lines = [f"{word} {' '.join(f'{x:.4f}' for x in torch.randn(8).tolist())}" for word in sorted(words)]
    vectors, out = root / "v.vec", root / "out"
    vectors.write_text(f"{len(lines)} 8\n" + "\n".join(lines) + "\n", encoding="utf-8")
    options = {"--source": root / "source", "--target": root / "target", "--auxiliary": vectors, "--out": out}
    words = [str(word) for option in options.items() for word in option]
    summary = json.loads(saltlm_command("transfer", *words, "--json"))
    print(f"transfer: {summary['counts']}")
    assert summary["counts"]["solved"] > 0 and summary["counts"]["copied"] > 0
    saltlm_command("inspect", str(out), "--html", str(root / "rows.html"))
    assert (root / "rows.html").read_text(encoding="utf-8").startswith("<!doctype html>"), (
        "the page is not in the wheel"
    )
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    batch = tokenizer("die katze und pöytä", return_tensors="pt")
    assert model(**batch).logits.isfinite().all()
    assert model.generate(**batch, max_new_tokens=4, do_sample=False).shape[0] == 1
    return out


def check_adapt(root: Path, model: Path) -> None:
    """Two phases of a few steps lower the bits per byte of the text they train on."""
    text = root / "text.txt"
    text.write_text("\n\n".join(TEXT[i % 3] for i in range(60)) + "\n", encoding="utf-8")
    before = json.loads(saltlm_command("evaluate", str(model), "--text", str(text), "--json"))
    phases = ("--phases", "rows:4,all:4", "--seq-length", "32", "--heldout", "0")
    adapted = root / "adapted"
    done = json.loads(
        saltlm_command("adapt", str(model), "--text", str(text), "--out", str(adapted), *phases, "--json")
    )
    assert done["steps"] == 8, done
    after = json.loads(saltlm_command("evaluate", str(adapted), "--text", str(text), "--json"))
    print(f"adapt: bits per byte {before['bits_per_byte']:.3f} -> {after['bits_per_byte']:.3f}")
    assert after["bits_per_byte"] < before["bits_per_byte"]


def main() -> None:
    """Run the smoke test; any failure raises."""
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    check_help()
    check_status()
    with tempfile.TemporaryDirectory() as name:
        check_adapt(Path(name), check_transfer(Path(name)))
    print(
        f"smoke test passed: Python {sys.version.split()[0]}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
