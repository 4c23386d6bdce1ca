"""A checkpoint as a plain decoder, without a supernet."""

import torch

from supernet.blocks.attention import Attention
from supernet.blocks.swiglu import SwiGLU
from supernet.formats import F32
from supernet.plain import Linear, RMSNorm
from supernet.pretrained.checkpoint import Checkpoint
from supernet.subnet import Decoder, DecoderConfig, Layer


@torch.no_grad()
def decoder_of(checkpoint: Checkpoint, device: torch.device | None = None) -> Decoder:
    """Return the net of a checkpoint in full precision, nothing of it padded; none of it is trained.

    Args:
        checkpoint: opened.
        device: where its weights go one by one; None: the CPU.

    Raises:
        UserError: the file holds what is no weight.
    """
    llama = checkpoint.llama

    def linear(name: str) -> Linear:
        return Linear(checkpoint.tensor(name).to(device), F32())

    def norm(name: str) -> RMSNorm:
        return RMSNorm(checkpoint.tensor(name).to(device), llama.norm_eps)

    def layer(prefix: str) -> Layer:
        heads = {f"{kind}_proj": linear(f"{prefix}.attention.{kind}_proj") for kind in "qkvo"}
        attention = Attention(norm(f"{prefix}.attention.norm"), heads, llama.kv_heads, llama.head_dim)
        channels = (linear(f"{prefix}.mlp.{kind}_proj") for kind in ("gate", "up", "down"))
        return Layer(attention, SwiGLU(norm(f"{prefix}.mlp.norm"), *channels))

    config = DecoderConfig(llama.rope, llama.norm_eps, llama.context_length)
    layers = [layer(f"layers.{i}") for i in range(llama.n_layers)]
    output = None if llama.tied else linear("output")
    return Decoder(config, linear("embedding"), layers, norm("norm"), output).eval()
