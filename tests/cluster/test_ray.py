"""Three Ray nodes as processes of this machine; one is killed in the middle."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from biotune_optuna.schema import ENDED_KEY
from tests.cluster.conftest import Shared, until

cluster_utils = pytest.importorskip("ray.cluster_utils")

TOTAL = 24


@pytest.fixture
def cluster() -> Iterator[cluster_utils.Cluster]:
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield made
    made.shutdown()


def test_a_node_killed_in_the_middle_loses_nothing(
    cluster: cluster_utils.Cluster, shared: Shared
) -> None:
    one, _ = (cluster.add_node(num_cpus=1) for _ in range(2))
    cluster.wait_for_nodes()
    wanted = ["--on", "ray", "--workers", "4", "--trials", str(TOTAL)]
    process = shared.launch(*wanted, RAY_ADDRESS=cluster.address)
    try:
        until(lambda: shared.finished() >= 4, 300)
        before = {t.number: t.value for t in shared.trials() if t.state.is_finished()}
        cluster.remove_node(one, allow_graceful=False)
        said, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, said
    trials = shared.trials()
    good = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(good) == TOTAL
    assert not [t for t in trials if t.state.name == "RUNNING"]
    after = {t.number: t.value for t in trials}
    assert before.items() <= after.items()
    # Workers on three nodes, and no more trials begun anew than were under way on the lost one.
    assert len(shared.holders()) >= 3
    assert sum(t.state.name == "FAIL" for t in trials) <= 2
    assert "workers wait: the cluster has no room for them now" in said  # three nodes of one core


def test_a_node_that_joins_gets_a_worker(cluster: cluster_utils.Cluster, shared: Shared) -> None:
    process = shared.launch(
        *("--on", "ray", "--workers", "2", "--trials", "100000"), RAY_ADDRESS=cluster.address
    )
    try:
        until(lambda: shared.finished() >= 2, 300)
        assert len(shared.holders()) == 1, "the cluster has one core"
        cluster.add_node(num_cpus=1)
        until(lambda: len(shared.holders()) == 2, 300)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, said
    trials = shared.trials()
    assert not [t for t in trials if t.state.name == "RUNNING"]
    ended = {t.system_attrs.get(ENDED_KEY) for t in trials if t.state.name == "FAIL"}
    assert ended <= {"stopped"}


def test_a_journal_is_fine_and_a_file_of_one_machine_is_not(
    cluster: cluster_utils.Cluster, shared: Shared
) -> None:
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    from biotune_optuna.study.study import create_study
    from tests.kit.studies import tiny_spec

    file = f"sqlite:///{shared.folder / 'file.db'}"
    create_study(tiny_spec(), storage=file, name="s")
    process = shared.launch("--on", "ray", RAY_ADDRESS=cluster.address, BIOTUNE_STORAGE=file)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "serves one machine only" in said


def test_a_node_without_the_images_says_so(cluster: cluster_utils.Cluster, shared: Shared) -> None:
    process = shared.launch("--on", "ray", "--data", "nowhere/flowers", RAY_ADDRESS=cluster.address)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "the worker on " in said
    assert "nowhere/flowers" in said.splitlines()[-1]


def test_no_ray_at_that_address(shared: Shared) -> None:
    process = shared.launch("--on", "ray://127.0.0.1:9")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Error: there is no Ray at 127.0.0.1:9; give the head node" in said
