"""The process in which llama.cpp runs: one JSON request on stdin, one JSON reply on stdout.

A failed assertion in ggml ends the process, so a candidate is never loaded where the search lives;
`search/targets/llama_cpp.py` is the caller. The file needs nothing of ours: a copy of it, `measure.py` beside a
`probes.json`, measures the probes of that folder on any device with llama-cpp-python and numpy
(`search/targets/remote.py` makes such folders).
"""

import ctypes
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import llama_cpp
    import numpy as np
except ImportError as missing:
    raise SystemExit(f"error: {missing}; pip install llama-cpp-python numpy") from None

ERROR_LEVEL = 4  # ggml's GGML_LOG_LEVEL_ERROR
KV_VALUES_KEY = "supernet.kv_values_per_token"  # as search/targets/packing.py has it
KV_CACHES = {"F16": (llama_cpp.GGML_TYPE_F16, 2.0), "Q8_0": (llama_cpp.GGML_TYPE_Q8_0, 34 / 32)}
PROBES, HARDWARE = "probes.json", "hardware.json"
ANSWER = "answer"  # the argument that makes a copy answer a request


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

    def __init__(self, request: dict[str, Any], n_tokens: int) -> None:
        params = llama_cpp.llama_model_default_params()
        params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(request["path"].encode(), params)
        if not self.model:
            raise Failure("llama.cpp could not load the file")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab: int = llama_cpp.llama_vocab_n_tokens(self.vocab)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = n_tokens
        settings.n_threads = settings.n_threads_batch = request["n_threads"]
        cache_type, self.kv_bytes_per_value = KV_CACHES[request["kv_cache"]]
        settings.type_k = settings.type_v = cache_type
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise Failure(f"llama.cpp could not make a context with a key-value cache in {request['kv_cache']}")
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
        self.prepare(tokens, all_logits)
        return np.ctypeslib.as_array(self.run(), (len(tokens) if all_logits else 1, self.n_vocab))

    def prepare(self, tokens: Sequence[int], all_logits: bool = False) -> None:
        """Fill the batch that `run` appends."""
        batch, n = self.batch, len(tokens)
        batch.n_tokens = n
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self.position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_logits or i == n - 1
        self.position += n

    def run(self) -> Any:
        """Run the batch and return the pointer to its logits, once they are there."""
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status:
            raise Failure(f"llama_decode returned {status}")
        # Reading the logits waits for the result: without it the time of a decode reads 0.
        return llama_cpp.llama_get_logits(self.context)

    def tokenize(self, text: str, add: bool = True, parse: bool = True) -> list[int]:
        """Return the ids of `text`; `add` places what begins and ends a text, `parse` recognizes special tokens."""
        encoded = text.encode()
        ids = (llama_cpp.llama_token * (len(encoded) + 8))()  # a space before the text, and what is placed
        n = llama_cpp.llama_tokenize(self.vocab, encoded, len(encoded), ids, len(ids), add, parse)
        return list(ids[:n])

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token."""
        buffer = ctypes.create_string_buffer(256)
        n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, True)
        return buffer.raw[: max(n, 0)]


def loads(request: dict[str, Any]) -> dict[str, Any]:
    """Load the file and run one token."""
    if not np.isfinite(Session(request, 1).decode([0])).all():
        raise Failure("the logits of a token are not finite")
    return {}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time prefill and decoding, and read the peak memory. See `LlamaCpp.measure` for the reply."""
    baseline = _resident_bytes("VmRSS")
    n_prefill, n_decode = request["prefill_tokens"], request["decode_tokens"]
    start = time.perf_counter()
    session = Session(request, n_prefill + n_decode)
    load_ms = (time.perf_counter() - start) * 1e3
    # A dense net does the same work for any ids; these are spread over the vocabulary.
    ids = [(7919 * i + 1) % session.n_vocab for i in range(n_prefill + n_decode)]
    rounds = []
    for _ in range(request["repeats"] + 1):
        session.clear()
        rounds.append([_timed(session, part) for part in (ids[:n_prefill], *([i] for i in ids[n_prefill:]))])
    times = np.array(rounds[1:])  # (repeats, 1 + n_decode, 2); the first round warms caches
    # Process CPU time repeats on a shared machine; with more threads it would add them up.
    quickest = times[..., 0 if request["n_threads"] == 1 else 1].min(0)
    return {
        "ttft_ms": float(quickest[0]),
        "prefill_tokens": n_prefill,
        "ttft_wall_ms": float(np.median(times[:, 0, 1])),
        "decode_ms": float(np.percentile(quickest[1:], 50)),
        "decode_p95_ms": float(np.percentile(quickest[1:], 95)),
        "decode_wall_ms": float(np.percentile(times[:, 1:, 1], 50)),
        "decode_wall_p95_ms": float(np.percentile(times[:, 1:, 1], 95)),
        "load_ms": load_ms,
        "peak_memory_mb": (_resident_bytes("VmHWM") - baseline) / 1e6,
        "size_mb": llama_cpp.llama_model_size(session.model) / 1e6,
        "file_mb": Path(request["path"]).stat().st_size / 1e6,
        "kv_bytes_per_token": _kv_bytes(session),
        "device": _device(),
    }


def _timed(session: Session, tokens: list[int]) -> tuple[float, float]:
    """Return (process CPU ms, wall ms) of one decode."""
    session.prepare(tokens)
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    session.run()
    return (time.process_time_ns() - cpu) / 1e6, (time.perf_counter_ns() - wall) / 1e6


def _device() -> str:
    """Return the processor's name."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return named[0] if named else platform.processor() or platform.machine()


def _resident_bytes(field: str) -> int:
    """Return VmRSS (now) or VmHWM (peak) of this process; elsewhere than on Linux both are the peak so far."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        # Bytes on macOS. On Linux it is not used: there it is inherited from the parent process.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def _kv_bytes(session: Session) -> float | None:
    """Return the bytes the cache grows by with a token, None for a file that is not ours."""
    buffer = ctypes.create_string_buffer(32)
    found = llama_cpp.llama_model_meta_val_str(session.model, KV_VALUES_KEY.encode(), buffer, len(buffer))
    return int(buffer.value) * session.kv_bytes_per_value if found >= 0 else None


def token_scores(request: dict[str, Any]) -> dict[str, Any]:
    """Write loss (nats) and hit of each next token of the rows (n, T + 1) of a .npy file to another, (2, n, T)."""
    rows = np.load(request["rows"])
    session = Session(request, rows.shape[1] - 1)
    scores = []
    for row in rows:
        session.clear()
        logits = session.decode(row[:-1].tolist(), all_logits=True)
        highest = logits.max(-1, keepdims=True)
        log_total = np.log(np.exp(logits - highest).sum(-1, dtype=np.float64)) + highest[:, 0]
        scores.append((log_total - logits[np.arange(len(logits)), row[1:]], logits.argmax(-1) == row[1:]))
    np.save(request["out"], np.array(scores).swapaxes(0, 1))
    return {}


def logits(request: dict[str, Any]) -> dict[str, Any]:
    """Write the logits (tokens, vocab) of one row of ids to a .npy file."""
    session = Session(request, len(request["tokens"]))
    np.save(request["out"], session.decode(request["tokens"], all_logits=True))
    return {}


def tokenize(request: dict[str, Any]) -> dict[str, Any]:
    """Return the ids of each text."""
    session = Session(request, 1)
    return {"ids": [session.tokenize(text, request["add"], request["parse"]) for text in request["texts"]]}


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Return sampled text that continues the prompt, until a control token or `n_tokens`."""
    session = Session(request, request["n_context"])
    prompt = session.tokenize(request["prompt"]) or [max(llama_cpp.llama_vocab_bos(session.vocab), 0)]
    if len(prompt) + request["n_tokens"] > request["n_context"]:
        raise Failure(f"the prompt has {len(prompt)} tokens, too many for a context of {request['n_context']}")
    rng = np.random.default_rng(request["seed"])
    text, scores = b"", session.decode(prompt)[0]
    for _ in range(request["n_tokens"]):
        # The Gumbel trick: the argmax of noisy logits is a draw from their softmax.
        token = int(np.argmax(scores + rng.gumbel(size=session.n_vocab) * request["temperature"]))
        if llama_cpp.llama_vocab_is_control(session.vocab, token):
            break
        text += session.piece(token)
        scores = session.decode([token])[0]
    return {"text": text.decode("utf-8", errors="replace")}


TASKS = {task.__name__: task for task in (loads, measure, token_scores, logits, tokenize, generate)}


def answer() -> None:
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


def measure_folder(folder: Path) -> None:
    """Measure the probes of a folder and write its hardware.json after each; those that are there already count."""
    plan, result = json.loads((folder / PROBES).read_text()), folder / HARDWARE
    content = {"version": plan["version"], "targets": {plan["target"]: {**plan["about"], "device": "", "probes": []}}}
    if result.exists():
        content = json.loads(result.read_text())
    entry = next(iter(content["targets"].values()))
    done, probes, about = entry["probes"], plan["probes"], {key: entry.get(key) for key in plan["about"]}
    if about != plan["about"] or [p["file"] for p in done] != [p["file"] for p in probes[: len(done)]]:
        raise SystemExit(f"error: {result} holds other probes; move it away to measure these")
    for i, probe in enumerate(probes[len(done) :], len(done) + 1):
        reply = _ask({"task": "measure", "path": str(folder / probe["file"]), **plan["request"]}, plan)
        reason, entry["device"] = reply.get("error"), reply.pop("device", entry["device"])
        done.append({**probe, "measured": None if reason else reply, "reason": reason})
        result.with_suffix(".tmp").write_text(json.dumps(content, indent=1) + "\n")
        result.with_suffix(".tmp").replace(result)
        print(f"{i} of {len(probes)}: {reason or str(round(reply['decode_ms'], 3)) + ' ms a token'}", flush=True)
    print(f"all probes are measured: {result}")


def _ask(request: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Return the reply of a new process, or {"error": reason}."""
    command, environment = [sys.executable, __file__, ANSWER], {**os.environ, **plan["environment"]}
    text, limit = json.dumps(request).encode(), plan["timeout_s"]
    try:
        child = subprocess.run(command, input=text, capture_output=True, timeout=limit, env=environment)
        reply: dict[str, Any] = json.loads(child.stdout)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {limit} s"}
    except ValueError:
        return {"error": f"ended with code {child.returncode}: {child.stderr.decode(errors='replace')[-200:]}"}
    return reply


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    if (here / PROBES).exists() and sys.argv[1:] != [ANSWER]:
        measure_folder(here)
    else:
        answer()
