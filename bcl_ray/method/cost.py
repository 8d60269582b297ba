"""What training a network costs for one image, counted without data and without a device."""

import copy

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bcl_ray.experiment.options import Experiment
from bcl_ray.method.model import TwoBranch
from bcl_ray.runs.limits import Work

COUNTED = (2, 4)  # images of two counted steps, whose difference belongs to images; norms need two


def count_work(experiment: Experiment, num_classes: int, encoded_bytes: float) -> Work:
    """Count operations, parameters and kept activations of a training step, with fake tensors.

    Operations are those of the network's convolutions and matrix products, without the loss.

    Args:
        experiment: The options.
        num_classes: K, at least 2.
        encoded_bytes: Mean size of an encoded image.
    """
    config = experiment.model.model_copy(update={"batch_norm": "per_worker", "weights": None})
    views, size = 1 + experiment.num_contrastive, experiment.views.image_size
    # Built with real tensors: some of timm's constructors read values, which fake tensors do not
    # have.
    network = TwoBranch(config, num_classes).train()
    fake = FakeTensorMode()  # tensors without memory
    with FakeCopyMode(fake):
        model = copy.deepcopy(network)
    with fake:
        steps = [_count_step(model, torch.empty(views, n, 3, size, size)) for n in COUNTED]
    (operations, kept), (more_operations, more_kept) = steps
    images = COUNTED[1] - COUNTED[0]
    per_image = (more_operations - operations) / images
    return Work(
        views=views,
        image_size=size,
        encoded_bytes=encoded_bytes,
        operations=per_image / views,
        step_operations=operations - COUNTED[0] * per_image,
        parameter_bytes=sum(tensor.nbytes for tensor in model.state_dict().values()),
        activation_bytes=(more_kept - kept) / images,
    )


def _count_step(model: TwoBranch, pixels: Tensor) -> tuple[int, int]:
    """Operations of a forward pass, and bytes that it keeps for backward."""
    kept = _KeptBytes(model)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        model(pixels)
    return counter.get_total_flops(), kept.total


class _KeptBytes:
    """Counts the bytes of different tensors that backward needs, without the weights."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        self._storages = [weight.untyped_storage() for weight in model.parameters()]
        self._seen = {storage._cdata for storage in self._storages}

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self._storages.append(storage)  # as long as it lives, no other has its address
            self.total += storage.nbytes()
        return tensor
