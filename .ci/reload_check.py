"""Load the folders of .ci/reload_write.py in an environment without saltlm, and compare ids, texts and logits.

Usage: reload_check.py FOLDER.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
import transformers

TOLERANCE = 1e-4  # of the largest logit; classes order their sums differently from version to version


def differences(root: Path, expected: dict[str, object]) -> list[str]:
    """What differs in one folder."""
    folder = root / str(expected["folder"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    texts = json.loads((root / "texts.json").read_text(encoding="utf-8"))
    prompt = torch.tensor([expected["prompt"]])
    messages = [{"role": "user", "content": texts[2]}]
    found = {
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "bare": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
        "decoded": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in texts],
        "skipped": [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in texts],
        "keys": sorted(tokenizer(texts[0])),
        "special": sorted(map(str, tokenizer.all_special_tokens)),
        "roles": {role: getattr(tokenizer, f"{role}_token") for role in ("bos", "eos", "pad", "unk", "mask")},
        "chat": tokenizer.apply_chat_template(messages, tokenize=False) if tokenizer.chat_template else None,
        "continuation": model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False
        )[0].tolist(),
    }
    wrong = [
        f"{key}: {found[key]!r:.300}, expected {expected[key]!r:.300}" for key in found if found[key] != expected[key]
    ]
    with torch.no_grad():
        logits = model(prompt).logits[0, -1]
    goal = torch.tensor(expected["logits"])
    error = float((logits - goal).abs().max()) if logits.shape == goal.shape else float("inf")
    if not error <= TOLERANCE * float(goal.abs().max()):
        wrong.append(f"logits: off by {error:.2e}, the largest is {float(goal.abs().max()):.2e}")
    return [f"{folder.name}: {text}" for text in wrong]


def main() -> None:
    """Check every folder; exit with 1 if one differs."""
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    assert importlib.util.find_spec("saltlm") is None, "this check is for an environment without saltlm"
    folders = json.loads((root / "expected.json").read_text(encoding="utf-8"))
    wrong = []
    for expected in folders:
        try:
            wrong += differences(root, expected)
        except Exception as error:
            wrong.append(f"{expected['folder']}: {type(error).__name__}: {error}")
    print("\n".join(wrong), file=sys.stderr)
    if wrong:
        sys.exit(1)
    print(
        f"reload check passed: {len(folders)} folders, torch {torch.__version__}, transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
