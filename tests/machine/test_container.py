import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from bcl_ray.machine import container
from bcl_ray.runs import budget

MIB, GIB = 2**20, 2**30
V1 = Path("/sys/fs/cgroup")
PROGRAM = """
import json, os, sys, time
for folder in sys.argv[1:]:
    with open(f"{folder}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
from bcl_ray.machine import container
from bcl_ray.ray_runtime import node_metrics
from bcl_ray.runs import budget
node_metrics.SAMPLE_INTERVAL = 3600  # samples are taken on request only
held = bytearray(os.urandom(1 << 20) * 150)
sampler = node_metrics.NodeSampler()
begun, used = time.monotonic(), container.cpu_share().used
while time.monotonic() < begun + 2:
    pass
seconds = time.monotonic() - begun
print(json.dumps({
    "took": container.cpu_share().used - used, "seconds": seconds, "metrics": sampler.take(),
    "cpu": container.cpu_share(), "cpus": container.cpus(), "memory": container.memory_share(),
    "machine": budget.this_machine(),
}), flush=True)
sys.stdin.read()  # while the files of the group are looked at
"""


def remove(folder):
    """Remove a control group; its last process must have been waited for."""
    folder.rmdir()


@pytest.fixture
def group():
    """A real control group of version 1: 400 MiB, and half a CPU."""
    name = f"bcl-ray-{uuid.uuid4().hex[:8]}"
    limits = {
        "memory": {"memory.limit_in_bytes": 400 * MIB},
        "cpu": {"cpu.cfs_period_us": 100_000, "cpu.cfs_quota_us": 50_000},
        "cpuacct": {},
    }
    folders = []
    try:
        for controller, files in limits.items():
            folder = V1 / controller / name
            folder.mkdir()
            folders.append(folder)
            for file, value in files.items():
                (folder / file).write_text(str(value))
    except OSError as error:
        pytest.skip(f"no control group of version 1 can be made here, only by root: {error}")
    else:
        yield folders
    finally:
        for folder in folders:
            remove(folder)


@pytest.mark.slow
def test_a_process_in_a_control_group_sees_the_groups_memory_and_cpus_not_the_machines(group):
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, group)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = child.stdout.readline()
        used = int((group[0] / "memory.usage_in_bytes").read_text())
        spent = int((group[2] / "cpuacct.usage").read_text()) / 1e9
    finally:
        child.communicate()
    report = json.loads(line)
    limit, in_use = report["memory"]
    assert limit == 400 * MIB
    assert 150 * MIB <= in_use <= used + 20 * MIB, "what it holds; the kernel counts in batches"
    assert report["metrics"]["memory_percent"] == pytest.approx(100 * in_use / limit, abs=10)
    assert report["cpu"][0] == 0.5
    assert report["cpu"][1] == pytest.approx(spent, abs=0.5)
    assert report["took"] <= 0.6 * report["seconds"], "the kernel gives it half a CPU"
    assert report["metrics"]["cpu_percent"] == pytest.approx(
        100 * report["took"] / report["seconds"] / 0.5, abs=15
    )
    assert report["cpus"] == 1, "no fewer than one"
    assert report["machine"][0] == 1
    assert report["machine"][1] <= budget.STORE_SHARE * 400 * MIB


@pytest.mark.slow
def test_cpu_seconds_agree_with_a_real_group_of_version_2():
    at = V1 / "unified" if (V1 / "unified").is_dir() else V1
    folder = at / f"bcl-ray-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of version 2 can be made here, only by root: {error}")
    try:
        program = (
            "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); sum(range(10**7))"
        )
        before = os.times()
        subprocess.run([sys.executable, "-c", program, folder / "cgroup.procs"], check=True)
        after = os.times()
        spent = after.children_user - before.children_user
        counted = container._fields([folder], "cpu.stat")["usage_usec"] / 1e6
        assert counted == pytest.approx(spent, abs=0.3)
    finally:
        remove(folder)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 64 CPUs and 256 GiB whose control groups are files in a folder."""
    monkeypatch.setattr(container.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(container.os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setattr(container, "_machine_bytes", lambda: 256.0 * GIB)
    monkeypatch.setattr(container, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(container, "MOUNTS", tmp_path / "mounts")

    def make(groups, mounts, files):
        (tmp_path / "groups").write_text(groups)
        (tmp_path / "mounts").write_text(
            "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
            + "".join(line.format(tmp_path) + "\n" for line in mounts)
        )
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return make


V2_MOUNT = "30 22 0:26 / {}/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate"
CPU_STAT = "usage_usec 7500000\nuser_usec 7000000\nsystem_usec 500000\nnr_periods 0\n"
POD = {
    "cgroup/cpu.max": "150000 100000\n",
    "cgroup/cpu.stat": CPU_STAT,
    "cgroup/cpuset.cpus.effective": "0-63\n",
    "cgroup/memory.max": f"{8 * GIB}\n",
    "cgroup/memory.current": f"{3 * GIB}\n",
    "cgroup/memory.stat": f"anon {2 * GIB}\nfile {GIB}\ninactive_file {GIB}\nactive_file 0\n",
}


def test_a_pod_has_the_limits_of_its_own_group(machine):
    machine("0::/\n", [V2_MOUNT], POD)
    assert container.cpu_share() == (1.5, 7.5)
    assert container.memory_share() == (8 * GIB, 2 * GIB), "without the files' pages that lie idle"
    assert container.cpus() == 1.5
    assert container.memory_bytes() == 8 * GIB


def test_a_pod_without_limits_has_what_its_node_has(machine):
    free = {"cgroup/cpu.max": "max 100000\n", "cgroup/memory.max": "max\n"}
    machine("0::/\n", [V2_MOUNT], {**POD, **free})
    assert container.cpu_share() is None
    assert container.memory_share() is None
    assert container.cpus() == 64
    assert container.memory_bytes() == 256 * GIB


def test_a_cpuset_limits_cpus_like_a_quota(machine):
    bound = {"cgroup/cpu.max": "max 100000\n", "cgroup/cpuset.cpus.effective": "0-2,32\n"}
    machine("0::/\n", [V2_MOUNT], {**POD, **bound})
    assert container.cpu_share() == (4, 7.5)


def test_of_nested_groups_the_lowest_limit_counts(machine):
    step = {
        "cgroup/job_1/memory.max": f"{4 * GIB}\n",
        "cgroup/job_1/memory.current": f"{GIB}\n",
        "cgroup/job_1/cpu.max": "400000 100000\n",
        "cgroup/job_1/cpu.stat": CPU_STAT,
        "cgroup/job_1/step_0/memory.max": f"{6 * GIB}\n",
        "cgroup/job_1/step_0/memory.current": f"{GIB // 2}\n",
        "cgroup/job_1/step_0/cpu.max": "max 100000\n",
    }
    machine("0::/job_1/step_0\n", [V2_MOUNT], step)
    assert container.memory_share() == (4 * GIB, GIB)
    assert container.cpu_share() == (4, 7.5)


V1_GROUP = "docker/0123"
V1_FILES = {
    "memory/memory.limit_in_bytes": f"{2 * GIB}\n",
    "memory/memory.usage_in_bytes": f"{GIB}\n",
    "memory/memory.stat": "cache 0\ninactive_file 1\ntotal_inactive_file 1048576\n",
    "cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
    "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "cpu,cpuacct/cpuacct.usage": "1500000000\n",
    "cpu,cpuacct/cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n",
}
V1_GROUPS = f"5:memory:/{V1_GROUP}\n4:cpu,cpuacct:/{V1_GROUP}\n2:pids:/{V1_GROUP}\n0::/\n"


def mounted(root):
    return [
        f"40 22 0:30 {root} {{}}/memory rw - cgroup cgroup rw,memory",
        f"41 22 0:31 {root} {{}}/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
    ]


@pytest.mark.parametrize("root", [f"/{V1_GROUP}", "/../elsewhere"])
def test_in_a_container_of_version_1_the_group_is_the_mount(machine, root):
    machine(V1_GROUPS, mounted(root), V1_FILES)
    assert container.memory_share() == (2 * GIB, GIB - MIB)
    assert container.cpu_share() == (2.5, 1.5)


def test_in_a_job_of_version_1_the_group_is_below_the_mount(machine):
    below = {name.replace("/", f"/{V1_GROUP}/"): text for name, text in V1_FILES.items()}
    machine(V1_GROUPS, mounted("/"), below)
    assert container.memory_share() == (2 * GIB, GIB - MIB)
    assert container.cpu_share() == (2.5, 1.5)


def test_the_number_for_no_limit_in_version_1_is_no_limit(machine):
    free = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    }
    machine(V1_GROUPS, mounted(f"/{V1_GROUP}"), {**V1_FILES, **free})
    assert container.memory_share() is None
    assert container.cpu_share() is None


def test_without_control_groups_the_whole_machine_may_be_used(machine):
    machine("", [], {})
    assert (container.cpu_share(), container.memory_share()) == (None, None)
    assert container.cpus() == 64
