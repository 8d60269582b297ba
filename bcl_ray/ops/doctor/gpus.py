"""GPUs of one machine: that driver, PyTorch and Ray agree, and that a tensor reaches each of them.

    python -m bcl_ray.ops.doctor.gpus    # what PyTorch sees, as JSON

That runs in a process of its own: Ray hides GPUs from tasks that ask for none, CUDA keeps what a
process first sees, and a driver that hangs takes the process that asks along.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bcl_ray.machine.errors import UserError

SECONDS = 35.0  # for all of it: PyTorch takes some 10 to import where a node has work
# The first driver of each major version of CUDA: NVIDIA, "CUDA Compatibility", table of minor
# version compatibility. Within a major version, a driver runs what is newer.
LEAST_DRIVER = {11: "450", 12: "525", 13: "580"}


@dataclass(frozen=True)
class Driver:
    """What nvidia-smi says.

    Args:
        gpus: that it lists.
        version: of the driver; empty where it says none, so also cuda.
        cuda: the newest version of CUDA that the driver runs.
    """

    gpus: int
    version: str = ""
    cuda: str = ""


@dataclass(frozen=True)
class Seen:
    """What PyTorch says.

    Args:
        torch: its version.
        cuda: that it is built for; None: for CPUs.
        names: of the GPUs that took a tensor.
        problem: the first error; empty where there is none.
    """

    torch: str
    cuda: str | None
    names: list[str] = field(default_factory=list)
    problem: str = ""


def gpus(promised: float | None) -> str:
    """That all GPUs of this machine can be trained on.

    Args:
        promised: those that Ray counts on this node; None where it is no node.

    Raises:
        ValueError: what does not fit together, and what to do.
        OSError: nvidia-smi fails.
    """
    driver = ask_driver()
    if promised is not None and int(promised) != driver.gpus:
        raise UserError(
            f"nvidia-smi sees {driver.gpus}, and Ray counts {promised:g}: start the node with "
            f"--num-gpus {driver.gpus}, or give the container its GPUs"
        )
    return verdict(driver, ask_torch()) if driver.gpus else "none: training runs on CPUs"


def verdict(driver: Driver, seen: Seen) -> str:
    """Whether driver and PyTorch go together.

    Raises:
        ValueError: they do not; with what to do.
    """
    if seen.cuda is None:
        raise UserError(
            f"{driver.gpus} there, and PyTorch {seen.torch} is built for CPUs: install a PyTorch "
            "with CUDA (an image built with DEVICE=gpu; `pip install torch` without an index of "
            "CPU builds)"
        )
    needed, runs = _major(seen.cuda), _major(driver.cuda)
    if runs and needed > runs:
        least = f"{LEAST_DRIVER[needed]} or later" if needed in LEAST_DRIVER else "a newer one"
        raise UserError(
            f"driver {driver.version} runs CUDA up to {driver.cuda}, and PyTorch {seen.torch} is "
            f"built for CUDA {seen.cuda}: install driver {least}, or a PyTorch for CUDA {runs}"
        )
    if seen.problem:
        raise UserError(
            f"PyTorch {seen.torch} cannot use them ({seen.problem}): look at `nvidia-smi` and at "
            "the machine's kernel log"
        )
    if len(seen.names) != driver.gpus:
        raise UserError(
            f"nvidia-smi sees {driver.gpus}, and PyTorch {len(seen.names)}: look at "
            "CUDA_VISIBLE_DEVICES where the node is started"
        )
    kinds = ", ".join(f"{count} {name}" for name, count in Counter(seen.names).items())
    about = f"driver {driver.version} (CUDA {driver.cuda})" if driver.cuda else "driver unknown"
    return f"{kinds}; {about}; PyTorch for CUDA {seen.cuda}; a tensor went to each"


def ask_driver() -> Driver:
    """What nvidia-smi lists.

    Raises:
        OSError: it fails.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return Driver(0)
    listed, header = _output(command, "-L"), _output(command)
    version = re.search(r"Driver Version: *([\d.]+)", header)
    cuda = re.search(r"CUDA (?:UMD )?Version: *([\d.]+)", header)
    return Driver(
        sum(line.startswith("GPU ") for line in listed.splitlines()),
        version[1] if version else "",
        cuda[1] if cuda else "",
    )


def ask_torch() -> Seen:
    """What PyTorch sees, in a process that sees what the machine has.

    Raises:
        ValueError: it dies or hangs.
    """
    environment = dict(os.environ)
    if not environment.get("CUDA_VISIBLE_DEVICES"):  # empty: Ray's, for a task without GPUs
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-m", "bcl_ray.ops.doctor.gpus"]
    try:
        done = subprocess.run(  # noqa: S603
            command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        return Seen(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        raise UserError(
            f"no tensor reached them within {SECONDS:g} s: does the driver hang?"
        ) from None
    except (ValueError, IndexError):
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"PyTorch dies with {said} (status {done.returncode})") from None


def _output(*command: str) -> str:
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, timeout=10
    )
    if done.returncode:
        raise OSError(f"nvidia-smi fails: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def _major(version: str) -> int:
    """Of a version; 0 where it is unknown."""
    return int(version.partition(".")[0] or 0)


def _look() -> dict[str, Any]:
    """What PyTorch sees here: a tensor is put on each GPU, and read back."""
    import torch  # noqa: PLC0415  (seconds)

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    names: list[str] = []
    try:
        if torch.version.cuda is not None:
            torch.cuda.init()
            for number in range(torch.cuda.device_count()):
                there = torch.arange(4, device=f"cuda:{number}")
                if (there + 1).tolist() != [1, 2, 3, 4]:
                    raise RuntimeError(f"GPU {number} computes wrong sums")
                names.append(torch.cuda.get_device_name(number))
    except RuntimeError as error:
        found["problem"] = str(error).partition("\n")[0]
    return {**found, "names": names}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_look()) + "\n")
