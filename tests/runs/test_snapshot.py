"""A snapshot is the state at its moment, whatever training does next."""

import copy

import torch

from bcl_ray.runs import checkpoint
from bcl_ray.runs.checkpoint import Snapshots
from tests.runs.test_checkpoint import differing, fields_of, state_of, trained


def train_on(learner):
    """Change everything in place that a step changes."""
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    learner.move_average()
    for buffer in learner.model.buffers():
        buffer.add_(1)
    learner.step += 1
    learner.sums += 1


def test_a_snapshot_keeps_its_bits_while_training_goes_on(tmp_path):
    learner, history = trained(), [{"epoch": 0.0}]
    state = state_of(learner)
    state.history[:] = history
    expected = copy.deepcopy(fields_of(state))
    snapshot = Snapshots().take(state)
    train_on(learner)
    state.history.append({"epoch": 1.0})
    state.history[0]["epoch"] = 5.0
    changed = {path.split(".")[1] for path in differing(fields_of(state), expected)}
    assert changed >= {"model", "optimizer", "average", "sums"}
    assert differing(fields_of(snapshot), expected) == []
    checkpoint.save(snapshot, tmp_path)
    assert differing(fields_of(checkpoint.load(tmp_path)), expected) == []


def test_a_snapshot_has_the_memory_format_and_the_attributes_of_its_state():
    state = state_of(trained())
    snapshot = Snapshots().take(state)
    pairs = [(snapshot.model[name], tensor) for name, tensor in state.model.items()]
    assert any(tensor.is_contiguous(memory_format=torch.channels_last) for _, tensor in pairs)
    assert all(ours.stride() == theirs.stride() for ours, theirs in pairs)
    assert snapshot.model._metadata == state.model._metadata


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for item in items for tensor in tensors_of(item)]


def test_the_next_snapshot_is_taken_into_the_same_memory():
    learner, snapshots = trained(), Snapshots()
    train_on(learner)  # then every weight has its momentum
    first = tensors_of(fields_of(snapshots.take(state_of(learner))))
    train_on(learner)
    second = tensors_of(fields_of(snapshots.take(state_of(learner))))
    assert len(first) > 10
    assert [tensor.data_ptr() for tensor in first] == [tensor.data_ptr() for tensor in second]


def test_a_tensor_that_is_new_gets_memory_of_its_own():
    """Momentum exists from the first step on."""
    learner, snapshots = trained(), Snapshots()
    learner.optimizer.state.clear()
    assert snapshots.take(state_of(learner)).optimizer["state"] == {}
    train_on(learner)
    taken = snapshots.take(state_of(learner)).optimizer["state"]
    assert len(taken) == len(list(learner.model.parameters()))
    assert differing(taken, learner.optimizer.state_dict()["state"]) == []
