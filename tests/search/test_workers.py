"""Workers give the same results in the same order, whatever becomes of them."""

import os
import random
import signal
import subprocess
import sys
import time
from threading import Thread

import pytest

from search.workers import Failed, InProcess, check_workers, make_workers
from search.workers.local import LocalProcesses
from search.workers.on_ray import RayWorkers
from supernet.errors import UserError
from tests.scripts import REPOSITORY, wait_for
from tests.search.toy_scorer import attempts, make_scorer, surroundings, worker_pids

RAY = pytest.param("ray", marks=pytest.mark.slow)


def squares(tasks):
    return [{"square": float(number**2)} for number, _ in tasks]


def plain(count, start=0):
    return [(number, "") for number in range(start, start + count)]


@pytest.fixture(scope="module")
def ray_runs():
    """Start Ray once, for all that use it here; one of its three CPUs stays taken. Return what makes workers."""
    ray = pytest.importorskip("ray")
    with make_workers("ray", make_scorer, None, n_threads=1, timeout_s=60, ray_workers=3) as workers:
        assert list(workers.map(plain(1))) == squares(plain(1))
        assert ray.is_initialized()
        yield on_ray
    assert not ray.is_initialized()


def local(folder=None, n=2, timeout_s=60.0, make=make_scorer, n_threads=1):
    return LocalProcesses(make, folder and str(folder), n, n_threads, timeout_s)


def on_ray(folder=None, n=2, timeout_s=60.0, make=make_scorer, n_threads=1):
    return RayWorkers(make, folder and str(folder), n, n_threads, timeout_s, None)


@pytest.fixture(params=["local", RAY])
def pool(request):
    """Return what makes two workers, of both kinds that are other processes."""
    return local if request.param == "local" else request.getfixturevalue("ray_runs")


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Fail unless every local worker of a test ends with it, and all that it started; Ray keeps some to use again."""
    yield
    wait_for(lambda: not worker_pids(os.getpid(), of_ray=False))


class Killer(Thread):
    """Kills one worker at each of five random moments, each after some more results."""

    def __init__(self, workers, seed):
        super().__init__(daemon=True)
        self.workers, self.rng, self.results, self.killed = workers, random.Random(seed), [], set()

    def run(self):
        for _ in range(5):
            mark = len(self.results) + self.rng.randrange(3, 20)
            wait_for(lambda mark=mark: len(self.results) >= mark and set(self.workers.pids) - self.killed)
            time.sleep(self.rng.uniform(0, 0.03))
            pid = self.rng.choice(sorted(set(self.workers.pids) - self.killed))
            os.kill(pid, signal.SIGKILL)
            self.killed.add(pid)


def test_in_process():
    with make_workers(1, make_scorer, None, n_threads=1, timeout_s=60) as workers:
        assert isinstance(workers, InProcess) and workers.pids == [os.getpid()]
        results = workers.map([*plain(2), (2, "mistake")])
        assert [next(results), next(results)] == squares(plain(2))
        with pytest.raises(UserError, match="no objective 2"):
            next(results)


def test_results_come_in_the_order_of_the_tasks(pool):
    tasks = [(0, 0.2), *[(number, number % 3 / 100) for number in range(1, 30)]]
    with pool() as workers:
        assert list(workers.map(tasks)) == squares(tasks)
        wait_for(lambda: list(workers.map(tasks)) == squares(tasks) and len(workers.pids) == 2)
        pids = workers.pids
        assert list(workers.map(tasks)) == squares(tasks)
        assert workers.pids == pids and set(pids) <= set(worker_pids(os.getpid()))
        assert list(workers.map([])) == []
    assert not workers.pids


def test_a_result_is_there_before_the_later_ones(tmp_path):
    with local(tmp_path) as workers:
        results = workers.map([(0, ""), (1, ""), (2, "hang")])
        assert [next(results), next(results)] == squares(plain(2))
        wait_for(lambda: attempts(tmp_path, 2))
        results.close()  # whoever stops early
        assert list(workers.map(plain(4))) == squares(plain(4))


def test_no_more_workers_than_tasks():
    with local(n=4) as workers:
        assert list(workers.map(plain(1))) == squares(plain(1))
        assert len(workers.pids) == 1


def test_threads_and_folder_are_set(pool):
    with pool(make=surroundings, n_threads=2) as workers:
        assert list(workers.map([0])) == [{"threads": "2", "folder": os.getcwd()}]


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_workers_do_not_show(pool, seed):
    with pool() as workers:
        killer, tasks = Killer(workers, seed), []
        killer.start()
        while killer.is_alive():
            batch = [(number, 0.005) for number in range(len(tasks), len(tasks) + 20)]
            tasks += batch
            for result in workers.map(batch):
                killer.results.append(result)
    assert len(killer.killed) == 5
    assert killer.results == squares(tasks)


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("die", "killed by signal 9"),
        ("exit", "ended with exit code 3"),
        pytest.param("hang", "no answer in 1.5 s", marks=pytest.mark.slow),
    ],
)
def test_a_deadly_task_fails_and_the_rest_go_on(pool, tmp_path, deed, reason):
    tasks = [*plain(3), (3, deed), *plain(4, start=4)]
    with pool(tmp_path, timeout_s=1.5 if deed == "hang" else 60) as workers:
        results = list(workers.map(tasks))
    if pool is on_ray and deed != "hang":
        reason = "its worker process has died"
    assert results.pop(3) == Failed(f"3 workers died on it: {reason}")
    assert results == squares(tasks[:3] + tasks[4:])
    assert attempts(tmp_path, 3) == 3


def test_a_death_shows_though_a_child_holds_the_pipe(tmp_path):
    with local(tmp_path) as workers:
        assert list(workers.map([(0, "die with a child")])) == [Failed("3 workers died on it: killed by signal 9")]


@pytest.mark.slow
def test_what_befalls_once_does_not_show(pool, tmp_path):
    tasks = [(0, "die once"), (1, "hang once"), *plain(4, start=2)]
    with pool(tmp_path, timeout_s=1.5) as workers:
        assert list(workers.map(tasks)) == squares(tasks)
    assert attempts(tmp_path, 0) == attempts(tmp_path, 1) == 2


@pytest.mark.slow
def test_an_answer_that_lies_about_is_not_late(pool, tmp_path):
    with pool(tmp_path, timeout_s=1.5) as workers:
        results = workers.map([*plain(2), (2, 0.1), (3, 0.1)])
        assert next(results) == {"square": 0.0}
        time.sleep(2)
        assert list(results) == squares(plain(3, start=1))
    assert all(attempts(tmp_path, number) == 1 for number in range(4))


def test_a_worker_killed_between_tasks_costs_nothing(pool, tmp_path):
    with pool(tmp_path) as workers:
        assert list(workers.map(plain(4))) == squares(plain(4))
        for pid in workers.pids:
            os.kill(pid, signal.SIGKILL)
        assert list(workers.map(plain(4, start=4))) == squares(plain(4, start=4))


def test_what_scoring_raises_reaches_the_caller(pool):
    with pool() as workers:
        with pytest.raises(UserError, match="no objective 1") as caught:
            list(workers.map([(0, ""), (1, "mistake"), (2, "")]))
        assert "toy_scorer.py" in caught.value.__notes__[-1]
        with pytest.raises(ZeroDivisionError):
            list(workers.map([(0, "bug")]))
        with pytest.raises(RuntimeError, match="StrangeError: 0 and strange bug"):
            list(workers.map([(0, "strange bug")]))
        with pytest.raises((AttributeError, TypeError), match="pickle"):
            list(workers.map([(0, "no data")]))
        assert list(workers.map(plain(3))) == squares(plain(3))


def test_an_error_comes_in_its_turn():
    with local() as workers:
        results = workers.map([(0, 0.3), (1, "mistake"), (2, "")])
        assert next(results) == {"square": 0.0}
        with pytest.raises(UserError):
            next(results)


def test_workers_that_cannot_start(pool):
    with pool("mistake") as workers, pytest.raises(UserError, match="no such run"):
        list(workers.map(plain(3)))
    with pool("death") as workers, pytest.raises(UserError, match=r"workers=2 .*3 in a row died "):
        list(workers.map(plain(3)))


def test_workers_that_never_are_ready(monkeypatch):
    monkeypatch.setattr(LocalProcesses, "start_timeout_s", 1.0)
    with local("forever") as workers, pytest.raises(UserError, match=r"^workers=2 .*none has started in 1 s$"):
        list(workers.map(plain(3)))


@pytest.mark.slow
def test_too_few_cpus_for_all_and_for_any(ray_runs, monkeypatch):
    tasks = [(number, 0.01) for number in range(60)]
    with on_ray(n=5) as workers:
        assert list(workers.map(tasks)) == squares(tasks)
        assert 1 <= len(workers.pids) <= 2
    monkeypatch.setattr(RayWorkers, "start_timeout_s", 1.0)
    with on_ray(n_threads=4) as workers, pytest.raises(UserError, match=r"each needs 4 CPUs .*the cluster has 3,"):
        list(workers.map(tasks))


SEARCH = """
import sys
from search.workers import make_workers
from tests.search.toy_scorer import make_scorer
folder, workers, address = sys.argv[1:]
workers = workers if workers == "ray" else int(workers)
settings = dict(n_threads=1, timeout_s=600, ray_address=address or None, ray_workers=2)
with make_workers(workers, make_scorer, folder, **settings) as workers:
    for result in workers.map([(0, ""), (1, "hang"), (2, ""), (3, "hang")]):
        print(result, flush=True)
"""


def start_search(folder, workers, address="", **options):
    command = [sys.executable, "-c", SEARCH, str(folder), workers, address]
    return subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.PIPE, **options)


def end_while_two_hang(folder, way, *settings):
    """Send a signal to a search whose two workers hang, each with a process that it started; all must end."""
    with start_search(folder, *settings) as search:
        wait_for(lambda: attempts(folder, 1) and attempts(folder, 3))
        wait_for(lambda: len(worker_pids(search.pid)) >= 4)
        search.send_signal(way)
        assert search.wait() != 0
        wait_for(lambda: not worker_pids(search.pid))


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_search(tmp_path, way):
    end_while_two_hang(tmp_path, way, "2")


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_the_search_with_its_own_ray(tmp_path, way):
    pytest.importorskip("ray")
    end_while_two_hang(tmp_path, way, "ray")


@pytest.mark.slow
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGINT])
def test_nothing_of_the_search_outlives_it_on_a_cluster(ray_runs, tmp_path, way):
    end_while_two_hang(tmp_path, way, "ray", "auto")
    with ray_runs() as workers:
        assert list(workers.map(plain(3))) == squares(plain(3))


def test_no_such_cluster(tmp_path):
    pytest.importorskip("ray")
    with start_search(tmp_path, "ray", "nowhere", text=True) as search:
        assert "UserError: ray.address=nowhere: Invalid address" in search.communicate()[1]


@pytest.mark.parametrize(
    ("settings", "phrase"),
    [
        ((0, 60, 1), "workers must be 1 or more, or ray, got 0"),
        (("many", 60, 1), "workers must be 1 or more, or ray, got 'many'"),
        ((True, 60, 1), "workers must be"),
        ((2, 0, 1), "worker_timeout_s must be a number above 0, got 0"),
        ((2, None, 1), "worker_timeout_s"),
        (("ray", 60, 0), "ray.workers must be 1 or more, got 0"),
    ],
)
def test_impossible_settings(settings, phrase):
    with pytest.raises(UserError, match=phrase):
        check_workers(*settings)


def test_ray_is_not_installed(monkeypatch):
    monkeypatch.setattr("search.workers.find_spec", lambda name: None)
    check_workers(2, 60, 1)
    with pytest.raises(UserError, match=r"pip install -e '\.\[ray\]'"):
        check_workers("ray", 60, 1)
