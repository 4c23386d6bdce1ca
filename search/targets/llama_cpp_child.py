"""The child process in which llama.cpp runs: one JSON request on stdin, one JSON reply on stdout.

A failed assertion in ggml ends the process, so a candidate is never loaded where the search lives. Run as
`python -m search.targets.llama_cpp_child`; `search/targets/llama_cpp.py` is the caller.
"""

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from search.targets.packing import KV_VALUES_KEY

ERROR_LEVEL = 4  # ggml's GGML_LOG_LEVEL_ERROR
KV_BYTES_PER_VALUE = 2  # the cache is F16, llama.cpp's default


class Failure(Exception):
    """What the caller asked for cannot be done; the message is the reply."""


def _log_errors(level: int, text: bytes, user_data: object) -> None:
    if level == ERROR_LEVEL:
        sys.stderr.write(text.decode("utf-8", errors="replace"))
        sys.stderr.flush()


LOG_ERRORS = llama_cpp.llama_log_callback(_log_errors)  # must live as long as llama.cpp may call it


class Session:
    """A loaded model and one context for a single sequence.

    Weights are read into memory, not mapped (`LLAMA_LOAD_MODE_NONE`): a mapped file whose weights llama.cpp
    repacks for the CPU would count twice in the peak memory.
    """

    def __init__(self, path: str, n_tokens: int, n_threads: int) -> None:
        params = llama_cpp.llama_model_default_params()
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise Failure("llama.cpp could not load the file")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = n_tokens
        settings.n_threads = settings.n_threads_batch = n_threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise Failure("llama.cpp could not make a context for the model")
        self.batch = llama_cpp.llama_batch_init(n_tokens, 0, 1)
        self.position = 0

    def clear(self) -> None:
        """Forget all tokens."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
        self.position = 0

    def decode(self, tokens: Sequence[int], all_logits: bool = False) -> np.ndarray:
        """Append `tokens` and return logits (n, vocab), a view that the next call overwrites.

        Args:
            tokens: ids.
            all_logits: for every token (n = len(tokens)), or for the last only (n = 1).
        """
        batch, n = self.batch, len(tokens)
        batch.n_tokens = n
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self.position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_logits or i == n - 1
        status = llama_cpp.llama_decode(self.context, batch)
        if status:
            raise Failure(f"llama_decode returned {status}")
        self.position += n
        # Reading the logits waits for the result: without it the time of a decode reads 0.
        logits = llama_cpp.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, (n if all_logits else 1, self.n_vocab))

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of `text`, special tokens recognized."""
        encoded = text.encode()
        ids = (llama_cpp.llama_token * (len(encoded) + 1))()
        n = llama_cpp.llama_tokenize(self.vocab, encoded, len(encoded), ids, len(ids), False, True)
        return list(ids[:n])

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token."""
        buffer = ctypes.create_string_buffer(256)
        n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[: max(n, 0)]


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time prefill and decoding, and read the peak memory. See `LlamaCpp.measure` for the reply."""
    baseline = _resident_bytes("VmRSS")
    n_prefill, n_decode, n_threads = request["prefill_tokens"], request["decode_tokens"], request["n_threads"]
    start = time.perf_counter()
    session = Session(request["path"], n_prefill + n_decode, n_threads)
    load_ms = (time.perf_counter() - start) * 1e3
    # A dense net does the same work for any ids; these are spread over the vocabulary.
    ids = [(7919 * i + 1) % session.n_vocab for i in range(n_prefill + n_decode)]
    prefill: list[tuple[float, float]] = []
    decode: list[tuple[float, float]] = []
    for repeat in range(request["repeats"] + 1):
        session.clear()
        first = _timed(session, ids[:n_prefill])
        each = [_timed(session, [token]) for token in ids[n_prefill:]]
        if repeat:  # the first round warms caches and is not counted
            prefill.append(first)
            decode.extend(each)
    # Process CPU time repeats on a shared machine; with more threads it would add them up.
    clock = 0 if n_threads == 1 else 1
    first_ms, each_ms = np.array(prefill), np.array(decode)
    return {
        "ttft_ms": float(np.median(first_ms[:, clock])),
        "prefill_tokens": n_prefill,
        "ttft_wall_ms": float(np.median(first_ms[:, 1])),
        "decode_ms": float(np.percentile(each_ms[:, clock], 50)),
        "decode_p95_ms": float(np.percentile(each_ms[:, clock], 95)),
        "decode_wall_ms": float(np.percentile(each_ms[:, 1], 50)),
        "decode_wall_p95_ms": float(np.percentile(each_ms[:, 1], 95)),
        "load_ms": load_ms,
        "peak_memory_mb": (_resident_bytes("VmHWM") - baseline) / 1e6,
        "size_mb": llama_cpp.llama_model_size(session.model) / 1e6,
        "file_mb": Path(request["path"]).stat().st_size / 1e6,
        "kv_bytes_per_token": _kv_bytes(session),
    }


def _timed(session: Session, tokens: list[int]) -> tuple[float, float]:
    """Return (process CPU ms, wall ms) of one decode."""
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    session.decode(tokens)
    return (time.process_time_ns() - cpu) / 1e6, (time.perf_counter_ns() - wall) / 1e6


def _resident_bytes(field: str) -> int:
    """Return VmRSS (now) or VmHWM (peak) of this process.

    Elsewhere than on Linux both are the peak so far, from getrusage. Linux does not use that one: there it
    is inherited from the parent process.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    line = next(line for line in status.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _kv_bytes(session: Session) -> int | None:
    """Return the bytes the cache grows by with a token, None for a file that is not ours."""
    buffer = ctypes.create_string_buffer(32)
    found = llama_cpp.llama_model_meta_val_str(session.model, KV_VALUES_KEY.encode(), buffer, len(buffer))
    return int(buffer.value) * KV_BYTES_PER_VALUE if found >= 0 else None


def evaluate(request: dict[str, Any]) -> dict[str, Any]:
    """Return mean loss (nats) and accuracy of next tokens over the rows (n, T + 1) of a .npy file."""
    rows = np.load(request["rows"])
    session = Session(request["path"], rows.shape[1] - 1, request["n_threads"])
    losses, hits = [], []
    for row in rows:
        session.clear()
        logits = session.decode(row[:-1].tolist(), all_logits=True)
        highest = logits.max(-1, keepdims=True)
        log_total = np.log(np.exp(logits - highest).sum(-1, dtype=np.float64)) + highest[:, 0]
        losses.append(log_total - logits[np.arange(len(logits)), row[1:]])
        hits.append(logits.argmax(-1) == row[1:])
    return {"loss": float(np.mean(losses)), "accuracy": float(np.mean(hits))}


def logits(request: dict[str, Any]) -> dict[str, Any]:
    """Write the logits (tokens, vocab) of one row of ids to a .npy file."""
    session = Session(request["path"], len(request["tokens"]), request["n_threads"])
    np.save(request["out"], session.decode(request["tokens"], all_logits=True))
    return {}


def tokenize(request: dict[str, Any]) -> dict[str, Any]:
    """Return the ids of each text."""
    session = Session(request["path"], 1, request["n_threads"])
    return {"ids": [session.tokenize(text) for text in request["texts"]]}


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Return sampled text that continues the prompt, until a control token or `n_tokens`."""
    session = Session(request["path"], request["n_context"], request["n_threads"])
    prompt = session.tokenize(request["prompt"]) or [max(llama_cpp.llama_vocab_bos(session.vocab), 0)]
    if len(prompt) + request["n_tokens"] > request["n_context"]:
        raise Failure(f"the prompt has {len(prompt)} tokens, too many for a context of {request['n_context']}")
    rng = np.random.default_rng(request["seed"])
    text, scores = b"", session.decode(prompt)[0]
    for _ in range(request["n_tokens"]):
        # The Gumbel trick: the argmax of noisy logits is a draw from their softmax.
        noise = rng.gumbel(size=session.n_vocab) * request["temperature"]
        token = int(np.argmax(scores + noise))
        if llama_cpp.llama_vocab_is_control(session.vocab, token):
            break
        text += session.piece(token)
        scores = session.decode([token])[0]
    return {"text": text.decode("utf-8", errors="replace")}


TASKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    task.__name__: task for task in (measure, evaluate, logits, tokenize, generate)
}


def main() -> None:
    """Answer one request."""
    reply_to = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not end up in the reply
    llama_cpp.llama_log_set(LOG_ERRORS, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    request = json.load(sys.stdin)
    try:
        reply = TASKS[request["task"]](request)
    except Failure as failure:
        reply = {"error": str(failure)}
    except Exception as error:  # the caller must get a reason, whatever went wrong
        reply = {"error": repr(error)}
    os.write(reply_to, json.dumps(reply).encode())


if __name__ == "__main__":
    main()
