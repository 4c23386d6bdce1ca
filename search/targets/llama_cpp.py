"""llama.cpp as a target: GGUF files, measured and evaluated in a child process on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from search.targets import Runtime
from supernet.errors import UserError
from supernet.genes import Value

if TYPE_CHECKING:
    from supernet.subnet import Decoder

REPOSITORY = Path(__file__).parents[2]
STDERR_TAIL = 400  # characters of llama.cpp's messages that go into ours


class LlamaCpp(Runtime):
    """llama.cpp on the CPU, key-value cache in F16.

    Every call starts its own process: an assertion that fails in ggml, a timeout or a reply that is no JSON
    becomes a reason, never a crash of the caller.
    """

    file_name = "model.gguf"

    def __init__(
        self,
        name: str,
        n_threads: int,
        prefill_tokens: int,
        decode_tokens: int,
        repeats: int,
        timeout_s: float,
    ) -> None:
        counts = {"n_threads": n_threads, "prefill_tokens": prefill_tokens, "decode_tokens": decode_tokens}
        for key, value in {**counts, "repeats": repeats, "timeout_s": timeout_s}.items():
            if not isinstance(value, int | float) or value <= 0:
                raise UserError(f"target.{key} must be a number above 0, got {value!r} (conf/target/llama_cpp.yaml)")
        self.name, self.n_threads = name, n_threads
        self.prefill_tokens, self.decode_tokens, self.repeats = prefill_tokens, decode_tokens, repeats
        self.timeout_s = timeout_s

    def available(self) -> str | None:
        """Return None when llama-cpp-python is installed (it is not imported), else what to do."""
        if importlib.util.find_spec("llama_cpp") is None:
            return "the target llama_cpp needs llama-cpp-python: pip install -e '.[gguf]'"
        return None

    def supports(self, architecture: Mapping[str, Value]) -> str | None:
        """Return None when a GGUF file can hold the architecture, else the reason."""
        from search.targets.packing import PACKERS

        for name, value in architecture.items():
            if isinstance(value, str) and value not in PACKERS:
                return f"{name} is {value}; llama.cpp is shipped {', '.join(PACKERS)}"
        return None

    def export(self, decoder: Decoder, tokenizer_json: str, folder: Path) -> Path:
        """Write `folder`/model.gguf, atomically, and return its path.

        Raises:
            UserError: a GGUF file cannot hold the decoder or its tokenizer.
        """
        from search.targets import gguf_file

        path = folder / self.file_name
        gguf_file.export(decoder, tokenizer_json, path)
        return path

    def measure(self, path: Path) -> dict[str, Any]:
        """Run the file and return what it costs.

        Returns:
            `built` False and a `reason` where llama.cpp could not load or run it. Else `built` True and
            ttft_ms: median time of a prefill of `prefill_tokens`, logits read;
            decode_ms, decode_p95_ms: percentiles 50 and 95 over `decode_tokens` × `repeats` single tokens;
            these three are process CPU time with one thread, wall time with more;
            ttft_wall_ms, decode_wall_ms, decode_wall_p95_ms: the same by wall time;
            load_ms: wall time of loading model and context;
            peak_memory_mb: growth of the process's peak resident memory over the interpreter before
            loading; the weights are read, not mapped;
            size_mb, file_mb: of all tensors, of the file;
            kv_bytes_per_token: growth of the key-value cache.
            Times in milliseconds, 1 MB = 10⁶ bytes.

        Raises:
            UserError: llama-cpp-python is not installed, or there is no such file.
        """
        settings = {k: getattr(self, k) for k in ("prefill_tokens", "decode_tokens", "repeats")}
        reply = self._ask("measure", path, **settings)
        if "error" in reply:
            return {"built": False, "reason": reply["error"]}
        return {"built": True, **reply}

    def evaluate(self, path: Path, rows: np.ndarray) -> dict[str, float]:
        """Return `loss` (mean negative log-likelihood, nats per token) and `accuracy` of next tokens.

        Args:
            path: of a GGUF file.
            rows: ids (n, T + 1); each row is a sequence of its own and has T predictions.

        Raises:
            UserError: llama.cpp is missing, or could not load or run the file.
        """
        if rows.ndim != 2 or rows.shape[1] < 2 or not len(rows):
            raise UserError(f"expected rows of token ids (n, T + 1), got shape {rows.shape}")
        with tempfile.TemporaryDirectory() as folder:
            tokens = Path(folder) / "rows.npy"
            np.save(tokens, rows)
            return self._need("evaluate", path, rows=str(tokens))

    def logits(self, path: Path, tokens: Sequence[int]) -> np.ndarray:
        """Return the float32 logits (tokens, vocab_size) of one short sequence.

        Raises:
            UserError: llama.cpp is missing, or could not load or run the file.
        """
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.npy"
            self._need("logits", path, tokens=[int(token) for token in tokens], out=str(out))
            return np.load(out)

    def tokenize(self, path: Path, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text under the tokenizer inside the file.

        Raises:
            UserError: llama.cpp is missing, or could not load the file.
        """
        return self._need("tokenize", path, texts=list(texts))["ids"]

    def generate(
        self,
        path: Path,
        prompt: str,
        n_tokens: int,
        seed: int,
        temperature: float = 0.8,
        n_context: int = 512,
    ) -> str:
        """Return up to `n_tokens` tokens of text that continue the prompt.

        Args:
            path: of a GGUF file.
            prompt: text; an empty one starts from the end-of-text token.
            n_tokens: at most; a control token ends the text before.
            seed: of the sampling; the same seed gives the same text.
            temperature: 0 takes the likeliest token each time.
            n_context: tokens that prompt and text may have together.

        Raises:
            UserError: llama.cpp is missing, could not load or run the file, or the prompt is too long.
        """
        asked: dict[str, Any] = {"prompt": prompt, "n_tokens": n_tokens, "seed": seed}
        return self._need("generate", path, temperature=temperature, n_context=n_context, **asked)["text"]

    def _need(self, task: str, path: Path, **settings: Any) -> dict[str, Any]:
        """Return the reply, or raise its error as a UserError."""
        reply = self._ask(task, path, **settings)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def _ask(self, task: str, path: Path, **settings: Any) -> dict[str, Any]:
        """Run one task in a child process; what goes wrong there comes back as {"error": reason}."""
        missing = self.available()
        if missing:
            raise UserError(missing)
        if not path.is_file():
            raise UserError(f"{path} is missing: export it first")
        request = json.dumps({"task": task, "path": str(path), "n_threads": self.n_threads, **settings})
        search_path = os.pathsep.join(p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH")) if p)
        # ggml would start a debugger to print where an assertion failed.
        environment = {**os.environ, "PYTHONPATH": search_path, "GGML_NO_BACKTRACE": "1"}
        try:
            child = subprocess.run(
                [sys.executable, "-m", "search.targets.llama_cpp_child"],
                input=request.encode(),
                capture_output=True,
                timeout=self.timeout_s,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"{path} could not be run: more than {self.timeout_s} s (target.timeout_s)"}
        return _reply(child, path)


def _reply(child: subprocess.CompletedProcess[bytes], path: Path) -> dict[str, Any]:
    """Return what the child answered, or {"error": reason} with the end of what it printed."""
    if child.returncode < 0:
        reason = f"llama.cpp was killed by {signal.Signals(-child.returncode).name}"
    elif child.returncode:
        reason = f"llama.cpp's process ended with code {child.returncode}"
    else:
        try:
            reply: dict[str, Any] = json.loads(child.stdout)
        except ValueError:
            reply = {"error": "llama.cpp's process gave no answer"}
        if "error" not in reply:
            return reply
        reason = reply["error"]
    printed = " ".join(child.stderr.decode("utf-8", errors="replace").split())[-STDERR_TAIL:]
    return {"error": f"{path} could not be run: {reason}" + (f": {printed}" if printed else "")}
