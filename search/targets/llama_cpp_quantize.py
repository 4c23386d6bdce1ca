"""The process in which llama.cpp quantizes a GGUF file by itself: the baseline of all formats that we train.

One JSON request on stdin, one JSON reply on stdout; `LlamaCpp.quantized` is the caller.
"""

import ctypes
from typing import Any

import gguf
import llama_cpp

from search.targets.child import Failure, serve

ERROR_LEVEL = 4  # ggml's GGML_LOG_LEVEL_ERROR
FLOATS = ("F32", "F16", "BF16")
FILE_TYPE = "LLAMA_FTYPE_MOSTLY_"


def quantize(request: dict[str, Any]) -> dict[str, Any]:
    """Write the file `out`. See `LlamaCpp.quantized` for the settings."""
    kind = request["kind"]
    for tensor in gguf.GGUFReader(request["path"]).tensors:
        # Zero stand-ins have a format already, and stay zero in any other.
        if tensor.tensor_type.name not in FLOATS and gguf.dequantize(tensor.data, tensor.tensor_type).any():
            raise Failure(f"{tensor.name} is in {tensor.tensor_type.name}: only a file in F16 is quantized")
    errors = ["no reason given"]

    def keep_errors(level: int, text: bytes, user_data: object) -> None:
        if level == ERROR_LEVEL:
            errors.append(text.decode("utf-8", errors="replace").strip())

    log = llama_cpp.llama_log_callback(keep_errors)  # must live as long as llama.cpp may call it
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure = getattr(llama_cpp, FILE_TYPE + kind), request["pure"]
    params.nthread, params.allow_requantize = request["n_threads"], True
    status = llama_cpp.llama_model_quantize(request["path"].encode(), request["out"].encode(), ctypes.byref(params))
    if status:
        raise Failure(f"llama.cpp could not quantize it to {kind}: {errors[-1]}")
    return {}


if __name__ == "__main__":
    serve(quantize)
