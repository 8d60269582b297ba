import hashlib
import os
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.method.learner import Learner
from bcl_ray.runs import checkpoint
from bcl_ray.storage import files

COUNTS = [20, 5, 3]


def trained(ema=0.9):
    """A learner after one real step, so that momentum, average and statistics are not zero."""
    changes = ["model.width=4", "model.hidden_dim=8", "model.feature_dim=4"]
    experiment = with_overrides(digits_lt(), [*changes, f"train.ema_decay={ema}"])
    learner = Learner(experiment, np.array(COUNTS), 4, torch.device("cpu"))
    learner.model(torch.rand(3, 6, 3, 8, 8)).features.square().mean().backward()
    learner.optimizer.param_groups[0]["lr"] = 0.1
    learner.optimizer.step()
    if learner.average:
        for weight in learner.average.parameters():
            weight.data.mul_(0.9)
    learner.step, learner.sums = 7, torch.tensor([1 / 3, 2 / 3, 1e-300], dtype=torch.float64)
    return learner


def state_of(learner):
    return learner.state(
        history=[{"epoch": 0.0, "loss/total": 0.1, "accuracy/all": float("nan")}],
        fingerprint="f" * 64,
        class_names=["a", "b", "ü"],
        class_counts=COUNTS,
        uid="0" * 32,
    )


def differing(a, b, path=""):
    """Paths at which two nested values differ in a bit, a type or a key."""
    if type(a) is not type(b):
        return [path]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return [] if same and a.numpy().tobytes() == b.numpy().tobytes() else [path]
    if isinstance(a, dict) and list(a) == list(b):
        return [found for key in a for found in differing(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [found for i, (x, y) in pairs for found in differing(x, y, f"{path}.{i}")]
    return [] if repr(a) == repr(b) else [path]


def fields_of(state):
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


def write(content, folder):
    """A checkpoint's files with any content and the right hash."""
    file = folder / checkpoint.FILE
    torch.save(content, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / checkpoint.HASH_FILE).write_text(f"{digest}  {file.name}\n")


def test_a_state_is_restored_bit_for_bit(tmp_path):
    state = state_of(trained())
    assert any(entry["momentum_buffer"].any() for entry in state.optimizer["state"].values())
    checkpoint.save(state, tmp_path)
    back = checkpoint.load(tmp_path)
    assert differing(fields_of(state), fields_of(back)) == []


def test_a_learner_continues_where_the_saved_one_was(tmp_path):
    first = trained()
    checkpoint.save(state_of(first), tmp_path)
    drawn = torch.rand(3)
    second = trained()
    second.step = 0
    second.restore(checkpoint.load(tmp_path))
    assert torch.equal(torch.rand(3), drawn)
    back, state = state_of(second), state_of(first)
    now = torch.get_rng_state()  # the only thing that went on since
    assert (
        differing(
            fields_of(replace(back, random_state=now)), fields_of(replace(state, random_state=now))
        )
        == []
    )


def test_a_state_loads_on_a_machine_without_the_device_it_was_saved_on(tmp_path):
    checkpoint.save(state_of(trained()), tmp_path)
    back = checkpoint.load(tmp_path)
    assert {value.device.type for value in back.model.values()} == {"cpu"}


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    proof = tmp_path / "executed"
    content = fields_of(state_of(trained())) | {"uid": Malicious(str(proof))}
    write(content, tmp_path)
    with pytest.raises(ValueError, match="holds more than tensors and plain values") as refusal:
        checkpoint.load(tmp_path)
    assert not proof.exists()
    assert "weights_only" not in str(refusal.value), "no advice to run the code"
    torch.load(tmp_path / checkpoint.FILE, weights_only=False)
    assert proof.exists(), "the file would have run code"


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(tmp_path, share):
    checkpoint.save(state_of(trained(ema=0)), tmp_path)
    file = tmp_path / checkpoint.FILE
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(checkpoint.UnusableCheckpointError, match="is damaged: it has") as refusal:
        checkpoint.load(tmp_path)
    assert str(file) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_one_flipped_bit_of_a_weight_is_noticed(tmp_path):
    checkpoint.save(state_of(trained(ema=0)), tmp_path)
    file = tmp_path / checkpoint.FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(checkpoint.UnusableCheckpointError, match="is damaged"):
        checkpoint.load(tmp_path)


def test_a_state_without_its_hash_is_no_checkpoint(tmp_path):
    checkpoint.save(state_of(trained(ema=0)), tmp_path)
    (tmp_path / checkpoint.HASH_FILE).unlink()
    with pytest.raises(checkpoint.UnusableCheckpointError, match=r"holds no complete state\.pt"):
        checkpoint.load(tmp_path)


def test_a_copy_is_complete_only_with_its_hash(tmp_path, monkeypatch):
    source, target = str(tmp_path / "one"), str(tmp_path / "other")
    checkpoint.save(state_of(trained(ema=0)), source)
    copied, real = [], files.copy

    def interrupted(path, to):
        if copied:
            raise KeyboardInterrupt
        copied.append(path)
        real(path, to)

    monkeypatch.setattr(files, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.copy(source, target)
    assert (tmp_path / "other" / checkpoint.FILE).exists()
    assert not checkpoint.is_complete(target)
    monkeypatch.undo()
    checkpoint.copy(source, target)
    assert checkpoint.is_complete(target)
    assert checkpoint.load(target).step == checkpoint.load(source).step


def test_sha256sum_can_check_the_hash(tmp_path):
    best = tmp_path / "best"
    checkpoint.save(state_of(trained(ema=0)), tmp_path)
    checkpoint.copy(str(tmp_path), str(best))
    for folder in (tmp_path, best):
        subprocess.run(["sha256sum", "-c", checkpoint.HASH_FILE], cwd=folder, check=True)


@pytest.mark.parametrize("content", [{"step": 3}, [1, 2], {"step": 3, "colour": "red"}], ids=str)
def test_another_file_of_torch_is_no_checkpoint(tmp_path, content):
    write(content, tmp_path)
    with pytest.raises(ValueError, match=r"state\.pt is no checkpoint of this version"):
        checkpoint.load(tmp_path)


def test_a_folder_without_a_state_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"holds no complete state\.pt: it is not a check"):
        checkpoint.load(tmp_path)


def test_the_average_is_evaluated(tmp_path):
    learner = trained(ema=0.5)
    checkpoint.save(state_of(learner), tmp_path)
    weights = checkpoint.evaluated_weights(checkpoint.load(tmp_path))
    assert differing(dict(weights), dict(learner.evaluation_model.state_dict())) == []
    assert differing(dict(weights), dict(learner.model.state_dict())) != []
    learner.model.load_state_dict(weights)  # it fits the network itself


def test_without_an_average_the_weights_themselves_are_evaluated():
    state = state_of(trained(ema=0))
    assert state.average is None
    assert checkpoint.evaluated_weights(state) is state.model
