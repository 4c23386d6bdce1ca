"""The licenses of a pretrained model go along, whatever it lies in and however often it is trained on."""

import pytest

from supernet.errors import UserError
from supernet.files import write_json
from supernet.initial import origin
from supernet.licenses import licenses_of


@pytest.fixture
def folder(tmp_path):
    for name in ("LICENSE", "notice.txt", "a.LICENSE", "b.LICENSE", "LICENSE.py", "a.bin", "b.bin", "README.md"):
        (tmp_path / name).write_text(f"of {name}")
    (tmp_path / "COPYING").mkdir()
    return tmp_path


def test_licenses_beside_a_checkpoint(folder):
    texts = {name: f"of {name}" for name in ("LICENSE", "a.LICENSE", "notice.txt")}
    assert licenses_of(folder / "a.bin") == texts
    del texts["a.LICENSE"]
    assert licenses_of(folder) == texts


def test_a_license_that_is_no_text(folder):
    (folder / "LICENSE").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match="LICENSE cannot be read: "):
        licenses_of(folder)


def test_a_run_hands_them_on(tmp_path):
    licenses = {"LICENSE": "Use it as you like."}
    first, second = {"flops": 1.0}, {"flops": 1.0, "licenses": licenses, "flops_before": 2.0, "continued": 4}
    for summary, runs in (
        (first, {"flops_before": 1.0, "continued": 1}),
        (second, {"flops_before": 3.0, "continued": 5}),
    ):
        write_json(tmp_path / "supernet" / "summary.json", summary)
        found = origin({"init": str(tmp_path)})
        assert found == {**runs, **({"licenses": licenses} if "licenses" in summary else {})}
