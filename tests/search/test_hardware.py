"""Measuring the probes of a target: once, resumable, and refused where the file is another's."""

import json
from pathlib import Path

import numpy as np
import pytest

from search.hardware import measure_hardware, summary
from search.targets import Runtime
from supernet.errors import UserError
from supernet.hardware import METRICS, read_hardware
from supernet.run import TrainedSupernet


class Stopped(Exception):
    pass


class FakeRuntime(Runtime):
    """Costs are linear in the file's size; the file is the list of a decoder's shapes."""

    file_name = "net.txt"

    def __init__(self, name="fake", n_threads=1, stop_after=None, broken=(), missing=None):
        self.name, self.n_threads, self.kv_bytes_per_value = name, n_threads, 2.0
        self.stopping = {"after": stop_after}
        self.broken, self.missing, self.measured = set(broken), missing, 0

    @property
    def settings(self):
        return {"n_threads": self.n_threads}

    def available(self):
        return self.missing

    def supports(self, architecture):
        return None

    def export(self, decoder, tokenizer_json, folder, files):
        assert files == FILES
        if self.measured in self.broken and self.measured % 2:
            self.measured += 1
            raise UserError("cannot be written")
        path = folder / self.file_name
        path.write_text("\n".join(str(parameter.numel()) for parameter in decoder.parameters()))
        return path

    def loads(self, path):
        return None

    def measure(self, path):
        if self.measured == self.stopping["after"]:
            raise Stopped
        self.measured += 1
        if self.measured - 1 in self.broken:
            return {"built": False, "reason": "killed by SIGABRT"}
        sizes = np.array([int(line) for line in path.read_text().splitlines()])
        return {"built": True, "device": "toy", **dict.fromkeys(METRICS, float(1 + sizes.sum() / 1e4 + len(sizes)))}

    def token_scores(self, path, rows):
        raise NotImplementedError

    def generate(self, path, prompt, n_tokens, seed):
        raise NotImplementedError


FILES = {"tokenizer_config.json": "{}"}


@pytest.fixture(scope="module")
def trained(tiny_supernet):
    return TrainedSupernet(Path("nowhere"), tiny_supernet, {}, {}, "{}", FILES)


def test_probes_are_measured_once(trained, tmp_path, capsys):
    path, runtime = tmp_path / "hardware.json", FakeRuntime()
    model = measure_hardware(trained, runtime, path, 20)
    assert runtime.measured == 20 and model.device == "toy" and model.settings == {"n_threads": 1}
    assert set(model.errors) == set(METRICS)
    assert "20 nets measured on toy" in summary(model) and summary(model) in capsys.readouterr().out
    again = measure_hardware(trained, FakeRuntime(missing="it is gone"), path, 20)
    assert again == model == read_hardware(path)["fake"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("stop_after", [0, 1, 7, 19])
def test_what_was_measured_before_a_kill_counts(trained, tmp_path, stop_after):
    whole, path = tmp_path / "whole.json", tmp_path / "hardware.json"
    measure_hardware(trained, FakeRuntime(), whole, 20)
    with pytest.raises(Stopped):
        measure_hardware(trained, FakeRuntime(stop_after=stop_after), path, 20)
    rest = FakeRuntime()
    measure_hardware(trained, rest, path, 20)
    assert rest.measured == 20 - stop_after
    assert path.read_bytes() == whole.read_bytes()


def test_targets_share_a_file(trained, tmp_path):
    path = tmp_path / "hardware.json"
    with pytest.raises(Stopped):
        measure_hardware(trained, FakeRuntime("one", stop_after=3), path, 12)
    two = measure_hardware(trained, FakeRuntime("two"), path, 12)
    with pytest.raises(UserError, match=r"\(one\): 3 of 12 probes"):
        read_hardware(path)
    one = measure_hardware(trained, FakeRuntime("one"), path, 12)
    assert read_hardware(path) == {"one": one, "two": two}


def test_other_settings_or_probes_are_not_mixed(trained, tmp_path):
    path = tmp_path / "hardware.json"
    with pytest.raises(Stopped):
        measure_hardware(trained, FakeRuntime(stop_after=3), path, 12)
    for runtime, n_probes, seed in ((FakeRuntime(n_threads=2), 12, 0), (FakeRuntime(), 13, 0), (FakeRuntime(), 12, 1)):
        if seed:
            content = json.loads(path.read_text())
            content["targets"]["fake"]["probes"][2]["genome"][0] ^= 1
            path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="begun with other settings or another supernet"):
            measure_hardware(trained, runtime, path, n_probes)


def test_nets_that_do_not_build_are_noted_and_left_out(trained, tmp_path):
    path = tmp_path / "hardware.json"
    model = measure_hardware(trained, FakeRuntime(broken=(3, 4)), path, 12)
    assert [p.reason for p in model.probes if p.measured is None] == ["cannot be written", "killed by SIGABRT"]
    assert "2 could not be built" in summary(model)
    with pytest.raises(UserError, match=r"3 of 12 probes could be measured, 5 are needed: killed by SIGABRT"):
        measure_hardware(trained, FakeRuntime("other", broken=[0, *range(4, 12)]), path, 12)


def test_without_the_runtime_nothing_is_measured(trained, tmp_path):
    with pytest.raises(UserError, match="pip install"):
        measure_hardware(trained, FakeRuntime(missing="pip install fake"), tmp_path / "hardware.json", 12)
    assert not list(tmp_path.iterdir())


def test_a_device_elsewhere(trained, tmp_path, supernet_of):
    there, path = tmp_path / "phone.json", tmp_path / "hardware.json"
    model = measure_hardware(trained, FakeRuntime("phone"), there, 12)
    runtime = FakeRuntime("llama_cpp", missing="not needed")
    runtime.hardware = str(there)
    assert measure_hardware(trained, runtime, path, 40) == model
    there.unlink()  # the search keeps what it began with
    assert measure_hardware(trained, runtime, path, 40) == read_hardware(path)["llama_cpp"] == model
    with pytest.raises(UserError, match=r"targets\.llama_cpp\.hardware: .*phone\.json does not exist"):
        measure_hardware(trained, runtime, tmp_path / "new.json", 40)


def test_a_device_elsewhere_that_does_not_fit(trained, tmp_path, supernet_of):
    there = tmp_path / "phone.json"
    plain = supernet_of(**dict.fromkeys(("embedding_formats", "qkv_formats", "o_formats"), ("Q8_0",)), droppable=False)
    measure_hardware(TrainedSupernet(Path("x"), plain, {}, {}, "{}", FILES), FakeRuntime("phone"), there, 12)
    runtime = FakeRuntime("llama_cpp")
    runtime.hardware = str(there)
    one_format = TrainedSupernet(Path("x"), plain, {}, {}, "{}", FILES)
    assert measure_hardware(one_format, runtime, tmp_path / "good.json", 12)
    runtime.kv_bytes_per_value = 34 / 32
    with pytest.raises(UserError, match=r"phone.json was measured with kv_bytes_per_value=2.*llama_cpp has 1.0625"):
        measure_hardware(one_format, runtime, tmp_path / "a.json", 12)
    entry = json.loads(there.read_text())
    for probe in entry["targets"]["phone"]["probes"]:
        probe["inventory"].pop("Q5_0.weights", None)
    there.write_text(json.dumps(entry))
    with pytest.raises(UserError, match=r"phone.json: none of its probes had weights in Q5_0"):
        measure_hardware(one_format, runtime, tmp_path / "b.json", 12)
