"""The rendered IAM policies, enforced by a real server: what each role needs passes, no more.

Ceph's gateway evaluates IAM policies; AWS itself was not asked.
"""

import json
import re
import secrets

import pytest
from botocore.exceptions import ClientError

from bcl_ray.ops.manifests import render
from bcl_ray.storage import files, s3

ALL = frozenset(s3.ACTIONS)
LOOK = frozenset({"list", "read"})
on_ceph = pytest.mark.parametrize("s3_server", ["ceph"], indirect=True)

# What a run does where: README's commands on a cluster, by role and folder.
NEEDED = [
    ("head", "shards", ALL),
    ("head", "runs", ALL),
    ("head", "predictions", ALL),
    ("head", "images", LOOK),
    ("worker", "shards", ALL),
    ("worker", "runs", ALL),
    ("worker", "predictions", LOOK),
    ("worker", "images", LOOK),
    ("mlflow", "mlflow", ALL),
]
REFUSED = [
    ("head", "mlflow"),
    ("head", "images"),
    ("head", "elsewhere"),
    ("worker", "predictions"),
    ("worker", "mlflow"),
    ("mlflow", "runs"),
    ("mlflow", "shards"),
]


@pytest.fixture
def become(bucket, description, monkeypatch):
    """A function that makes this process one of the roles, as the server knows them."""
    name = s3.parse_uri(bucket.uri).bucket
    store = description.object_store.model_copy(
        update={"uri": f"{bucket.uri}/bcl-ray", "sources": (f"{bucket.uri}/bcl-ray/images",)}
    )
    changed = description.model_copy(update={"object_store": store})
    for folder in ("shards", "runs", "predictions", "mlflow", "images", "elsewhere"):
        files.write_bytes(f"{bucket.uri}/bcl-ray/{folder}/there", b"x")
    keys, statements = {}, []
    rendered = render("kuberay", changed)
    for role in ("head", "worker", "mlflow"):
        document = json.loads(rendered[f"policies/{role}.json"])
        user = f"{role}-{secrets.token_hex(4)}"
        keys[role] = (user, secrets.token_hex(20))
        made = ("--uid", user, "--display-name", user)
        made += ("--access-key", user, "--secret-key", keys[role][1])
        bucket.server._run("radosgw-admin", "-n", "client.rgw", "user", "create", *made)
        who = {"AWS": [f"arn:aws:iam:::user/{user}"]}
        statements += [{**statement, "Principal": who} for statement in document["Statement"]]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    bucket.client.put_bucket_policy(Bucket=name, Policy=policy)

    def become(role):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[role][0])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[role][1])
        return f"{bucket.uri}/bcl-ray"

    return become


@on_ceph
def test_each_role_may_do_what_it_does_and_no_more(become):
    for role, folder, actions in NEEDED:
        root = become(role)
        assert s3.check_access(f"{root}/{folder}", actions) == [], (role, folder)
        assert files.exists(f"{root}/{folder}/there")
        assert not files.exists(f"{root}/{folder}/gone"), "and not: access denied"
    for role, folder in REFUSED:
        root = become(role)
        problems = s3.check_access(f"{root}/{folder}", {"write"})
        assert "must not write" in " ".join(problems), (role, folder)
        # Not by our storage, which asks again for half a minute: a denial may be a server's haste.
        place = s3.parse_uri(f"{root}/{folder}/there")
        with pytest.raises(ClientError, match="AccessDenied"):
            s3.client(place).delete_object(Bucket=place.bucket, Key=place.key)


def interrupted(file):
    with files.open_write(file) as sink:
        sink.write(b"y" * 20 * 2**20)
        raise RuntimeError("interrupted")


@on_ceph
def test_files_of_many_parts_are_written_replaced_and_deleted_with_a_worker_s_policy(become):
    root = become("worker")
    file = f"{root}/runs/first/checkpoint/state.pt"
    for size in (1, 20 * 2**20):
        files.write_bytes(file, b"x" * size)
        assert files.list_files(f"{root}/runs/first/checkpoint") == {"state.pt": size}
    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted(file)
    # One by one: Ceph asks for the whole bucket where many are deleted at once, AWS for each.
    files.delete(file)
    assert not files.exists(file)


def test_policies_are_written_for_pods_and_for_nodes(description):
    kubernetes, aws = render("kuberay", description), render("aws", description)
    names = {name for name in kubernetes if name.startswith("policies/")}
    assert names == {"policies/head.json", "policies/worker.json", "policies/mlflow.json"}
    assert {name for name in aws if name.startswith("policies/")} == names - {
        "policies/mlflow.json"
    }, "MLflow runs on the head"
    for text in (kubernetes["policies/worker.json"], aws["policies/worker.json"]):
        assert "ec2:" not in text
        assert "iam:" not in text
    changes = [
        statement["Condition"]["StringEquals"]
        for statement in json.loads(aws["policies/head.json"])["Statement"]
        if {"ec2:TerminateInstances", "ec2:CreateTags"} & {*statement["Action"]}
    ]
    assert changes == [
        {"ec2:CreateAction": "RunInstances"},
        {"ec2:ResourceTag/ray-cluster-name": "bcl-ray"},
    ], "a head that may tag every instance may end every instance"


@pytest.mark.parametrize(
    ("region", "partition"),
    [("eu-central-1", "aws"), ("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov")],
)
def test_policies_name_resources_in_the_partition_of_the_region(description, region, partition):
    store = description.object_store.model_copy(update={"region": region})
    changed = description.model_copy(update={"object_store": store})
    for target in ("kuberay", "aws"):
        texts = [
            text for name, text in render(target, changed).items() if name.startswith("policies/")
        ]
        found = set(re.findall(r'"arn:([^:]+):', "".join(texts)))
        assert found == {partition}, target


def test_without_roles_there_are_no_policies(description):
    store = description.object_store.model_copy(update={"roles": None})
    rendered = render("kuberay", description.model_copy(update={"object_store": store}))
    assert not [name for name in rendered if name.startswith("policies/")]
