"""PyTorch with matrices in NF4: the checkpoint for bitsandbytes, measured and evaluated where it will run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.targets import nf4
from search.targets.huggingface import export
from search.targets.pytorch import PyTorch
from supernet.genes import Value

if TYPE_CHECKING:
    from supernet.subnet import Decoder


class PyTorchNF4(PyTorch):
    """PyTorch where bitsandbytes holds the matrices that are NF4; all else is in `dtype`.

    On processors that multiply in bfloat16 (AVX512-BF16) bitsandbytes does so whatever `dtype` says.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
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

    def export(self, decoder: Decoder, tokenizer_json: str, folder: Path) -> Path:
        """Write the checkpoint `folder`/pytorch_nf4_DTYPE, whole or not at all, and return its path.

        Raises:
            UserError: a format that does not go there, the tokenizer does not fit, or the path holds something else.
        """
        path = folder / self.file_name
        export(decoder, tokenizer_json, path, self.dtype, packed=True)
        return path
