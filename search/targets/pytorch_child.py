"""The child process in which PyTorch runs a checkpoint folder: one JSON request, one JSON reply.

A CUDA context does not survive a failed assertion, and the peak memory must be that of one net alone. Run as
`python -m search.targets.pytorch_child`; `search/targets/pytorch.py` is the caller. The folder is data: the
class that runs it is transformers' Llama or our own, and no code in the folder is executed.
"""

import gc
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from search.targets.child import Failure, processor, resident_bytes, serve, start_of_peak
from search.targets.hf_modeling import CACHE, SubnetConfig, SubnetForCausalLM
from supernet.losses import score_tokens

CONFIG = "config.json"
CLASSES = {  # name in config.json -> configuration, model
    "LlamaForCausalLM": (LlamaConfig, LlamaForCausalLM),
    "SubnetForCausalLM": (SubnetConfig, SubnetForCausalLM),
}
SCORED_ROWS = 8  # at a time


class Session:
    """A loaded net, and the key-value cache of a single sequence.

    Args:
        path: of the folder.
        device: cuda or cpu.
        dtype: of weights, but those that bitsandbytes holds, and of the cache.
        quantize: how bitsandbytes quantizes what it loads, one of `search.targets.nf4.QUANTIZATIONS`; None: not at all.
    """

    def __init__(self, path: str, device: str, dtype: str, quantize: dict[str, Any] | None = None) -> None:
        self.device = torch.device(device)
        config = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
        name = next(iter(config.get("architectures") or []), None)
        if name not in CLASSES:
            raise Failure(f"config.json names the architecture {name}, expected one of {', '.join(CLASSES)}")
        config_class, model_class = CLASSES[name]
        dropped = {"auto_map"}
        if (config.get("quantization_config") or {}).get("quant_method") != "bitsandbytes":
            dropped.add("quantization_config")
        options: dict[str, Any] = {}
        if quantize:
            options["quantization_config"] = BitsAndBytesConfig(**quantize)
        if quantize or "quantization_config" in config.keys() - dropped:
            options["device_map"] = {"": device}
        # With class, configuration and attention given, nothing that config.json may name else is looked for.
        model, report = model_class.from_pretrained(
            path,
            config=config_class(**{k: v for k, v in config.items() if k not in dropped}),
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
            output_loading_info=True,
            **options,
        )
        keys = [key for kind in ("missing", "unexpected", "mismatched") for key in report[f"{kind}_keys"]]
        wrong = sorted(key if isinstance(key, str) else key[0] for key in keys)  # a mismatch comes with its shapes
        if wrong:
            raise Failure(f"weights and config.json do not fit: {', '.join(wrong[:5])}")
        self.model = model.eval() if options else model.eval().to(self.device)
        # Before the first call, in which bitsandbytes may pack weights another way.
        self.bytes_held = sum(p.nbytes + _scale_bytes(p) for p in model.parameters())
        self.vocab_size = int(model.config.vocab_size)
        self.cache: Any = None
        self.wait()

    def wait(self) -> None:
        """Wait until the GPU has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Forget all tokens."""
        self.cache = None

    def decode(self, tokens: Sequence[int]) -> Tensor:
        """Append `tokens` and return the logits (vocab,) after the last, on the device."""
        ids = torch.tensor([tokens], device=self.device)
        out = self.model(ids, use_cache=True, logits_to_keep=1, **{CACHE: self.cache})
        self.cache = out[CACHE]
        return out.logits[0, -1]

    def kv_bytes(self) -> int:
        """Return the bytes that the cache takes for each token in it."""
        kept = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]
        return sum(part.nbytes // part.shape[-2] for part in kept)


def _scale_bytes(parameter: Tensor) -> int:
    """Return the bytes of what bitsandbytes holds beside a parameter."""
    state, rows = getattr(parameter, "quant_state", None), getattr(parameter, "SCB", None)
    return sum(scales.nbytes for scales in (state and state.absmax, rows) if scales is not None)


def _shipped_bytes(parameter: Tensor) -> int:
    """Return the bytes of a parameter where matrices of floats ship in F16 and norms in F32."""
    if not parameter.is_floating_point():
        return parameter.nbytes
    return parameter.numel() * (4 if parameter.dim() == 1 else 2)


def _session(request: dict[str, Any]) -> Session:
    return Session(request["path"], request["device"], request["dtype"])


def loads(request: dict[str, Any]) -> dict[str, Any]:
    """Load the folder and run one token."""
    session = _session(request)
    if not bool(session.decode([0]).isfinite().all()):
        raise Failure("the logits of a token are not finite")
    return {}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time prefill and decoding, and read the peak memory. See `PyTorch.measure` for the reply."""
    on_gpu = request["device"] == "cuda"
    if on_gpu:
        torch.cuda.init()  # what CUDA takes to start is no part of loading
    baseline, start = start_of_peak(), time.perf_counter()
    session = _session(request)
    load_ms = (time.perf_counter() - start) * 1e3
    gc.collect()
    gc.freeze()  # or a collection would walk all of transformers in the middle of a token
    n_prefill, n_decode = request["prefill_tokens"], request["decode_tokens"]
    # A dense net does the same work for any ids; these are spread over the vocabulary.
    ids = [(7919 * i + 1) % session.vocab_size for i in range(n_prefill + n_decode)]
    rounds = []
    for _ in range(request["repeats"] + 1):
        session.clear()
        rounds.append([_timed(session, part) for part in (ids[:n_prefill], *([token] for token in ids[n_prefill:]))])
    times = np.array(rounds[1:])  # (repeats, 1 + n_decode, 2); the first round warms caches and loads kernels
    # Process CPU time repeats on a shared machine; of a GPU's work it would show the launches only.
    quickest = times[..., 1 if on_gpu else 0].min(0)
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident_bytes("VmHWM") - baseline
    return {
        "ttft_ms": float(quickest[0]),
        "prefill_tokens": n_prefill,
        "ttft_wall_ms": float(np.median(times[:, 0, 1])),
        "decode_ms": float(np.percentile(quickest[1:], 50)),
        "decode_p95_ms": float(np.percentile(quickest[1:], 95)),
        "decode_wall_ms": float(np.percentile(times[:, 1:, 1], 50)),
        "decode_wall_p95_ms": float(np.percentile(times[:, 1:, 1], 95)),
        "load_ms": load_ms,
        "peak_memory_mb": peak / 1e6,
        "size_mb": session.bytes_held / 1e6,
        "file_mb": sum(file.stat().st_size for file in Path(request["path"]).iterdir()) / 1e6,
        "kv_bytes_per_token": session.kv_bytes(),
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
    }


def _timed(session: Session, tokens: Sequence[int]) -> tuple[float, float]:
    """Return (process CPU ms, wall ms) until the logits of the last token are there."""
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    session.decode(tokens)
    session.wait()
    return (time.process_time_ns() - cpu) / 1e6, (time.perf_counter_ns() - wall) / 1e6


def token_scores(request: dict[str, Any]) -> dict[str, Any]:
    """Write loss (nats) and hit of each next token of the rows (n, T + 1) of a .npy file to another, (2, n, T)."""
    session = _session(request)
    rows = torch.from_numpy(np.load(request["rows"]).astype(np.int64)).to(session.device)

    def network(tokens: Tensor) -> Tensor:
        return session.model(tokens, use_cache=False).logits.float()

    losses, hits = score_tokens(network, rows, SCORED_ROWS)
    np.save(request["out"], torch.stack((losses, hits.float())).cpu().numpy())
    return {}


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    """Let bitsandbytes quantize a checkpoint of floats while it is loaded, and write it to the folder `out`.

    The reply has `bytes`: of the weights with their scales; other matrices as they ship, in F16, and norms in F32.
    """
    path, out = Path(request["path"]), Path(request["out"])
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise Failure("it is quantized already: bitsandbytes quantizes a checkpoint of floats")
    session = Session(request["path"], request["device"], request["dtype"], request["how"])
    session.model.save_pretrained(out)
    # The names of our own classes, and the tokenizer, are lost on the way.
    shutil.copytree(path, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    config["quantization_config"] = session.model.config.quantization_config.to_dict()
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return {"bytes": sum(_shipped_bytes(p) + _scale_bytes(p) for p in session.model.parameters())}


def generate(request: dict[str, Any]) -> dict[str, Any]:
    """Return sampled text that continues the prompt, until the end-of-text token or `n_tokens`."""
    session = _session(request)
    tokenizer = Tokenizer.from_file(str(Path(request["path"]) / "tokenizer.json"))
    config = json.loads((Path(request["path"]) / CONFIG).read_text(encoding="utf-8"))
    end = config.get("eos_token_id")
    ends = end if isinstance(end, list) else [end]
    prompt = tokenizer.encode(request["prompt"]).ids or [config.get("bos_token_id") or 0]
    # The same noise as llama.cpp's child draws, so that targets write the same text where logits agree.
    rng = np.random.default_rng(request["seed"])
    written: list[int] = []
    tokens = prompt
    for _ in range(request["n_tokens"]):
        scores = session.decode(tokens).float().cpu().numpy()
        # The Gumbel trick: the argmax of noisy logits is a draw from their softmax.
        token = int(np.argmax(scores + rng.gumbel(size=len(scores)) * request["temperature"]))
        if token in ends:
            break
        written.append(token)
        tokens = [token]
    before = tokenizer.decode(prompt)  # a decoder may treat the first token of a text in its own way
    return {"text": tokenizer.decode([*prompt, *written])[len(before) :]}


TASKS = (loads, measure, token_scores, quantize, generate)


def main() -> None:
    """Answer one request."""
    logging.set_verbosity_error()  # what it prints would end up in reasons
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    with torch.inference_mode():
        serve(*TASKS)


if __name__ == "__main__":
    main()
