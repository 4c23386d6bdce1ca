"""llama.cpp as a target: GGUF files, measured and evaluated in a child process on the CPU."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from search.targets.child import ChildRuntime, check_positive, check_quantizer
from supernet.errors import UserError
from supernet.files import replacing
from supernet.genes import Value

if TYPE_CHECKING:
    from supernet.subnet import Decoder
    from supernet.tokenizer import Tokenization

CONF = "conf/target/llama_cpp.yaml"
QUANTIZER = "search.targets.llama_cpp_quantize"
KINDS = (  # that its quantizer makes of any net; others need an importance matrix
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q4_K_S", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_S", "Q5_K_M"),
    *("Q6_K", "Q8_0", "IQ3_S", "IQ3_M", "IQ4_XS", "IQ4_NL"),
    *("Q2_K pure", "Q3_K_S pure", "Q4_0 pure", "Q4_K_S pure", "Q5_K_S pure", "Q6_K pure"),
)
PURE = " pure"  # one format for all matrices
KV_CACHES = {"F16": 2.0, "Q8_0": 34 / 32}  # type -> bytes per value
# ggml would start a debugger to print where an assertion failed. And glibc puts large blocks at the same offset
# within a page only when it maps them: else the time of a prompt changes by up to 7 % with whatever the
# process allocated before.
ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}


class LlamaCpp(ChildRuntime):
    """llama.cpp on the CPU, with flash attention, which it needs for a quantized key-value cache.

    Every call starts its own process: an assertion that fails in ggml, a timeout or a reply that is no JSON
    becomes a reason, never a crash of the caller.
    """

    module = "search.targets.llama_cpp_child"
    label = "llama.cpp"
    environment: ClassVar[Mapping[str, str]] = ENVIRONMENT
    remedy = "compile it here, as the Makefile does"
    file_name = "model.gguf"
    quantizer_name = "llama.cpp"
    rounds_activations = True

    def __init__(
        self,
        name: str,
        n_threads: int,
        kv_cache: str,
        prefill_tokens: int,
        decode_tokens: int,
        repeats: int,
        timeout_s: float,
        hardware: str | None,
        quantizer: Sequence[str],
    ) -> None:
        counts = {"n_threads": n_threads, "prefill_tokens": prefill_tokens, "decode_tokens": decode_tokens}
        check_positive(name, CONF, **counts, repeats=repeats, timeout_s=timeout_s)
        if kv_cache not in KV_CACHES:
            known = ", ".join(KV_CACHES)
            raise UserError(f"targets.{name}.kv_cache must be one of {known}, got {kv_cache!r} ({CONF})")
        self.name, self.n_threads, self.kv_cache = name, n_threads, kv_cache
        self.prefill_tokens, self.decode_tokens, self.repeats = prefill_tokens, decode_tokens, repeats
        self.timeout_s, self.hardware = timeout_s, hardware
        self.quantizer = check_quantizer(name, CONF, quantizer, KINDS)
        self.kv_bytes_per_value = KV_CACHES[kv_cache]

    @property
    def kv_format(self) -> str:
        """The cache's type."""
        return self.kv_cache

    def available(self) -> str | None:
        """Return None when llama-cpp-python is installed (it is not imported), else what to do."""
        if importlib.util.find_spec("llama_cpp") is None:
            return "the target llama_cpp needs llama-cpp-python: pip install -e '.[gguf]'"
        return None

    def supports_tokenizer(self, tokenization: Tokenization, vocab_size: int) -> str | None:
        """Return None when llama.cpp splits text into the same ids, else the reason."""
        from search.targets.gguf_tokenizer import vocabulary

        try:
            vocabulary(tokenization, vocab_size)
        except UserError as error:
            return str(error)
        return None

    def supports(self, architecture: Mapping[str, Value]) -> str | None:
        """Return None when a GGUF file can hold the architecture, else the reason."""
        from search.targets.packing import PACKERS

        for name, value in architecture.items():
            if isinstance(value, str) and value not in PACKERS:
                return f"{name} is {value}; llama.cpp is shipped {', '.join(PACKERS)}"
        return None

    def export(
        self, decoder: Decoder, tokenizer_json: str, folder: Path, files: Mapping[str, str] | None = None
    ) -> Path:
        """Write `folder`/model.gguf, atomically, and return its path.

        Raises:
            UserError: a GGUF file cannot hold the decoder or its tokenizer.
        """
        from search.targets import gguf_file

        path = folder / self.file_name
        gguf_file.export(decoder, tokenizer_json, path, files)
        return path

    def quantized(self, path: Path, kind: str, folder: Path) -> tuple[Path, int]:
        """Let llama.cpp's own quantizer write `folder`/STEM-`kind`.gguf, atomically; return path and bytes of tensors.

        llama.cpp mixes formats by rules of its own: the tied embedding in Q6_K, in Q4_K_M and its like more bits for
        some matrices; rows that are no multiple of 256 get Q4_0, Q5_0, Q5_1 or Q8_0 in place of a K-format.

        Args:
            path: of a GGUF file in F16.
            kind: of KINDS, as llama.cpp names it; those that are pure have one format for all matrices, the embedding
                included.
            folder: to write to.

        Raises:
            UserError: llama.cpp is missing, or refuses the file; or the file is quantized already.
        """
        from search.targets.gguf_file import tensor_bytes

        out = folder / f"{path.stem}-{kind.replace(' ', '-')}.gguf"
        named, pure = kind.removesuffix(PURE), kind.endswith(PURE)
        with replacing(out) as temporary:
            self.need("quantize", path, module=QUANTIZER, kind=named, pure=pure, out=str(temporary))
        return out, tensor_bytes(out)

    def loads(self, path: Path) -> str | None:
        """Return None when llama.cpp loads the file and runs one token, else the reason why not.

        Raises:
            UserError: llama-cpp-python is not installed, or there is no such file.
        """
        return self.ask("loads", path).get("error")

    def measure(self, path: Path) -> dict[str, Any]:
        """Run the file and return what it costs.

        Returns:
            `built` False and a `reason` where llama.cpp could not load or run it. Else `built` True and
            ttft_ms: time of a prefill of `prefill_tokens`, the quickest of `repeats`;
            decode_ms, decode_p95_ms: percentiles 50 and 95 over the `decode_tokens` positions after it, each
            the quickest of `repeats`: what disturbs a process only adds time;
            these three are process CPU time with one thread, wall time with more;
            ttft_wall_ms (median), decode_wall_ms, decode_wall_p95_ms (percentiles over all repeats): wall time;
            load_ms: wall time of loading model and context;
            peak_memory_mb: growth of the process's peak resident memory over the interpreter before
            loading; the weights are read, not mapped;
            size_mb, file_mb: of all tensors, of the file;
            kv_bytes_per_token: growth of the key-value cache;
            device: name of the processor.
            Times in milliseconds, 1 MB = 10⁶ bytes.

        Raises:
            UserError: llama-cpp-python is not installed, or there is no such file.
        """
        return self.measured(path, **{k: getattr(self, k) for k in ("prefill_tokens", "decode_tokens", "repeats")})

    def logits(self, path: Path, tokens: Sequence[int]) -> np.ndarray:
        """Return the float32 logits (tokens, vocab_size) of one short sequence.

        Raises:
            UserError: llama.cpp is missing, or could not load or run the file.
        """
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits.npy"
            self.need("logits", path, tokens=[int(token) for token in tokens], out=str(out))
            return np.load(out)

    def tokenize(
        self, path: Path, texts: Sequence[str], add_special: bool = False, parse_special: bool = True
    ) -> list[list[int]]:
        """Return the ids of each text under the tokenizer inside the file.

        Args:
            path: of a GGUF file.
            texts: to encode.
            add_special: place the tokens that begin and end a text, where the tokenizer has such.
            parse_special: special tokens written within a text are those tokens, else text.

        Raises:
            UserError: llama.cpp is missing, or could not load the file.
        """
        return self.need("tokenize", path, texts=list(texts), add=add_special, parse=parse_special)["ids"]

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
        return self.need("generate", path, temperature=temperature, n_context=n_context, **asked)["text"]

    def request(self) -> dict[str, Any]:
        """Return what a context is made with."""
        return {"n_threads": self.n_threads, "kv_cache": self.kv_cache}


if __name__ == "__main__":
    from search.targets.remote import main

    main()
