"""What a node of a Slurm allocation decides; test_slurm.py runs all of it under Slurm."""

import os
import signal
import socket

import pytest

from bcl_ray.ops.slurm import allocation, driver, network, ray_node


@pytest.mark.parametrize(
    ("status", "reason", "result"),
    [
        (0, None, "0"),
        (1, None, "1"),
        (2, None, "2"),
        (137, None, "137"),
        (143, "requeue", "requeue"),  # stopped, with a checkpoint
        (1, "requeue", "requeue"),  # the checkpoint failed: the one before is there
        (0, "requeue", "0"),  # complete, after all
        (2, "requeue", "2"),  # a mistake stays one
        (143, "end", "0"),  # as the user asked
        (1, "end", "1"),
        (143, None, "143"),  # somebody else's signal
    ],
)
def test_a_job_has_the_status_of_its_driver_unless_it_was_to_stop(status, reason, result):
    assert driver.job_result(status, reason) == result


@pytest.fixture
def stop(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    yield driver.JobStop(tmp_path)
    signal.signal(signal.SIGTERM, before)


def test_a_signal_to_the_step_requeues_the_job_unless_the_user_ends_it(stop, tmp_path):
    assert stop.reason() is None
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.reason() == "requeue"
    (tmp_path / "stop").write_text("end\n")
    assert stop.reason() == "end"


def test_srun_s_signal_after_a_failure_is_no_request_to_stop(stop, tmp_path):
    (tmp_path / "failed").write_text("n2: Ray has ended here (status 1)")
    assert stop.reason() is None
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(allocation.LostNodeError, match=r"because of n2: Ray has ended here"):
        stop.reason()


def test_ray_gets_the_memory_of_the_job_and_no_option_if_the_job_has_the_whole_node():
    share = {"SLURM_MEM_PER_NODE": "1000", "SLURM_CPUS_ON_NODE": "2"}
    each = {"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "2"}
    expected = ["--memory=629145600", "--object-store-memory=314572800"]
    assert ray_node.memory_options(share) == ray_node.memory_options(each) == expected
    assert ray_node.memory_options({"SLURM_CPUS_ON_NODE": "2"}) == []
    # --mem=0
    assert ray_node.memory_options({"SLURM_MEM_PER_NODE": "0", "SLURM_CPUS_ON_NODE": "2"}) == []


def test_a_node_has_the_address_of_its_interface_or_the_one_that_reaches_its_peer():
    assert network.own_address("lo", "example.invalid") == "127.0.0.1"
    assert network.own_address(None, "127.0.0.1") == "127.0.0.1"
    with pytest.raises(allocation.StartError, match=r"slurm.interface \(ib9\) has no .* there are"):
        network.own_address("ib9", "127.0.0.1")


def test_ports_are_free_and_differ():
    first, second = network.two_free_ports("127.0.0.1")
    assert first != second
    for port in (first, second):
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))
