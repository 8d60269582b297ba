import re

import pytest
import yaml
from pydantic import BaseModel

from bcl_ray.machine.errors import UserError
from bcl_ray.ops.manifests import read
from bcl_ray.ops.manifests.capacity import machines_of
from bcl_ray.ops.manifests.description import ClusterDescription
from tests.cluster.conftest import ROOT
from tests.cluster.test_rules import broken

EXAMPLE = ROOT / "cluster" / "cluster.yaml"


def sections(model=ClusterDescription):
    for field in model.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield kind
                yield from sections(kind)


@pytest.mark.parametrize("section", [*sections()], ids=lambda section: section.__name__)
def test_every_field_has_a_description(section):
    fields = section.model_fields.items()
    assert [name for name, field in fields if not field.description] == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("jbo", {}, "no field 'jbo'; did you mean 'job'?"),
        ("gpu.gpu", 1, "no field 'gpu.gpu'; did you mean 'gpus'?"),
        ("queue.name", "x", "no field 'queue.name'; known: cluster_queue, elastic"),
        ("job.recipe", None, "field 'job.recipe' is missing"),
        ("job.recipe", "imagenet", "job.recipe 'imagenet' is no recipe: did you mean"),
        ("job.overrides", ["loss.tua=1"], "job: no option 'loss.tua'"),
        ("job.overrides", ["tracking.run=a"], "job.overrides must not set tracking.run: it"),
        ("job.run", "A run", "job.run=A run: string should match pattern"),
        ("job.workers", 3, "job: optim.global_batch_size (256) must be divisible by scale.workers"),
        ("job.workers", 8, "job.workers (8) is more than gpu.steady_nodes and gpu.spot_nodes have"),
        ("slurm.nodes", 0, "slurm.nodes=0: input should be greater than or equal to 1"),
        ("slurm.folder", "/a b", "slurm.folder=/a b: string should match pattern"),
        ("data.min_nodes", 3, "data.min_nodes (3) must be at most data.max_nodes (2)"),
        ("gpu.steady_nodes", 0, "gpu.steady_nodes=0: input should be greater than or equal to 1"),
        ("name", "x" * 41, f"name={'x' * 41}: string should have at most 40 characters"),
        ("ray_version", "2.51.0", "ray_version (2.51.0) must be at least 2.52.0"),
        ("image.cpu", "bcl-ray", "image.cpu=bcl-ray must end in a tag other than latest"),
        ("image.gpu", "host:5000/x:latest", "image.gpu=host:5000/x:latest must end in a tag"),
        ("object_store.uri", "gs://x", "object_store.uri=gs://x: string should match pattern"),
        ("object_store.endpoint", "minio", "object_store.endpoint=minio must be an http(s)://"),
        ("object_store.secret", "s3", "object_store.roles and object_store.secret are two"),
        (
            "object_store.uri",
            "file:///mnt/shared",
            "object_store.roles need object_store.uri (file:///mnt/shared) to be s3://",
        ),
        ("tracking.admin_secret", "mlflow", "tracking.secret (mlflow) must not be tracking.admin"),
        ("jobs.shard", "list 'x", "jobs.shard=list 'x cannot be split into words"),
        ("aws.image_id", "latest_dlami", "aws.image_id=latest_dlami: string should match pattern"),
        ("aws.image_id", None, "field 'aws.image_id' is missing"),
        ("aws.login", ["docker login -p x h"], "aws.login.0=docker login -p x h must not hold a"),
        ("aws.security_group_ids", [], "aws.security_group_ids=[]: tuple should have at least 1"),
    ],
)
def test_a_wrong_field_is_named_with_its_rule(tmp_path, path, value, message):
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(broken(yaml.safe_load(EXAMPLE.read_text()), path, value)))
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {message}')}"):
        read(file)


def test_a_secret_in_an_address_is_refused_and_not_shown(tmp_path):
    content = yaml.safe_load(EXAMPLE.read_text())
    content["tracking"]["uri"] = "https://me:hunter2@mlflow.example.com"
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"tracking.uri must be an http") as refused:
        read(file)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("text", ["- a", "a: [", ""])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(
        ValueError, match=r"cluster.yaml (must be a YAML mapping|is not valid YAML)"
    ):
        read(file)


def test_a_file_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    message = r"cluster.yaml is not UTF-8 text: name a description with --description"
    with pytest.raises(UserError, match=message):
        read(file)


def test_workers_may_be_a_range(tmp_path):
    content = broken(yaml.safe_load(EXAMPLE.read_text()), "job.workers", [1, 4])
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    assert read(file).job.scale == "scale.workers=[1, 4]"
    assert read(file).job.experiment().scale.workers == (1, 4)


@pytest.mark.parametrize(
    ("cpus_per_worker", "workers", "fits"),
    [(0.5, 8, True), (1, 4, True), (1, 8, False), (8, 1, False)],
)
def test_cpu_nodes_have_room_for_as_many_workers_as_their_cpus_allow(
    tmp_path, cpus_per_worker, workers, fits
):
    content = yaml.safe_load(EXAMPLE.read_text())
    content["gpu"] |= {"gpus": 0, "cpus": 4, "steady_nodes": 1, "spot_nodes": 0}
    content["job"] |= {
        "workers": workers,
        "overrides": [f"scale.cpus_per_worker={cpus_per_worker}"],
    }
    del content["slurm"]
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    if fits:
        experiment = read(file).job.experiment()
        assert machines_of(read(file), experiment).worker_nodes == 1
        return
    with pytest.raises(ValueError, match=rf"job.workers \({workers}\) is more than gpu.steady"):
        read(file)


def test_rounding_loses_no_worker_of_a_node(description):
    node = description.gpu.model_copy(update={"gpus": 0, "cpus": 4})
    scale = description.job.experiment().scale
    for cpus_per_worker, workers in ((0.1, 40), (0.3, 13), (3, 1)):
        changed = scale.model_copy(update={"cpus_per_worker": cpus_per_worker})
        assert node.workers_per_node(changed) == workers
