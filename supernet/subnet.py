"""Extraction: supernet + genome -> a plain decoder with inherited weights."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from supernet.elastic import under
from supernet.genes import Genome
from supernet.model import Supernet, rope_table
from supernet.plain import Block, Linear, RMSNorm


@dataclass(frozen=True)
class DecoderConfig:
    """What the shapes of a decoder's weights do not say."""

    head_dim: int
    rope_theta: float
    norm_eps: float
    context_length: int


class Layer(nn.Module):
    """A plain layer; either part may be absent."""

    def __init__(self, attention: Block | None, mlp: Block | None) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return x (batch, tokens, d_model) after this layer."""
        if self.attention is not None:
            x = x + self.attention(x, rope)
        if self.mlp is not None:
            x = x + self.mlp(x, rope)
        return x


class Decoder(nn.Module):
    """A plain Llama-like decoder with tied embeddings; layers need not be alike."""

    def __init__(self, config: DecoderConfig, embedding: Linear, layers: Iterable[Layer], norm: RMSNorm) -> None:
        super().__init__()
        self.config = config
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.embedding.weight.shape[1]

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.embedding.weight.shape[0]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (batch, tokens, vocab_size) of token ids (batch, tokens)."""
        embedding = self.embedding.effective()
        x = F.embedding(tokens, embedding.weight)
        rope = rope_table(tokens.shape[1], self.config.head_dim, self.config.rope_theta, tokens.device)
        for layer in self.layers:
            x = layer(x, rope)
        return embedding(self.norm(x))

    def linears(self) -> Iterable[Linear]:
        """Yield everything that is stored in a weight format."""
        return (module for module in self.modules() if isinstance(module, Linear))

    def freeze_formats(self) -> "Decoder":
        """Round every weight to its format, once; from then on the weights are used as they are."""
        for linear in self.linears():
            linear.freeze()
        return self


def extract(supernet: Supernet, genome: Genome) -> Decoder:
    """Return the plain decoder of `genome`, with a copy of the weights it inherits and its formats."""
    architecture = supernet.space.decode(supernet.space.check(genome))
    width = int(architecture["d_model"])
    config = DecoderConfig(supernet.head_dim, supernet.rope_theta, supernet.norm_eps, supernet.context_length)
    parts = []
    for prefix, block in supernet.blocks():
        local = under(architecture, prefix)
        parts.append(block.extract(local, width) if local["active"] else None)
    layers = [Layer(attention, mlp) for attention, mlp in zip(parts[::2], parts[1::2], strict=True)]
    embedding = supernet.embedding.extract((supernet.vocab_size,), (width,), str(architecture["embedding.format"]))
    return Decoder(config, embedding, layers, supernet.norm.extract(width))
