"""Tiny pretrained Llamas: folders of Hugging Face with random weights that are felt."""

import torch

SHAPE = dict(
    vocab_size=99,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    tie_word_embeddings=False,
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def save_llama(folder, seed=0, dtype=torch.float32, shards=None, **changes):
    """Write a random LlamaForCausalLM as transformers saves it, with weights that are felt; return the model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
            else:
                parameter.normal_(std=0.15)
    model = model.to(dtype)
    model.save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    # Read again: the frequencies of rotary positions were rounded too, which are no weights.
    return model.eval() if dtype == torch.float32 else LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
