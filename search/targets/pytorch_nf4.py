"""PyTorch with matrices in NF4: the checkpoint for bitsandbytes, measured and evaluated where it will run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.targets import nf4
from search.targets.child import check_quantizer
from search.targets.huggingface import export, replacing_folder
from search.targets.pytorch import PyTorch
from supernet.genes import Value

if TYPE_CHECKING:
    from supernet.subnet import Decoder

CONF = "conf/target/pytorch_nf4.yaml"


class PyTorchNF4(PyTorch):
    """PyTorch where bitsandbytes holds the matrices that are NF4; all else is in `dtype`.

    On processors that multiply in bfloat16 (AVX512-BF16) bitsandbytes does so whatever `dtype` says.
    """

    quantizer_name = "bitsandbytes"

    def __init__(self, *args: Any, quantizer: Sequence[str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.quantizer = check_quantizer(self.name, CONF, quantizer, tuple(nf4.QUANTIZATIONS))
        self.file_name = f"pytorch_nf4_{self.dtype}"

    @property
    def settings(self) -> dict[str, Any]:
        """What a measured cost depends on."""
        return {**super().settings, "weights": "nf4"}

    def available(self) -> str | None:
        """Return None when bitsandbytes is here and PyTorch has the device, else what to do."""
        return nf4.missing() or super().available()

    def supports(self, architecture: Mapping[str, Value]) -> str | None:
        """Return None where every matrix is NF4 or F16, and the embedding F16; else which is not."""
        return nf4.supports(architecture)

    def export(
        self, decoder: Decoder, tokenizer_json: str, folder: Path, files: Mapping[str, str] | None = None
    ) -> Path:
        """Write the checkpoint `folder`/pytorch_nf4_DTYPE, whole or not at all, and return its path.

        Raises:
            UserError: a format that does not go there, the tokenizer does not fit, or the path holds something else.
        """
        path = folder / self.file_name
        export(decoder, tokenizer_json, path, self.dtype, packed=True, files=files)
        return path

    def quantized(self, path: Path, kind: str, folder: Path) -> tuple[Path, int]:
        """Let bitsandbytes write the checkpoint `folder`/NAME_`kind`, whole or not at all; return path and bytes.

        All matrices but the embedding are quantized. The bytes are of codes and scales, of other matrices in F16 and of
        norms in F32.

        Args:
            path: of a checkpoint of floats, as `export` writes a net in F16.
            kind: `nf4` or `int8`.
            folder: to write to.

        Raises:
            UserError: bitsandbytes or the device is missing, or the checkpoint is damaged or quantized already.
        """
        out = folder / f"{path.name}_{kind}"
        how = {**nf4.QUANTIZATIONS[kind], "bnb_4bit_compute_dtype": self.dtype}
        with replacing_folder(out) as temporary:
            reply = self.need("quantize", path, how=how, out=str(temporary))
        return out, reply["bytes"]
