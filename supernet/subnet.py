"""Extraction: supernet + genome -> a plain decoder with inherited weights."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from supernet.elastic import under
from supernet.genes import Architecture, Genome
from supernet.model import OUTPUT, Supernet
from supernet.plain import Block, Cache, Linear, RMSNorm
from supernet.rope import Rope


@dataclass(frozen=True)
class DecoderConfig:
    """What the shapes of a decoder's weights do not say."""

    rope: Rope
    norm_eps: float
    context_length: int

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.rope.head_dim


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

    def step(self, x: Tensor, rope: tuple[Tensor, Tensor], cache: Cache) -> Tensor:
        """Return one more token x (batch, 1, d_model) after this layer; see `Block.step`."""
        if self.attention is not None:
            x = x + self.attention.step(x, rope, cache)
        if self.mlp is not None:
            x = x + self.mlp(x, rope)
        return x


class Decoder(nn.Module):
    """A plain Llama-like decoder; layers need not be alike. Without an output projection that is the embedding."""

    def __init__(
        self,
        config: DecoderConfig,
        embedding: Linear,
        layers: Iterable[Layer],
        norm: RMSNorm,
        output: Linear | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding, self.output = embedding, output
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

    def forward(self, tokens: Tensor, states: list[Tensor] | None = None) -> Tensor:
        """Return the logits (batch, tokens, vocab_size) of token ids (batch, tokens).

        Args:
            tokens: ids.
            states: a list to which the residual stream (batch, tokens, d_model) behind each layer is added.
        """
        embedding = self.embedding.effective()
        x = F.embedding(tokens, embedding.weight)
        rope = self.config.rope.table(tokens.shape[1], tokens.device)
        for layer in self.layers:
            x = layer(x, rope)
            if states is not None:
                states.append(x)
        head = embedding if self.output is None else self.output.effective()
        return head(self.norm(x))

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
    return extract_architecture(supernet, supernet.space.decode(supernet.space.check(genome)))


def extract_architecture(supernet: Supernet, architecture: Architecture) -> Decoder:
    """Return the plain decoder of an architecture, whose formats may be none that its genes offer, as F32."""
    width = int(architecture["d_model"])
    config = DecoderConfig(supernet.rope, supernet.norm_eps, supernet.context_length)
    parts = []
    for prefix, block in supernet.blocks():
        local = under(architecture, prefix)
        parts.append(block.extract(local, width) if local["active"] else None)
    layers = [Layer(attention, mlp) for attention, mlp in zip(parts[::2], parts[1::2], strict=True)]
    shape = (supernet.vocab_size,), (width,)
    embedding = supernet.embedding.extract(*shape, str(architecture["embedding.format"]))
    output = supernet.output.extract(*shape, str(architecture[OUTPUT])) if supernet.output is not None else None
    return Decoder(config, embedding, layers, supernet.norm.extract(width), output)


def weights_hash(decoder: Decoder) -> str:
    """Return the SHA-256 over all tensors by name: equal weights, equal hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(decoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
