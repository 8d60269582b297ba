import pytest
import torch
from torchvision.models import resnet50

from bcl_ray.experiment.overrides import with_overrides
from bcl_ray.experiment.recipes import cifar10_lt, inat18
from bcl_ray.method.cost import count_work


def convolutions(model: torch.nn.Module, size: int) -> int:
    """Operations of a forward pass of one image, layer by layer: two for each product."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        if isinstance(layer, torch.nn.Conv2d):
            total += 2 * layer.weight[0].numel() * output[0].numel()
        elif isinstance(layer, torch.nn.Linear):
            total += 2 * layer.weight.numel()

    for layer in model.modules():
        layer.register_forward_hook(count)
    model.eval()(torch.zeros(1, 3, size, size))
    return total


@pytest.mark.slow
def test_operations_of_a_view_are_those_of_its_layers():
    with torch.device("meta"):
        network = resnet50()
    network = network.to_empty(device="cpu")
    work = count_work(inat18(), 100, 110_000)
    assert work.operations == pytest.approx(convolutions(network, 224), rel=0.01)
    assert work.view_bytes == 451_584


def test_classes_cost_a_step_and_not_an_image():
    few, many = (count_work(cifar10_lt(), classes, 2000) for classes in (10, 1000))
    prototypes = 2 * (64 * 512 + 512 * 128)  # the projection of a class: two products
    assert many.step_operations == 1000 * prototypes
    assert few.step_operations == 10 * prototypes
    assert many.operations == pytest.approx(few.operations + 2 * 64 * 990 / 3)


def test_more_views_and_pixels_keep_more_for_backward():
    base = count_work(cifar10_lt(), 10, 2000)
    one_view = count_work(with_overrides(cifar10_lt(), ["loss.kind=ce"]), 10, 2000)
    assert 2.5 < base.activation_bytes / one_view.activation_bytes < 3.5
    large = with_overrides(cifar10_lt(), ["views.image_size=64", "views.eval_resize=64"])
    assert count_work(large, 10, 2000).activation_bytes > 3.5 * base.activation_bytes


def test_the_state_has_every_weight_and_statistic_once():
    work = count_work(cifar10_lt(), 10, 2000)
    from bcl_ray.method.model import TwoBranch

    model = TwoBranch(cifar10_lt().model, 10)
    assert work.parameter_bytes == sum(t.numel() * t.itemsize for t in model.state_dict().values())
