import pytest

from supernet.claims import changed, check_sources, claim, locked
from supernet.errors import UserError


def test_one_process_at_a_time(tmp_path):
    with locked(tmp_path / "a"):
        with pytest.raises(UserError, match="a is in use by another process"), locked(tmp_path / "a"):
            pass
        with locked(tmp_path / "b"):
            pass
    with locked(tmp_path / "a"):
        pass


def test_nothing_is_deleted_under_a_search(tmp_path):
    search = tmp_path / "search" / "main"
    with locked(search):
        (search / "journal.jsonl").touch()
        with pytest.raises(UserError, match="main is in use by another process"):
            claimed(tmp_path, fresh=True)
        assert (search / "journal.jsonl").exists()
    claimed(tmp_path, fresh=True)
    assert not search.exists()


def test_no_source_is_deleted(tmp_path):
    check_sources(tmp_path / "a", {"model.init": str(tmp_path / "b"), "gates.hardware": None})
    with pytest.raises(UserError, match=r"fresh=true would delete model.init=.*b/c first"):
        check_sources(tmp_path / "b", {"model.init": str(tmp_path / "b" / "c")})


SETTINGS = {"name": "x", "model": {"d": [1, 2], "lr": 1e-5}, "logger": {}, "none": None, "text": "def "}


def claimed(folder, settings=SETTINGS, fresh=False, free=()):
    return claim(folder, settings, fresh, folder / "summary.json", "fresh=true", free)


def test_the_same_command_goes_on(tmp_path):
    assert not claimed(tmp_path)
    assert not claimed(tmp_path)
    (tmp_path / "summary.json").touch()
    assert claimed(tmp_path)


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ({"name": "y"}, "name"),
        ({"model": {"d": [1, 3], "lr": 1e-5}}, r"model\.d"),
        ({"model": {"d": [1, 2]}}, r"model\.lr"),
        ({"logger": {"new": 1}, "none": 0}, r"logger, logger\.new, none"),
    ],
)
def test_other_settings_are_refused_with_their_keys(tmp_path, change, keys):
    claimed(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    kept = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match=rf"begun with other settings \({keys}\); name another or say fresh=true"):
        claimed(tmp_path, SETTINGS | change)
    assert (tmp_path / "config.yaml").read_text() == kept


def test_settings_that_nothing_came_of_bind_nobody(tmp_path):
    with locked(tmp_path):
        claimed(tmp_path)
        claimed(tmp_path, SETTINGS | {"name": "y"})
        assert "name: 'y'" in (tmp_path / "config.yaml").read_text()


def test_what_no_result_depends_on_may_change(tmp_path):
    settings = {"seed": 0, "targets": {"a": {"timeout_s": 600, "repeats": 5}}}
    claimed(tmp_path, settings)
    (tmp_path / "journal.jsonl").touch()
    free = ("targets.*.timeout_s",)
    assert not claimed(tmp_path, {**settings, "targets": {"a": {"timeout_s": 900, "repeats": 5}}}, free=free)
    with pytest.raises(UserError, match=r"other settings \(targets\.a\.repeats\)"):
        claimed(tmp_path, {**settings, "targets": {"a": {"timeout_s": 900, "repeats": 3}}}, free=free)


def test_what_changed_is_named_and_what_may_is_kept(tmp_path):
    claimed(tmp_path, {"seed": 0, "lr": 1})
    assert changed(tmp_path, {"seed": 1}, "fresh=true") == []  # nothing has come of it
    (tmp_path / "journal.jsonl").touch()
    assert changed(tmp_path, {"seed": 1, "lr": 2}, "fresh=true") == ["lr", "seed"]
    assert changed(tmp_path, {"seed": 1, "lr": 2}, "fresh=true", ["l*"]) == ["lr"]
    claimed(tmp_path, {"seed": 0, "lr": 2}, free=["lr"])
    assert changed(tmp_path, {"seed": 0, "lr": 2}, "fresh=true") == []


def test_fresh_starts_over_and_keeps_the_lock(tmp_path):
    with locked(tmp_path):
        claimed(tmp_path)
        (tmp_path / "summary.json").touch()
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "step=3.ckpt").touch()
        assert not claimed(tmp_path, SETTINGS | {"name": "y"}, fresh=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.yaml"]


def test_damaged_settings(tmp_path):
    (tmp_path / "config.yaml").write_text("a: [1")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"(?s)config\.yaml is damaged .*fresh=true starts over"):
        claimed(tmp_path)
