"""The original as a net of its own, and the copy of it that a run keeps."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from supernet.errors import UserError
from supernet.original import keep_original, kept_original, make_teacher, open_original, original_of
from supernet.pretrained.decoder import decoder_of
from supernet.pretrained.hf_llama import save
from supernet.pretrained.load import open_checkpoint
from tests.supernet.llamas import LLAMA3, save_llama

STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "stories260k" / "stories260K.bin"
TOKENS = torch.randint(99, (2, 60), generator=torch.Generator().manual_seed(3))
TEACHER = {"_target_": "supernet.teacher.Teacher", "share": 1.0, "temperature": 1.0, "hidden": 0.0}


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        (torch.float32, {"intermediate_size": 172}),
        (torch.bfloat16, {"tie_word_embeddings": True, "num_key_value_heads": 1}),
        (torch.float16, {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}, "head_dim": 8, "rms_norm_eps": 1e-3}),
    ],
)
def test_the_copy_in_a_run_is_the_original(tmp_path, dtype, changes):
    model = save_llama(tmp_path / "llama", dtype=dtype, **changes)
    original = open_checkpoint(tmp_path / "llama")
    torch.testing.assert_close(decoder_of(original)(TOKENS), model(TOKENS).logits, rtol=1e-4, atol=1e-4)
    run = tmp_path / "runs" / "x"
    assert kept_original(run) is None
    keep_original(original, run)
    kept = open_original("model.init", str(run))
    assert kept.llama == original.llama and kept.fingerprint() == original.fingerprint()
    before, after = (
        load_file(path / "model.safetensors") for path in (tmp_path / "llama", run / "supernet" / "teacher")
    )
    assert all(after[name].dtype == dtype and torch.equal(after[name], before[name]) for name in after)
    save(original, tmp_path / "shards", shard_weights=9000)
    sharded = open_checkpoint(tmp_path / "shards")
    assert sharded.llama == original.llama and sharded.fingerprint() == original.fingerprint()
    files = [load_file(path) for path in sorted((tmp_path / "shards").glob("model-*.safetensors"))]
    assert len(files) > 3
    for tensors in files:
        assert len(tensors) == 1 or sum(tensor.numel() for tensor in tensors.values()) <= 9000
    save_llama(tmp_path / "other", seed=1, dtype=dtype, **changes)
    assert open_checkpoint(tmp_path / "other").fingerprint() != kept.fingerprint()


@pytest.mark.skipif(not STORIES.exists(), reason="the shared data are not here")
def test_a_file_of_llama2c_is_kept_as_a_folder(tmp_path):
    original = open_checkpoint(STORIES)
    keep_original(original, tmp_path)
    kept = kept_original(tmp_path)
    assert kept.kind == "LlamaForCausalLM" and kept.fingerprint() == original.fingerprint()


def config_of(init=None, teacher=TEACHER, **data):
    return OmegaConf.create({"model": {"init": init}, "teacher": teacher, "data": data})


def test_who_teaches(tmp_path, tiny_supernet):
    folder = str(tmp_path / "llama")
    save_llama(tmp_path / "llama", vocab_size=50)
    assert original_of(config_of(teacher={})) is None and make_teacher(config_of(folder, {}), tiny_supernet) is None
    assert str(original_of(config_of(folder)).path) == folder
    sampled = {"sampling": {"checkpoint": folder}}
    assert str(original_of(config_of(teacher={}, **sampled)).path) == folder
    with pytest.raises(UserError, match=r"data.sampling.checkpoint must be model.init"):
        original_of(config_of("elsewhere", **sampled))
    for init in (None, "nowhere", str(tmp_path)):
        with pytest.raises(UserError, match=r"model.init .teacher=original.: .* is no pretrained Llama"):
            original_of(config_of(init))
    assert make_teacher(config_of(folder), tiny_supernet).decoder.vocab_size == 50
    with pytest.raises(UserError, match=r"teacher.hidden must be 0 where model.d_model is cut"):
        make_teacher(config_of(folder, {**TEACHER, "hidden": 0.1}), tiny_supernet)
    save_llama(tmp_path / "other")
    with pytest.raises(UserError, match="different vocabularies, of 99 and 50 tokens"):
        make_teacher(config_of(str(tmp_path / "other")), tiny_supernet)
