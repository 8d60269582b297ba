"""`bcl-ray plan` for machines that are not here, and for a run that has begun."""

import json
import re

import pytest

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import imagenet_lt
from bcl_ray.runs import run_folder
from bcl_ray.runs.run_folder import local_folder
from tests.cli.test_cli import bcl_ray  # noqa: F401  (a fixture)
from tests.cluster.conftest import ROOT

CLUSTER = str(ROOT / "cluster" / "cluster.yaml")


def forecast(call, *arguments: str) -> dict:
    status, out, error = call("plan", *arguments, "--json")
    assert (status, error) == (0, "")
    return json.loads(out)["forecast"]


@pytest.fixture
def run(tmp_path):
    """A run of ImageNet-LT on four workers, of which two epochs are recorded."""
    experiment = with_overrides(imagenet_lt(), [f"tracking.runs={tmp_path}", "scale.workers=4"])
    made = run_folder.create(str(tmp_path / "mine"), experiment, "f" * 64)
    for epoch in range(2):
        values = {
            "throughput/images_per_second": 1000.0 + epoch,
            "time/data_share": 1.0,
            "time/checkpoint": 2.0,
            "time/evaluate": 20.0,
            "scale/workers": 4.0,
        }
        entry = {"kind": "metrics", "epoch": epoch, "values": values}
        with (local_folder(made) / "journal.jsonl").open("a") as journal:
            journal.write(json.dumps(entry) + "\n")
    return tmp_path


@pytest.mark.slow
def test_the_rest_of_a_run_is_planned_from_its_last_epoch_that_trained(bcl_ray, run):  # noqa: F811
    before = forecast(bcl_ray, str(run / "mine"))
    false_rates = {"throughput/images_per_second": 0.0, "time/data_share": 0.0}
    for epoch, rates in ((2, false_rates), (3, {})):
        entry = {"kind": "metrics", "epoch": epoch, "values": {"scale/workers": 4.0} | rates}
        with (run / "mine" / "journal.jsonl").open("a") as journal:
            journal.write(json.dumps(entry) + "\n")
        found = forecast(bcl_ray, str(run / "mine"))
        assert found["epochs"] == 90 - epoch - 1
        assert found["images_per_second"] == before["images_per_second"]


def test_a_cluster_is_planned_for_from_its_description_and_without_shards(bcl_ray):  # noqa: F811
    status, out, error = bcl_ray("plan", "imagenet_lt", "--cluster", CLUSTER)
    assert (status, error) == (0, "")
    for text in ("4 workers with a l4 each, 6 nodes, 58 CPUs", "no shards in data/imagenet_lt"):
        assert text in out
    last = out.splitlines()[-1]
    assert re.match(r"limited by workers \([\d,]+ images/s\); faster with: more workers", last)


@pytest.mark.slow
def test_gpus_are_workers_and_more_of_them_are_faster(bcl_ray):  # noqa: F811
    options = ("--gpu", "h100", "--cpus", "1000")
    one, eight = (forecast(bcl_ray, "imagenet_lt", "--gpus", n, *options) for n in ("1", "8"))
    assert eight["images_per_second"] == pytest.approx(8 * one["images_per_second"], rel=0.05)
    assert eight["hours"] < one["hours"] / 6


@pytest.mark.slow
def test_small_images_stay_on_the_gpu_and_large_ones_do_not(bcl_ray):  # noqa: F811
    options = ("--gpus", "1", "--gpu", "h200")
    small, large = (forecast(bcl_ray, name, *options) for name in ("cifar100_lt", "imagenet_lt"))
    names = [{limit["name"] for limit in found["limits"]} for found in (small, large)]
    assert "data CPUs" not in names[0]
    assert "data CPUs" in names[1]


@pytest.mark.slow
def test_a_price_of_ones_own_replaces_the_assumption(bcl_ray):  # noqa: F811
    options = ("imagenet_lt", "--gpus", "8", "--gpu", "h100")
    cheap, dear = (forecast(bcl_ray, *options, "--price", price) for price in ("1", "3"))
    assert dear["cost"] - cheap["cost"] == pytest.approx(2 * 8 * cheap["hours"])


@pytest.mark.slow
def test_a_run_is_planned_for_by_what_it_has_recorded(bcl_ray, run):  # noqa: F811
    status, out, error = bcl_ray("plan", "mine", "--runs", str(run))
    assert (status, error) == (0, "")
    assert "measured: run mine, epoch 2, 4 workers" in " ".join(re.sub("│", " ", out).split())
    found = forecast(bcl_ray, "mine", "--runs", str(run))
    assert found["images_per_second"] == pytest.approx(1001 / 0.99)
    assert (found["epochs"], found["cost"]) == (88, None)
    on_eight = ("--gpus", "8", "--gpu", "h100", "--cpus", "1000")
    moved = forecast(bcl_ray, "mine", "--runs", str(run), *on_eight)
    assert moved["limits"][0]["images_per_second"] == pytest.approx(2 * 1001 / 0.99)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("imagenet_lt --gpus 8", "a forecast needs --cluster FILE, or --gpus N and --gpu KIND"),
        ("imagenet_lt --price 3", "a forecast needs --cluster FILE, or --gpus N and --gpu KIND"),
        ("imagenet_lt --gpus 8 --gpu x", "--gpu x must be one of b200, h200, h100, a100"),
        ("imagenet_lt --gpus 7 --gpu h100", "optim.global_batch_size (256) must be divisible by"),
        (
            "imagenet_lt --cluster {cluster} scale.workers=8",
            "scale.workers (8) is more than gpu.steady_nodes and gpu.spot_nodes of the description "
            "have room for (4): raise one of them, or lower scale.workers",
        ),
        (
            "mine --runs {run} optim.lr=1",
            "'mine' is a run, whose options stay: leave out optim.lr=1",
        ),
        ("gone --runs {run}", "'gone' is no recipe and no .yaml file"),
    ],
)
def test_what_cannot_be_forecast_is_refused_in_one_line(bcl_ray, run, arguments, message):  # noqa: F811
    words = arguments.format(cluster=CLUSTER, run=run).split()
    status, out, error = bcl_ray("plan", *words)
    assert (status, out) == (2, "")
    assert error.startswith(f"bcl-ray: {message}")
    assert error.count("\n") == 1


def test_the_cluster_of_another_instance_type_needs_the_name_of_its_gpu(bcl_ray, tmp_path):  # noqa: F811
    text = (ROOT / "cluster" / "cluster.yaml").read_text().replace("g6.2xlarge", "x9.large")
    (tmp_path / "mine.yaml").write_text(text)
    command = ("imagenet_lt", "--cluster", str(tmp_path / "mine.yaml"))
    status, _, error = bcl_ray("plan", *command)
    assert status == 2
    assert "gpu.instance_type 'x9.large' is none whose GPU is known here: name the GPU" in error
    assert forecast(bcl_ray, *command, "--gpu", "a100")["images_per_second"] > 0
