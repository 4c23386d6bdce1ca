"""One thread, derandomized properties, and nets and spaces small enough to be tried many times."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported anywhere

import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, settings

from supernet.blocks.attention import ElasticAttention
from supernet.blocks.swiglu import ElasticSwiGLU
from supernet.genes import Gene, SearchSpace
from supernet.model import Supernet

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # begun in the background: Ctrl-C could not be tried on scripts
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("tests")

VOCAB = 50


def make_supernet(seed=0, **changes):
    """Build a tiny supernet; gains are random, so that a wrong slice of a norm shows."""
    values = dict(
        n_layers=3,
        d_model=(32, 64),
        head_dim=32,
        embedding_formats=("Q4_0", "Q8_0", "F16"),
        kv_heads=(1, 2),
        heads_per_kv=(1, 2),
        width=(32, 64, 96),
        qkv_formats=("Q4_0", "Q5_0", "F16"),
        o_formats=("Q4_0", "Q8_0"),
        gate_up_formats=("Q4_0", "Q8_0", "F32"),
        down_formats=("Q5_0", "F16"),
        droppable=True,
    )
    v = values | changes
    attention = partial(
        ElasticAttention,
        **{k: v[k] for k in ("head_dim", "kv_heads", "heads_per_kv", "qkv_formats", "o_formats", "droppable")},
    )
    mlp = partial(ElasticSwiGLU, **{k: v[k] for k in ("width", "gate_up_formats", "down_formats", "droppable")})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = Supernet(
            vocab_size=VOCAB,
            context_length=64,
            n_layers=v["n_layers"],
            d_model=v["d_model"],
            head_dim=v["head_dim"],
            rope_theta=10000.0,
            norm_eps=1e-5,
            embedding_formats=v["embedding_formats"],
            blocks={"attention": attention, "mlp": mlp},
            **{k: v[k] for k in ("tied", "output_formats", "rope_scaling", "scales") if k in v},
        )
        for name, parameter in supernet.named_parameters():
            if name.endswith("norm.weight"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return supernet


@pytest.fixture(scope="session")
def supernet_of():
    """Return the builder of tiny supernets, for tests that need other shapes."""
    return make_supernet


@pytest.fixture(scope="session")
def tiny_supernet():
    """Return a tiny supernet that no test changes."""
    return make_supernet()


@pytest.fixture(scope="session")
def tokens():
    """Return token ids (2, 12)."""
    return torch.randint(VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def toy_space():
    """Return a space with every kind of gene, two switches and a gene that has no alternative."""
    return SearchSpace(
        [
            Gene("d", (8, 16, 24), "width"),
            Gene("only", (4,), "width"),
            Gene("fmt", ("Q4_0", "Q8_0", "F16"), "format"),
            Gene("a.active", (0, 1), "switch"),
            Gene("a.width", (1, 2, 3, 4), "width", needs="a.active"),
            Gene("a.fmt", ("Q4_0", "F16"), "format", needs="a.active"),
            Gene("b.active", (0, 1), "switch"),
            Gene("b.width", (1, 2), "width", needs="b.active"),
            Gene("c.active", (1,), "switch"),
            Gene("c.width", (5, 6), "width", needs="c.active"),
        ]
    )


@pytest.fixture
def in_process(monkeypatch):
    """Do PyTorch's tasks here: importing transformers in a new process for each would take most of the time."""
    from search.targets.child import answer
    from search.targets.pytorch import PyTorch
    from search.targets.pytorch_child import TASKS

    def ask(self, task, path, **settings):
        with torch.inference_mode():
            return answer({"task": task, "path": str(path), **self.request(), **settings}, *TASKS)

    monkeypatch.setattr(PyTorch, "ask", ask)


@pytest.fixture
def run_python(tmp_path):
    """Return what runs Python source in a fresh process that knows nothing of us, with arguments."""

    def run(source, *arguments):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment |= {"HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", source, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
