"""Fine-tuning by commands: pretrained weights, a validation split, and what follows."""

import csv
import re

import pytest
import torch

from bcl_ray.use.models import open_model
from tests.e2e.conftest import Command

timm = pytest.importorskip("timm", reason="needs bcl-ray[timm]")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

OPTIONS = (
    "views.image_size=32",
    "train.epochs=2",
    "train.eval_every=1",
    "optim.global_batch_size=16",
    "optim.frozen_epochs=1",
    "scale.workers=2",
    "scale.cpus_per_worker=0.5",
    "scale.cpus_per_data_task=0.5",
    "tracking.run=tuned",
)


@pytest.mark.parametrize(
    ("backbone", "more"),
    [("test_efficientnet", []), ("test_vit", ["optim.layer_decay=0.7", "model.drop_path=0.1"])],
)
def test_a_pretrained_backbone_is_tuned_selected_exported_and_labels_images(
    backbone, more, tmp_path
):
    torch.manual_seed(0)
    save_file(timm.create_model(backbone).state_dict(), tmp_path / "start.safetensors")
    start = [f"model.backbone=timm/{backbone}", "model.weights=start.safetensors"]

    def run(*words: str) -> str:
        command = Command(tmp_path, *words)
        assert command.wait() == 0, command.output
        return command.output

    run("shard", "digits", "whole", "--profile", "exponential", "--imbalance-factor", "50")
    run("shards", "hold-out", "whole", "cut", "--share", "0.2")
    data = ["data.path=cut", "data.validation_split=validation"]
    output = run("train", "finetune", *data, *start, *OPTIONS, *more)
    assert "79 of 'validation' to evaluate" in output
    assert re.search(r"start.safetensors: left out its classifier \((head|classifier)", output)
    opened = open_model("tuned", str(tmp_path / "runs"))
    assert "/best_" in opened.uri
    views = opened.experiment.views
    assert (views.image_size, views.interpolation) == (32, "bicubic")
    assert len(views.mean) == 3
    assert {r["images/evaluated"] for r in opened.state.history} == {79.0}
    assert (tmp_path / "runs" / "tuned" / "report.html").exists()
    assert re.search(r"tuned +│ BCL", run("evaluate", "tuned", "--best"))
    assert "logits of 16 images differ" in run("export", "tuned", "model.onnx")
    assert "logits of 16 images differ" in run("export", "tuned", "model.safetensors")
    assert "accuracy/all" in run("register", "tuned", "--as", "digits")
    run("predict", "tuned", "whole", "labels", "--csv", "--split", "test")
    with next((tmp_path / "labels" / "csv").glob("*.csv")).open() as table:
        assert len(list(csv.DictReader(table))) == 360
