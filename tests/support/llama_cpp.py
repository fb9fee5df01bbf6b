"""llama.cpp itself, by the server in the package xllamacpp: ids of a text, probabilities, greedy continuations."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any


class LlamaCpp:
    """llama.cpp's server with one GGUF file, on one thread of the CPU and an address of this machine alone."""

    def __init__(self, path: Path) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = 256
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
        parameters.warmup = False
        parameters.verbosity = -1
        # Keys and values in float32: the default rounds them to float16.
        parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._server = xllamacpp.Server(parameters)

    def _ask(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        address = f"{self._server.listening_address}{path}"
        asked = urllib.request.Request(address, json.dumps(request).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text; with ``special`` those that are put around it, too. Special tokens that it spells are found."""
        return self._ask("/tokenize", {"content": text, "add_special": special, "parse_special": True})["tokens"]

    def continuation(self, ids: list[int], count: int) -> list[int]:
        """The next ids by greedy decoding, at most ``count``."""
        request = {"prompt": ids, "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self._ask("/completion", request)["tokens"]

    def log_probabilities(self, ids: list[int], count: int) -> dict[int, float]:
        """The ``count`` most likely next ids and the logarithms of their probabilities.

        Empty where the most likely token is part of a character: the server then keeps text and probabilities back.
        """
        request = {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": False}
        answer = self._ask("/completion", request).get("completion_probabilities")
        return {entry["id"]: entry["logprob"] for entry in answer[0]["top_logprobs"]} if answer else {}
