"""Write model folders as saltlm writes them, of several kinds, and what each gives: .ci/reload_check.py compares.

Usage: reload_write.py FOLDER. Tiny models and tokenizers of tests/support; each source lies there as transformers 5 saves it.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

import saltlm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from models_tiny import roles, save, save_bert, save_gpt2, save_llama, save_xlm_roberta
from tokenizers_tiny import SPECIALS, TEXT, byte_level_bpe, tiny

TEMPLATE = "{% for message in messages %}<|end|>{{ message['content'] }}{% endfor %}"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Class, config class, settings beside the sizes. Bases of the rotary embedding differ from the classes' defaults.
SOURCES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"rope_parameters": LLAMA3}),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}, "num_key_value_heads": 2},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "num_hidden_layers": 7,
            "sliding_window": 8,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "gpt-neox": (
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
    "stablelm": (
        "StableLmForCausalLM",
        "StableLmConfig",
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
            "num_key_value_heads": 4,
        },
    ),
    "phi": (
        "PhiForCausalLM",
        "PhiConfig",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}},
    ),
}


def save_source(folder: Path, kind: str) -> Path:
    """Save a tiny source with a byte-level tokenizer, a chat template and special tokens without a role."""
    class_name, config_name, settings = SOURCES[kind]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe().backend_tokenizer,
        additional_special_tokens=["<|begin|>"],
        **{**SPECIALS["byte_level_bpe"], "bos_token": "<|begin|>"},
    )
    tokenizer.chat_template = TEMPLATE
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        **roles(tokenizer),
    }
    config = getattr(transformers, config_name)(**{**sizes, **settings})
    return save(folder, class_name, config, tokenizer, dtype=torch.float32)


def write_all(root: Path) -> list[Path]:
    """Transfers of each source and each donor, an expanded vocabulary, and a model that was trained further."""
    donors = {
        "unigram": save_xlm_roberta(root / "inputs" / "unigram", tiny("sentencepiece_unigram")),
        "sentencepiece_bpe": save_llama(root / "inputs" / "sentencepiece_bpe", tiny("sentencepiece_bpe")),
        "wordpiece": save_bert(root / "inputs" / "wordpiece", tiny("wordpiece")),
        "byte_level": save_gpt2(root / "inputs" / "byte_level", byte_level_bpe(500)),
    }
    sources = {kind: save_source(root / "inputs" / kind, kind) for kind in SOURCES}
    pairs = [("llama", donor) for donor in donors] + [(source, "wordpiece") for source in sources if source != "llama"]
    folders = []
    for source, donor in [*pairs, ("qwen2", "unigram")]:
        for kept in (False, True):
            if kept and donor != "unigram":
                continue
            out = root / f"{source}_with_{donor}{'_added' if kept else ''}"
            template = "target" if kept else "source"  # an expanded tokenizer has the source's template anyway
            config = saltlm.TransferConfig(method="mean", keep_source_vocabulary=kept, chat_template=template)
            saltlm.transfer(sources[source], donors[donor], out=out, config=config)
            folders.append(out)
    text = root / "text.txt"
    text.write_text("\n\n".join(TEXT * 8), encoding="utf-8")
    for source in ("llama", "gemma3"):
        out = root / f"{source}_trained"
        config = saltlm.AdaptConfig(phases="all:1", seq_length=32, heldout=0, device="cpu")
        saltlm.adapt(sources[source], [text], out, config)
        folders.append(out)
    return folders


def expected(folder: Path) -> dict[str, object]:
    """Ids, texts and logits of a folder in this environment."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(TEXT[0])["input_ids"][:24]
    prompt = torch.tensor([ids])
    with torch.no_grad():
        logits = model(prompt).logits[0, -1].tolist()
    messages = [{"role": "user", "content": TEXT[2]}]
    template = tokenizer.chat_template
    return {
        "folder": folder.name,
        "ids": [tokenizer(text)["input_ids"] for text in TEXT],
        "bare": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXT],
        "decoded": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in TEXT],
        "skipped": [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in TEXT],
        "keys": sorted(tokenizer(TEXT[0])),
        "special": sorted(map(str, tokenizer.all_special_tokens)),
        "roles": {role: getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "pad", "unk", "mask")},
        "chat": tokenizer.apply_chat_template(messages, tokenize=False) if template else None,
        "prompt": ids,
        "logits": logits,
        "continuation": model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
        )[0].tolist(),
    }


def main() -> None:
    """Write the folders and expected.json."""
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    folders = write_all(root)
    (root / "texts.json").write_text(json.dumps(TEXT), encoding="utf-8")
    (root / "expected.json").write_text(json.dumps([expected(folder) for folder in folders]), encoding="utf-8")
    print(f"written: {len(folders)} folders by transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
