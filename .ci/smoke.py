"""Smoke test of an installed wheel: the operators are compiled, and a tiny transfer loads in stock transformers."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast

import saltlm

TEXT = ["the cat sat on the mat and the dog slept", "der hund schläft und die katze sitzt auf der matte", "pöytä ja tuoli"]


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
        vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
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


def main() -> None:
    """Run the smoke test; any failure raises."""
    torch.manual_seed(0)
    status = saltlm.status()
    print(json.dumps(status, default=str, indent=1))
    assert saltlm.operators.ops.backend("cpu").name == "compiled", "the wheel's compiled CPU operators did not load"
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        save_source(root / "source")
        words = save_target(root / "target")
        lines = [f"{word} {' '.join(f'{x:.4f}' for x in torch.randn(8).tolist())}" for word in sorted(words)]
        (root / "v.vec").write_text(f"{len(lines)} 8\n" + "\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "saltlm", "transfer", "--source", str(root / "source"), "--target"]
        command += [str(root / "target"), "--auxiliary", str(root / "v.vec"), "--out", str(root / "out"), "--json"]
        summary = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(summary["counts"])
        assert summary["counts"]["solved"] > 0 and summary["counts"]["copied"] > 0
        tokenizer = AutoTokenizer.from_pretrained(root / "out")
        model = AutoModelForCausalLM.from_pretrained(root / "out")
        batch = tokenizer("die katze und pöytä", return_tensors="pt")
        assert model(**batch).logits.isfinite().all()
        assert model.generate(**batch, max_new_tokens=4, do_sample=False).shape[0] == 1
    print(f"smoke test passed: Python {sys.version.split()[0]}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
