"""``run`` on clusters: nodes and workers of Ray are killed, tasks of Dask, and each row is still there once.

The kinds of faults: a run that waits for ever for a node that is gone, rows that are missing or there twice.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import numpy as np
import pytest

import repvgg_zoo
from repvgg_zoo.data.ray_data import BatchPredictor
from repvgg_zoo.errors import DependencyError, WorkerLostError

from . import runs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_digits(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster whose head has no cores, so that all workers are on other nodes, which can be killed."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ["PYTHONPATH"] = str(runs.ROOT)  # of the nodes' workers
    running = start(Cluster, initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield running
    running.shutdown()
    os.environ.clear()
    os.environ.update(before)


def start(function: Callable[..., Any], **options: Any) -> Any:
    """Start a node, or skip the test: Ray gives it 30 seconds, which a busy machine may exceed."""
    try:
        return function(**options)
    except Exception as error:
        if "timed out during startup" in str(error):
            pytest.skip("a Ray node does not start in 30 seconds on this machine")
        raise


def run_on(cluster: Any, source: Any, output: Path, **options: Any) -> Any:
    return repvgg_zoo.run(
        "predict", source, output, model="RepVGG_N0", engine="ray", address=cluster.address, **options
    )


@pytest.mark.slow
def test_ray_loses_a_worker_a_node_and_the_driver_and_each_row_is_there_once(
    cluster: Any, images: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "output", tmp_path / "log"
    nodes = [start(cluster.add_node, num_cpus=1) for _ in range(2)]
    driver = runs.start_driver(images, output, log, "ray", cluster.address)
    runs.wait_for_records(output, 2)
    driver.kill()
    driver.wait()
    finished = len(list(output.glob("0*.json")))

    def kill_node() -> None:
        runs.wait_for_records(output, finished + 1)
        cluster.remove_node(nodes[0], allow_graceful=False)

    killer = threading.Thread(target=kill_node)
    killer.start()
    source = runs.logged(images, log, seconds=0.5)
    last = source.shards[-1]
    killing = runs.LoggedShard(last.shard, log, 0.5, kill_once=tmp_path / "killed")
    source = type(source)(source.name, (*source.shards[:-1], killing), source.class_names)
    report = run_on(cluster, source, output)
    killer.join()
    cluster.remove_node(nodes[1])
    assert (tmp_path / "killed").exists()
    assert report.images == runs.IMAGES and runs.keys(output) == runs.all_keys(images)
    # The driver's two workers, the node's, and the one that was killed.
    assert len(runs.begun(log)) <= runs.SHARDS + 4


@pytest.mark.slow
def test_a_cluster_without_a_free_core_is_an_error_and_no_wait(cluster: Any, images: Path, tmp_path: Path) -> None:
    import ray

    from repvgg_zoo.data.engines.ray_core import distribute
    from repvgg_zoo.data.sources import open_images
    from repvgg_zoo.data.tasks import Plan, Task

    plan = Plan("predict", "RepVGG_N0", "", "csv", {}, str(tmp_path), "")
    (shard,) = open_images(images).shards
    tasks = [Task(0, shard, shard.digest())]
    with pytest.raises(WorkerLostError, match="no worker has started in 1 s"):
        list(distribute(plan, tasks, 1, cluster.address, start_timeout=1.0))
    assert not ray.is_initialized()


@pytest.mark.slow
def test_dask_loses_a_worker_and_each_row_is_there_once(images: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        source = runs.logged(images, tmp_path / "log", kill_once=tmp_path / "killed")
        report = repvgg_zoo.run(
            "predict", source, tmp_path / "output", model="RepVGG_N0", engine="dask", address=cluster.scheduler_address
        )
    assert (tmp_path / "killed").exists()
    assert report.images == runs.IMAGES and runs.keys(tmp_path / "output") == runs.all_keys(images)


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_an_engine_whose_package_is_missing_says_what_to_install(
    engine: str, package: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError) as caught:
        repvgg_zoo.run("predict", images, tmp_path / "output", model="RepVGG_N0", engine=engine)
    assert f"repvgg-zoo[{engine}]" in str(caught.value.hint) and not (tmp_path / "output").exists()


BATCHES: Dict[str, Any] = {
    "encoded files": lambda paths: np.array([path.read_bytes() for path in paths], object),
    "arrays": lambda paths: np.stack([np.asarray(repvgg_zoo.image.io.load_image(path, "RGB")) for path in paths]),
}


@pytest.mark.parametrize("images_of", BATCHES.values(), ids=BATCHES)
def test_the_callable_of_ray_data_predicts_a_batch_in_another_thread(images_of: Any, images: Path) -> None:
    paths = sorted(images.rglob("*.png"))[:5]
    predictor = BatchPredictor("RepVGG_N0", topk=2)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(predictor({"image": images_of(paths), "key": np.arange(5)}))
    )
    thread.start()
    thread.join()
    (batch,) = results
    assert sorted(batch) == ["index", "key", "label", "probability"]
    expected = repvgg_zoo.predict("RepVGG_N0", list(paths), topk=2)
    assert batch["label"].tolist() == [[one.label for one in row] for row in expected]
