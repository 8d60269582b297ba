"""Backbones: networks that turn images into embeddings.

`model.backbone` selects a function of the model's options and of the class of batch norm to use.
It returns the network and the width of its embeddings. `train.compile` compiles the network's
children one by one.

Axes: N images, C channels, E embedding width, H x W pixels.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from bcl_ray.experiment.options import ModelConfig

BLOCKS_PER_STAGE = {"resnet8": 1, "resnet20": 3, "resnet32": 5}


def small_resnet(config: ModelConfig, norm: Any) -> tuple[nn.Module, int]:
    """A ResNet of 6 * blocks + 2 layers for small images, with E = 4 * model.width.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2,
    https://arxiv.org/abs/1512.03385.
    """
    blocks, width = BLOCKS_PER_STAGE[config.backbone], config.width
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, padding=1, bias=False),
        norm(width),
        nn.ReLU(inplace=True),
    ]
    channels = width
    for stage in range(3):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(ResidualBlock(channels, width << stage, stride, norm))
            channels = width << stage
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network, 4 * width


def torchvision_network(config: ModelConfig, norm: Any) -> tuple[nn.Module, int]:
    """A torchvision network without its final layer."""
    import torchvision  # noqa: PLC0415 - takes seconds, and small backbones do not need it

    network = torchvision.models.get_model(config.backbone, weights=None, norm_layer=norm)
    width = network.fc.in_features
    network.fc = nn.Identity()
    return network, width


def torchvision_inputs(_name: str, image_size: int | None) -> dict[str, Any]:
    """What torchvision's networks are trained and evaluated with: see `timm_inputs`.

    Source: the transforms of torchvision's weights for ImageNet.
    """
    size = image_size or 224
    return {
        "image_size": size,
        "eval_resize": round(size * 256 / 224),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bilinear",
    }


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters.

    The shortcut pads new channels with zeros: option A of He et al., CVPR 2016, section 4.1.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm(channels)
        self.stride = stride
        self.new_channels = channels - channels_in

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (N, channels_in, H, W) to (N, channels, H / stride, W / stride)."""
        hidden = functional.relu(self.norm1(self.conv1(pixels)))
        shortcut = pixels[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            padding = (0, 0, 0, 0, before, self.new_channels - before)
            shortcut = functional.pad(shortcut, padding)
        return functional.relu(self.norm2(self.conv2(hidden)) + shortcut)
