"""Shipped Hugging Face folders in lm-evaluation-harness, which computes what we do; the tasks are local."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from search.targets.huggingface import HuggingFace
from supernet.losses import score_tokens
from supernet.run import load_supernet
from supernet.subnet import extract
from supernet.tokenizer import Tokenization
from tests.scripts import REPOSITORY, workplace

TASKS = REPOSITORY / "tests" / "lm_eval_tasks"
CHANGES = {"plain": {}, "remote": {"layers.0.mlp.width": 32, "layers.1.attention.active": 0}}

# Runs where nothing of ours is imported: prints by folder the harness's log-likelihoods and its own summary.
HARNESS = """
import json, os, sys
import lm_eval
from lm_eval.tasks import TaskManager

repository, tasks, *folders = sys.argv[1:]
os.chdir(repository)  # as `lm_eval` is called: the paths in the tasks are relative to it
manager = TaskManager(include_path=tasks, include_defaults=False)
found = {}
for folder in folders:
    trust = "auto_map" in json.load(open(folder + "/config.json"))
    settings = dict(tasks=["functions_perplexity", "functions_choice"], task_manager=manager, device="cpu")
    if trust:
        try:
            lm_eval.simple_evaluate(model="hf", model_args={"pretrained": folder}, **settings)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise AssertionError("model code ran without permission")
    model = {"pretrained": folder, "trust_remote_code": trust}
    done = lm_eval.simple_evaluate(model="hf", model_args=model, bootstrap_iters=0, **settings)
    found[folder] = {
        "likelihoods": {name: [s["filtered_resps"] for s in samples] for name, samples in done["samples"].items()},
        "results": {k: v for scores in done["results"].values() for k, v in scores.items() if isinstance(v, float)},
    }
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_harness_computes_our_losses(tmp_path, tmp_path_factory, run_python):
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip("lm-eval is not installed")
    trained = load_supernet(workplace(tmp_path_factory.getbasetemp()).trained)
    space = trained.supernet.space
    base = space.decode(space.with_format(space.largest, "Q4_0"))
    decoders = {kind: extract(trained.supernet, space.encode({**base, **new})) for kind, new in CHANGES.items()}
    folders = {}
    for kind, decoder in decoders.items():
        folders[kind] = HuggingFace("huggingface", "float32").export(decoder, trained.tokenizer_json, tmp_path / kind)
        assert (folders[kind] / "modeling_subnet.py").exists() == (kind == "remote")

    printed = json.loads(run_python(HARNESS, REPOSITORY, TASKS, *folders.values()).splitlines()[-1])
    docs = [json.loads(line) for line in (TASKS / "functions.jsonl").read_text().splitlines()]
    for kind, folder in folders.items():
        theirs = printed[str(folder)]
        texts, choices = ours(decoders[kind].freeze_formats(), Tokenization(trained.tokenizer_json, {}), docs)
        assert theirs["likelihoods"]["functions_perplexity"] == [[pytest.approx(v, rel=1e-5)] for v in texts]
        for got, wanted in zip(theirs["likelihoods"]["functions_choice"], choices, strict=True):
            assert [value for value, _ in got] == pytest.approx(wanted, rel=1e-5)
        n_bytes = sum(len((doc["begin"] + doc["endings"][doc["answer"]]).encode()) for doc in docs)
        right = [np.argmax(values) == doc["answer"] for values, doc in zip(choices, docs, strict=True)]
        assert theirs["results"]["bits_per_byte,none"] == pytest.approx(-sum(texts) / n_bytes / np.log(2), rel=1e-5)
        assert theirs["results"]["acc,none"] == np.mean(right)


def ours(decoder, tokenization, docs):
    """Return the log-likelihood of each text, and of the endings of each."""
    encode, start = tokenization.tokenizer.encode, tokenization.id_of(tokenization.bos)

    def likelihood(ids, n_given):
        with torch.inference_mode():
            losses, _ = score_tokens(decoder, torch.tensor([ids]), 1)
        return -losses[0, n_given - 1 :].double().sum().item()

    texts = [likelihood([start, *encode(d["begin"] + d["endings"][d["answer"]]).ids], 1) for d in docs]
    choices = [
        [likelihood(encode(d["begin"] + ending).ids, len(encode(d["begin"]).ids)) for ending in d["endings"]]
        for d in docs
    ]
    return texts, choices
