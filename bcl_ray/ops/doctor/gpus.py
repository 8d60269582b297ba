"""GPUs of one machine: whether driver, PyTorch and Ray agree, and each GPU can hold a tensor.

    python -m bcl_ray.ops.doctor.gpus    # what PyTorch sees, as JSON

PyTorch is asked in a process of its own, for three reasons: Ray hides GPUs from tasks that request
none, CUDA keeps the first answer for the life of a process, and a driver that hangs would take the
process with it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field

from bcl_ray.machine.errors import UserError
from bcl_ray.machine.messages import last_line

DRIVER_SECONDS = 10.0  # for each of two calls of nvidia-smi
TORCH_SECONDS = 35.0  # PyTorch's import alone takes up to 10 s on a busy node
MOST_SECONDS = 2 * DRIVER_SECONDS + TORCH_SECONDS + 2  # for the whole check
# The first driver of each major version of CUDA, from NVIDIA's "CUDA Compatibility", table of minor
# version compatibility. A driver runs all minor versions of its major version, newer ones too.
FIRST_DRIVER = {11: "450", 12: "525", 13: "580"}


@dataclass(frozen=True)
class DriverReport:
    """What nvidia-smi reports."""

    gpus: int
    """Number of GPUs."""
    version: str = ""
    """Version of the driver; empty if unknown."""
    cuda: str = ""
    """Newest version of CUDA that the driver runs; empty if unknown."""


@dataclass(frozen=True)
class TorchReport:
    """What PyTorch reports."""

    torch: str
    """Version of PyTorch."""
    cuda: str | None
    """Version of CUDA that it is built for; None for a CPU build."""
    names: list[str] = field(default_factory=list)
    """Names of the GPUs that took a tensor."""
    problem: str = ""
    """The first error; empty if there was none."""


def check_gpus(declared: float | None) -> str:
    """Check that all GPUs of this machine can be trained on.

    Args:
        declared: Number of GPUs that Ray counts on this node; None if this is no Ray node.

    Raises:
        ValueError: Ray, driver and PyTorch do not agree; with what to do.
        OSError: nvidia-smi fails, or hangs.
    """
    driver = query_driver()
    if declared is not None and int(declared) != driver.gpus:
        raise UserError(
            f"nvidia-smi sees {driver.gpus}, and Ray counts {declared:g}: start the node with "
            f"--num-gpus {driver.gpus}, or give the container its GPUs"
        )
    return compare(driver, query_torch()) if driver.gpus else "none: training runs on CPUs"


def compare(driver: DriverReport, torch: TorchReport) -> str:
    """Check that driver and PyTorch fit together.

    Raises:
        ValueError: They do not; with what to do.
    """
    if torch.cuda is None:
        raise UserError(
            f"{driver.gpus} there, and PyTorch {torch.torch} is built for CPUs: install a PyTorch "
            "with CUDA (an image built with DEVICE=gpu; `pip install torch` without an index of "
            "CPU builds)"
        )
    required, supported = _major(torch.cuda), _major(driver.cuda)
    if supported and required > supported:
        needed = "a newer one"
        if required in FIRST_DRIVER:
            needed = f"{FIRST_DRIVER[required]} or later"
        raise UserError(
            f"driver {driver.version} runs CUDA up to {driver.cuda}, and PyTorch {torch.torch} is "
            f"built for CUDA {torch.cuda}: install driver {needed}, or a PyTorch for CUDA "
            f"{supported}"
        )
    if torch.problem:
        raise UserError(
            f"PyTorch {torch.torch} cannot use them ({torch.problem}): look at `nvidia-smi` and at "
            "the machine's kernel log"
        )
    if len(torch.names) != driver.gpus:
        raise UserError(
            f"nvidia-smi sees {driver.gpus}, and PyTorch {len(torch.names)}: look at "
            "CUDA_VISIBLE_DEVICES where the node is started"
        )
    kinds = ", ".join(f"{count} {name}" for name, count in Counter(torch.names).items())
    version = f"driver {driver.version} (CUDA {driver.cuda})" if driver.cuda else "driver unknown"
    return f"{kinds}; {version}; PyTorch for CUDA {torch.cuda}; a tensor went to each"


def query_driver() -> DriverReport:
    """Ask nvidia-smi; without that program, there are no GPUs.

    Raises:
        OSError: It fails, or hangs.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return DriverReport(0)
    listing, header = _output(command, "-L"), _output(command)
    version = re.search(r"Driver Version: *([\d.]+)", header)
    cuda = re.search(r"CUDA (?:UMD )?Version: *([\d.]+)", header)
    return DriverReport(
        sum(line.startswith("GPU ") for line in listing.splitlines()),
        version[1] if version else "",
        cuda[1] if cuda else "",
    )


def query_torch() -> TorchReport:
    """Ask PyTorch, in a process that sees all GPUs of the machine.

    Raises:
        ValueError: The process dies or hangs.
    """
    environment = dict(os.environ)
    if not environment.get("CUDA_VISIBLE_DEVICES"):  # Ray sets it to "" for tasks without GPUs
        environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-m", "bcl_ray.ops.doctor.gpus"]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TORCH_SECONDS,
            check=False,
        )
        return TorchReport(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        raise UserError(
            f"no tensor reached them within {TORCH_SECONDS:g} s: does the driver hang?"
        ) from None
    except (ValueError, IndexError):
        error = last_line(done.stderr, "no message")
        raise UserError(f"PyTorch dies with {error} (status {done.returncode})") from None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, timeout=DRIVER_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise OSError(
            f"nvidia-smi gives no answer within {DRIVER_SECONDS:g} s: does the driver hang?"
        ) from None
    if done.returncode:
        raise OSError(f"nvidia-smi fails: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def _major(version: str) -> int:
    """Major version; 0 if the version is unknown."""
    return int(version.partition(".")[0] or 0)


def _report() -> TorchReport:
    """Put a tensor on each GPU, and read it back."""
    import torch  # noqa: PLC0415 (its import takes seconds)

    names: list[str] = []
    problem = ""
    try:
        if torch.version.cuda is not None:
            torch.cuda.init()
            for number in range(torch.cuda.device_count()):
                tensor = torch.arange(4, device=f"cuda:{number}")
                if (tensor + 1).tolist() != [1, 2, 3, 4]:
                    raise RuntimeError(f"GPU {number} computes wrong sums")
                names.append(torch.cuda.get_device_name(number))
    except RuntimeError as error:
        problem = str(error).partition("\n")[0]
    return TorchReport(torch.__version__, torch.version.cuda, names, problem)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_report())) + "\n")
