"""Backbones that start from a file: which entries are used, ignored and refused."""

import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from bcl_ray.experiment.options import Experiment, ModelConfig
from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import digits_lt
from bcl_ray.method.learner import Learner
from bcl_ray.method.model import TwoBranch
from bcl_ray.method.pretrained import load_backbone
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.runs.budget import preflight

COUNTS = np.array([20, 5])
CPU = torch.device("cpu")


def small(seed: int = 0, num_classes: int = 3, **options: Any) -> TwoBranch:
    torch.manual_seed(seed)
    settings = {"backbone": "resnet8", "width": 4, "hidden_dim": 8, "feature_dim": 6}
    return TwoBranch(ModelConfig(**settings | options), num_classes)


def saved(folder: Path, content: Any, name: str = "weights.pt") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


def tiny(weights: str | None = None, **train: Any) -> Experiment:
    base = digits_lt()
    model = {"width": 4, "hidden_dim": 8, "feature_dim": 6, "weights": weights}
    return base.model_copy(
        update={
            "model": base.model.model_copy(update=model),
            "train": base.train.model_copy(update=train),
        }
    )


def assert_same(module: nn.Module, expected: nn.Module | dict[str, Tensor]) -> None:
    state = expected.state_dict() if isinstance(expected, nn.Module) else expected
    torch.testing.assert_close(dict(module.state_dict()), dict(state), rtol=0, atol=0)


@pytest.mark.parametrize("as_uri", [str, lambda path: f"file://{path}"], ids=["path", "URI"])
def test_a_backbone_takes_a_plain_state_dict_and_nothing_else_changes(as_uri, tmp_path):
    source, model = small(1), small(0)
    source.backbone[1].running_mean.fill_(0.5)
    untouched = copy.deepcopy(model)
    load_backbone(model, as_uri(saved(tmp_path, source.backbone.state_dict())))
    assert_same(model.backbone, source.backbone)
    for part in ("classifier", "feature_projection", "prototype_projection"):
        assert_same(getattr(model, part), getattr(untouched, part))


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d"])
def test_torchvisions_state_dict_loads_without_its_final_layer(name, tmp_path):
    torch.manual_seed(1)
    published = torchvision.models.get_model(name, weights=None)
    model = small(backbone=name, batch_norm="sync").eval()
    load_backbone(model, saved(tmp_path, published.state_dict()))
    published.fc = nn.Identity()
    assert_same(model.backbone, published)
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(model.embed(images), published.eval()(images))


def test_files_without_batch_norms_counters_load(tmp_path):
    source, model = small(1), small(0)
    state = source.backbone.state_dict()
    old = {name: entry for name, entry in state.items() if "num_batches_tracked" not in name}
    load_backbone(model, saved(tmp_path, old))
    assert_same(model.backbone, source.backbone)


def test_a_checkpoint_of_other_classes_gives_its_backbone(tmp_path):
    learner = Learner(tiny(seed=1), COUNTS, 3, CPU)
    about = {"history": [], "fingerprint": "f", "class_names": ["a", "b"], "uid": "u"}
    checkpoint.save(learner.state(class_counts=[20, 5], **about), tmp_path)
    model = small(0, num_classes=7)
    load_backbone(model, str(tmp_path / checkpoint.FILE))
    assert_same(model.backbone, learner.model.backbone)


Change = Callable[[dict[str, Tensor]], dict[str, Any]]
DIFFERING: dict[str, tuple[Change, str]] = {
    "missing": (
        lambda state: {name: entry for name, entry in state.items() if name != "0.weight"},
        "0.weight is missing: set model.backbone",
    ),
    "unexpected": (
        lambda state: state | {"layer4.bias": torch.zeros(1)},
        "layer4.bias is unexpected: set model.backbone",
    ),
    "shape": (
        lambda state: state | {"1.bias": torch.zeros(8)},
        "1.bias has shape (8,), not (4,): set model.backbone",
    ),
    "many": (
        lambda state: {f"module.{name}": state[name] for name in ("0.weight", "1.weight")},
        "0.weight is missing, 1.weight is missing, 1.bias is missing, 1.running_mean is missing, "
        "1.running_var is missing and ",
    ),
}


@pytest.mark.parametrize(("change", "message"), DIFFERING.values(), ids=DIFFERING)
def test_entries_that_do_not_fit_are_named_and_nothing_is_loaded(change, message, tmp_path):
    model = small(0)
    untouched = copy.deepcopy(model)
    uri = saved(tmp_path, change(small(1).backbone.state_dict()))
    expected = f"model.weights {uri} does not fit this model.backbone: {message}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
        load_backbone(model, uri)
    assert_same(model, untouched)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "is not a state dict, which maps names to tensors"),
        ({"epoch": 3}, "is not a state dict, which maps names to tensors"),
        ({1: torch.zeros(1)}, "is not a state dict, which maps names to tensors"),
        ({"model": {"0.weight": torch.zeros(1)}}, "without entries that begin with 'backbone.'"),
        ({"model": {"backbone.0.weight": 1}}, "is not a state dict, which maps names to"),
    ],
    ids=["list", "number", "key", "other model", "entry"],
)
def test_what_is_no_state_dict_is_refused(content, message, tmp_path):
    uri = saved(tmp_path, content)
    with pytest.raises(ValueError, match=f"^model.weights {re.escape(uri)} .*{message}"):
        load_backbone(small(), uri)


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_file_is_never_run(tmp_path):
    uri = saved(tmp_path, {"0.weight": Attack(tmp_path / "owned")})
    with pytest.raises(ValueError, match="contains more than tensors and plain values") as refusal:
        load_backbone(small(), uri)
    assert not (tmp_path / "owned").exists()
    assert "weights_only" not in str(refusal.value), "no advice to run the code"
    torch.load(uri, weights_only=False)
    assert (tmp_path / "owned").exists(), "the file was an attack"


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_file_that_is_cut_short_is_refused(share, tmp_path):
    path = Path(saved(tmp_path, small().backbone.state_dict()))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"^model.weights {path} was not written by torch.save"):
        load_backbone(small(), str(path))


def test_a_learner_and_its_average_start_from_the_file(tmp_path):
    source = Learner(tiny(seed=1), COUNTS, 3, CPU).model
    uri = saved(tmp_path, source.backbone.state_dict())
    learner = Learner(tiny(uri, ema_decay=0.9), COUNTS, 3, CPU)
    assert_same(learner.model.backbone, source.backbone)
    assert_same(learner.average.backbone, source.backbone)
    random = Learner(tiny(), COUNTS, 3, CPU).model
    assert_same(learner.model.classifier, random.classifier)


def test_a_restored_state_overwrites_the_file(tmp_path):
    uri = saved(tmp_path, small(1).backbone.state_dict())
    learner = Learner(tiny(uri), COUNTS, 3, CPU)
    trained = Learner(tiny(seed=2), COUNTS, 3, CPU)
    about = {"history": [], "fingerprint": "f", "class_names": ["a", "b"], "uid": "u"}
    learner.restore(trained.state(class_counts=[20, 5], **about))
    assert_same(learner.model, trained.model)


def test_a_run_is_refused_before_it_begins_when_its_file_is_not_there(tmp_path):
    gone = f"{tmp_path}/gone.pt"
    with pytest.raises(FileNotFoundError, match=f"^{gone} does not exist: check its spelling$"):
        preflight(tiny(gone), None)
    with pytest.raises(IsADirectoryError, match=f"^{tmp_path} is a folder, not a file"):
        preflight(tiny(str(tmp_path)), None)


def test_a_relative_path_means_the_same_in_every_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    located = run_folder.with_absolute_paths(
        with_overrides(digits_lt(), ["model.weights=start.pt"])
    )
    assert located.model.weights == f"{tmp_path}/start.pt"
    assert run_folder.with_absolute_paths(digits_lt()).model.weights is None
