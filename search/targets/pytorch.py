"""PyTorch as a target: a checkpoint folder, measured and evaluated in a child process on a GPU or the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from search.targets.child import ChildRuntime, check_positive
from search.targets.huggingface import DTYPES, export
from supernet.errors import UserError
from supernet.genes import Value

if TYPE_CHECKING:
    from supernet.subnet import Decoder

CONF = "conf/target/pytorch.yaml"
DEVICES = ("auto", "cuda", "cpu")
BYTES_PER_VALUE = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


class PyTorch(ChildRuntime):
    """PyTorch, eager, with transformers' growing key-value cache; weights and cache in one float type.

    Weights are floats here, whatever formats were searched: they hold the values that the formats allow, and
    take the bytes of `dtype`. So times and memory depend on shapes only. A score `size_mb` of the search still
    counts the formats' bytes; what the net takes in PyTorch is `measure`'s `size_mb`.
    """

    module = "search.targets.pytorch_child"
    label = "PyTorch"
    environment: ClassVar[Mapping[str, str]] = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # glibc keeps what was freed. Else it depends on addresses which blocks it maps anew for each call, and a
        # prompt's time and the peak memory differ by up to 20 % from one process to the next.
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(2**32),
    }

    def __init__(
        self,
        name: str,
        device: str,
        dtype: str,
        prefill_tokens: int,
        decode_tokens: int,
        repeats: int,
        timeout_s: float,
        hardware: str | None,
    ) -> None:
        for key, value, known in (("device", device, DEVICES), ("dtype", dtype, DTYPES)):
            if value not in known:
                raise UserError(f"targets.{name}.{key} must be one of {', '.join(known)}, got {value!r} ({CONF})")
        self.name, self.device, self.dtype, self.hardware = name, device, dtype, hardware
        self.measuring = {"prefill_tokens": prefill_tokens, "decode_tokens": decode_tokens, "repeats": repeats}
        self.timeout_s = timeout_s
        check_positive(name, CONF, **self.measuring, timeout_s=timeout_s)
        # Two types are two artifacts, and neither is the folder that the target huggingface writes.
        self.file_name = f"pytorch_{dtype}"
        self.kv_bytes_per_value = BYTES_PER_VALUE[dtype]

    @property
    def settings(self) -> dict[str, Any]:
        """What a measured cost depends on; the device is the one that `auto` stands for here."""
        return {**self.request(), **self.measuring}

    def available(self) -> str | None:
        """Return None unless a GPU is asked for and PyTorch sees none; then what to do."""
        if self.device == "cuda" and not _sees_gpu():
            return (
                "device is cuda, and PyTorch sees no CUDA device: install a CUDA build of PyTorch, "
                f"or set device to auto or cpu ({CONF})"
            )
        return None

    def supports(self, architecture: Mapping[str, Value]) -> str | None:
        """Return None: weights are held as floats, and the modeling file takes any sizes."""
        return None

    def export(
        self, decoder: Decoder, tokenizer_json: str, folder: Path, files: Mapping[str, str] | None = None
    ) -> Path:
        """Write the checkpoint `folder`/pytorch_DTYPE, whole or not at all, and return its path.

        Raises:
            UserError: the tokenizer does not fit, or the path holds something else.
        """
        path = folder / self.file_name
        export(decoder, tokenizer_json, path, self.dtype, files=files)
        return path

    def loads(self, path: Path) -> str | None:
        """Return None when the folder loads and runs one token, else the reason why not.

        Raises:
            UserError: the device is missing, or there is no such folder.
        """
        return self.ask("loads", path).get("error")

    def measure(self, path: Path) -> dict[str, Any]:
        """Run the folder and return what it costs.

        Returns:
            `built` False and a `reason` where PyTorch could not load or run it. Else `built` True and
            ttft_ms: time of a prefill of `prefill_tokens` until the last logits are there, the quickest of
            `repeats`; decode_ms, decode_p95_ms: percentiles 50 and 95 over the `decode_tokens` positions after
            it, each the quickest of `repeats`: what disturbs a process only adds time;
            these three are wall time on a GPU, synchronized after each call, where a small net waits for
            launches and not for arithmetic; on the CPU process CPU time with one thread;
            ttft_wall_ms (median), decode_wall_ms, decode_wall_p95_ms (percentiles over all repeats): wall time;
            load_ms: wall time from the folder to weights on the device;
            peak_memory_mb: on a GPU the most that tensors took at once (weights, cache, activations,
            cuBLAS's workspace; not CUDA's own context, nor what the allocator keeps in reserve); on the CPU
            growth of the process's peak resident memory over the interpreter with its libraries, some 15 MB of
            which is what PyTorch sets up at its first call;
            size_mb: of the weights as PyTorch holds them, in `dtype`; file_mb: of the whole folder;
            kv_bytes_per_token: growth of the key-value cache, in `dtype`;
            device: name of the GPU or the processor.
            Times in milliseconds, 1 MB = 10⁶ bytes.

        Raises:
            UserError: the device is missing, or there is no such folder.
        """
        return self.measured(path, **self.measuring)

    def generate(self, path: Path, prompt: str, n_tokens: int, seed: int, temperature: float = 0.8) -> str:
        """Return up to `n_tokens` tokens of text that continue the prompt.

        Args:
            path: of a checkpoint folder.
            prompt: text; an empty one starts from the end-of-text token.
            n_tokens: at most; the end-of-text token ends the text before.
            seed: of the sampling; the same seed gives the same text.
            temperature: 0 takes the likeliest token each time.

        Raises:
            UserError: the device is missing, or PyTorch could not load or run the folder.
        """
        asked: dict[str, Any] = {"prompt": prompt, "n_tokens": n_tokens, "seed": seed}
        return self.need("generate", path, temperature=temperature, **asked)["text"]

    def request(self) -> dict[str, Any]:
        """Return where and in which type every task runs."""
        device = self.device if self.device != "auto" else ("cuda" if _sees_gpu() else "cpu")
        return {"device": device, "dtype": self.dtype}


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
