"""A Llama-like decoder whose layers need not be alike, for Hugging Face transformers.

This file is shipped inside a checkpoint and loaded by `trust_remote_code=True`: it imports nothing but torch
and transformers. `config.layers` has one entry a layer with its numbers of query heads and key-value heads
and its feed-forward width; where a number is 0, the layer has no such part.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

Rope = tuple[Tensor, Tensor]
# What transformers calls the key-value cache: `cache` from 5.24 on.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class SubnetConfig(PreTrainedConfig):
    """Sizes of a decoder."""

    model_type = "supernet_subnet"
    keys_to_ignore_at_inference = (CACHE,)

    def __init__(
        self,
        vocab_size: int = 0,
        hidden_size: int = 0,
        head_dim: int = 0,
        layers: list[dict[str, int]] | None = None,
        rope_theta: float = 10000.0,
        rms_norm_eps: float = 1e-5,
        max_position_embeddings: int = 0,
        use_cache: bool = True,
        llama3_scaling: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.head_dim = vocab_size, hidden_size, head_dim
        self.layers = layers or []
        self.rope_theta, self.rms_norm_eps = rope_theta, rms_norm_eps
        self.llama3_scaling = llama3_scaling  # of the frequencies of rotary positions; not where transformers looks
        self.max_position_embeddings, self.use_cache = max_position_embeddings, use_cache
        # What tools of transformers read; per layer the truth is in `layers`.
        self.num_hidden_layers = len(self.layers)
        self.num_attention_heads = max((layer["heads"] for layer in self.layers), default=0)
        self.num_key_value_heads = max((layer["kv_heads"] for layer in self.layers), default=0)
        for derived in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            kwargs.pop(derived, None)
        super().__init__(**kwargs)


class SubnetRMSNorm(nn.Module):
    """Root-mean-square norm with a gain, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., width)."""
        return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)


class SubnetAttention(nn.Module):
    """Grouped-query attention with rotary positions; `cache_index` is its place in the key-value cache."""

    def __init__(self, config: SubnetConfig, heads: int, kv_heads: int, cache_index: int) -> None:
        super().__init__()
        self.head_dim, self.grouped, self.cache_index = config.head_dim, heads != kv_heads, cache_index
        self.q_proj = nn.Linear(config.hidden_size, heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * config.head_dim, config.hidden_size, bias=False)

    def _heads_first(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _rotate(self, x: Tensor, rope: Rope) -> Tensor:
        low, high = x.chunk(2, dim=-1)
        return x * rope[0] + torch.cat((-high, low), dim=-1) * rope[1]

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: Any) -> Tensor:
        """Return the update for x (batch, tokens, hidden); mask (batch, 1, tokens, seen tokens) or None."""
        q = self._rotate(self._heads_first(self.q_proj(x)), rope)
        k = self._rotate(self._heads_first(self.k_proj(x)), rope)
        v = self._heads_first(self.v_proj(x))
        if cache is not None:
            k, v = cache.update(k, v, self.cache_index)
        causal = mask is None and q.shape[2] > 1
        mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=self.grouped)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class SubnetMLP(nn.Module):
    """Gated feed-forward network."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update for x (batch, tokens, hidden)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SubnetLayer(nn.Module):
    """Attention and feed-forward network in pre-norm residual form; either may be absent."""

    def __init__(self, config: SubnetConfig, sizes: dict[str, int], cache_index: int) -> None:
        super().__init__()
        self.has_attention, self.has_mlp = sizes["heads"] > 0, sizes["ffn"] > 0
        if self.has_attention:
            self.input_layernorm = SubnetRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.self_attn = SubnetAttention(config, sizes["heads"], sizes["kv_heads"], cache_index)
        if self.has_mlp:
            self.post_attention_layernorm = SubnetRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.mlp = SubnetMLP(config.hidden_size, sizes["ffn"])

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: Any) -> Tensor:
        """Return x (batch, tokens, hidden) after this layer."""
        if self.has_attention:
            x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache)
        if self.has_mlp:
            x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class SubnetModel(nn.Module):
    """Embedding, layers, norm."""

    def __init__(self, config: SubnetConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        # The cache knows layers with attention only, so its first entry tells how many tokens were seen.
        with_attention = [int(sizes["heads"] > 0) for sizes in config.layers]
        self.layers = nn.ModuleList(
            SubnetLayer(config, sizes, sum(with_attention[:i])) for i, sizes in enumerate(config.layers)
        )
        self.norm = SubnetRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: Any) -> Tensor:
        """Return the normalized hidden states for embedded tokens x (batch, tokens, hidden)."""
        for layer in self.layers:
            x = layer(x, rope, mask, cache)
        return self.norm(x)


class SubnetForCausalLM(PreTrainedModel, GenerationMixin):
    """The decoder with its output projection, which is the embedding where `tie_word_embeddings` says so."""

    config_class = SubnetConfig
    base_model_prefix = "model"
    _no_split_modules = ("SubnetLayer",)
    _supports_sdpa = True

    def __init__(self, config: SubnetConfig) -> None:
        super().__init__(config)
        self.model = SubnetModel(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: Any) -> None:
        """Replace the embedding, and with it a tied output projection."""
        self.model.embed_tokens = value

    def _head(self) -> Tensor:
        head: Any = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return head.weight

    def _rope(self, positions: Tensor, dtype: torch.dtype) -> Rope:
        """Return cosines and sines, each (batch, 1, tokens, head_dim), of positions (batch, tokens)."""
        exponents = torch.arange(0, self.config.head_dim, 2, device=positions.device).float() / self.config.head_dim
        frequencies = self.config.rope_theta**-exponents
        if self.config.llama3_scaling is not None:
            frequencies = _stretched(frequencies, **self.config.llama3_scaling)
        angles = positions[:, None, :, None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (batch, kept tokens, vocab), the cache, and the loss where labels are given.

        Args:
            input_ids: (batch, tokens); or give `inputs_embeds` (batch, tokens, hidden).
            attention_mask: (batch, seen tokens), 0 for padding.
            position_ids: (batch, tokens); by default they go on from the cache.
            cache: the key-value cache of an earlier call.
            past_key_values: the same, as it was called before transformers 5.24.
            inputs_embeds: instead of `input_ids`.
            labels: (batch, tokens); -100 is ignored.
            use_cache: make a cache where none is given.
            logits_to_keep: how many positions from the end get logits (0: all), or which.
            **kwargs: what the loss takes.
        """
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        n_tokens, n_past = x.shape[1], 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(n_past, n_past + n_tokens, device=x.device).unsqueeze(0)
        mask = _mask(attention_mask, n_tokens, n_past, x.device)
        x = self.model(x, self._rope(position_ids, x.dtype), mask, cache)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = F.linear(x[:, keep], self._head())
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})


def _stretched(
    frequencies: Tensor,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: int,
) -> Tensor:
    """Return the frequencies as Llama 3 scales them: slow ones divided by the factor, fast ones as they are."""
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    fast = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)
    return frequencies * ((1 - fast) / factor + fast)


def _mask(attention_mask: Tensor | None, n_tokens: int, n_past: int, device: torch.device) -> Tensor | None:
    """Return who sees whom, (batch or 1, 1, tokens, past + tokens), or None where plain causality says it."""
    if attention_mask is not None and attention_mask.dim() != 2:
        raise ValueError("this model takes attention masks (batch, seen tokens) only")
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not padded and (n_past == 0 or n_tokens == 1):
        return None
    rows = torch.arange(n_past, n_past + n_tokens, device=device).unsqueeze(1)
    columns = torch.arange(n_past + n_tokens, device=device)
    visible = (columns <= rows)[None, None]
    if attention_mask is not None and padded:
        visible = visible & attention_mask[:, None, None, : n_past + n_tokens].bool()
        # A padding position sees itself, or its softmax would have nothing to sum.
        visible = visible | (columns == rows)
    return visible
