"""What sites differ in, as lines of the sbatch script; test_slurm.py runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bcl_ray.ops.manifests import render
from bcl_ray.ops.manifests.platforms import Slurm

SHELLCHECK = Path(sys.executable).parent / "shellcheck"


def sbatch(description, **site) -> str:
    slurm = Slurm.model_validate(description.slurm.model_dump() | site)
    return render("slurm", description.model_copy(update={"slurm": slurm}))["train.sbatch"]


def options(script: str) -> set[str]:
    return set(re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE))


@pytest.mark.parametrize(
    ("site", "there", "gone"),
    [
        ({}, {"--exclusive", "--mem=0", "--gpus-per-node=2", "--requeue"}, set()),
        ({"gres": "gpu:a100:2"}, {"--gres=gpu:a100:2"}, {"--gpus-per-node=2"}),
        (
            {"exclusive": False, "cpus_per_node": 8, "memory_gib": 64},
            {"--cpus-per-task=8", "--mem=64G"},
            {"--exclusive", "--mem=0"},
        ),
        ({"exclusive": False, "cpus_per_node": 8}, {"--cpus-per-task=8"}, {"--mem=0"}),
        (
            {"partition": "gpu", "account": "me", "qos": "long", "reservation": "course"},
            {"--partition=gpu", "--account=me", "--qos=long", "--reservation=course"},
            set(),
        ),
        ({"constraint": "a100&(ib|opa)"}, {"--constraint=a100&(ib|opa)"}, set()),
        ({"lines": ["--licenses=scratch", "-x n7"]}, {"--licenses=scratch", "-x n7"}, set()),
    ],
)
def test_what_a_site_wants_is_asked_of_slurm(description, site, there, gone):
    found = options(sbatch(description, **site))
    assert there <= found
    assert not gone & found


def test_a_container_an_interface_and_a_folder_go_where_they_act(description):
    image = "apptainer exec --nv /images/bcl-ray.sif"
    script = sbatch(description, container=image, interface="ib0", tmp="/local")
    assert f"--ntasks=1 {image} \\\n  bcl-ray plan " in script
    assert f"--wait=60 {image} \\\n  python -m bcl_ray.ops.slurm" in script
    assert " --interface=ib0 " in script
    assert "RAY_TMPDIR=/local/ray-$SLURM_JOB_ID" in script


def test_a_folder_is_one_word_of_the_script_whatever_it_is_called(description):
    assert "\njobs='/data/a&b;c'/jobs " in sbatch(description, folder="/data/a&b;c")


def test_shellcheck_finds_nothing_in_any_of_them(description, tmp_path):
    file = tmp_path / "train.sbatch"
    site = {"container": "--container-image=/images/bcl-ray.sqsh", "interface": "ib0"}
    site |= {"exclusive": False, "cpus_per_node": 8, "lines": ["--licenses=scratch"], "setup": []}
    file.write_text(sbatch(description, **site))
    done = subprocess.run([SHELLCHECK, file], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"exclusive": False}, "slurm.exclusive=false needs slurm.cpus_per_node"),
        ({"gres": "gpu:a100:4"}, "slurm.gres (gpu:a100:4) asks for 4 GPUs, slurm.gpus_per_node is"),
        ({"gres": "lustre:1"}, "slurm.gres (lustre:1) asks for 0 GPUs"),
        ({"tmp": "/a/folder/with/a/long/name"}, "at most 24 characters"),
        ({"lines": ["scratch"]}, "should match pattern"),
    ],
)
def test_what_slurm_or_ray_would_refuse_is_refused_before(description, site, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sbatch(description, **site)
