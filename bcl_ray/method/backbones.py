"""Backbones: networks that turn images into embeddings.

What `model.backbone` stands for is a function of ModelConfig and of the class of batch norm to
build with; it returns the network and the width of its embeddings. Its children are the stages
that `train.compile` compiles one by one.

Axes: N images, C channels, E embedding width, H x W pixels.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from bcl_ray.experiment.options import ModelConfig

BLOCKS_PER_STAGE = {"resnet8": 1, "resnet20": 3, "resnet32": 5}


def small_resnet(config: ModelConfig, norm: Any) -> tuple[nn.Module, int]:
    """ResNet of 6 * blocks + 2 layers for small images; embeddings are 4 * width wide.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
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
    """A network of torchvision, without its final layer."""
    import torchvision  # noqa: PLC0415 - seconds of import that small backbones need not pay

    network = torchvision.models.get_model(config.backbone, weights=None, norm_layer=norm)
    width = network.fc.in_features
    network.fc = nn.Identity()
    return network, width


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters (option A of He et al., 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm(channels)
        self.stride = stride
        self.added = channels - channels_in

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) to the block's channels and stride."""
        hidden = functional.relu(self.norm1(self.conv1(pixels)))
        shortcut = pixels[:, :, :: self.stride, :: self.stride]
        if self.added:
            before = self.added // 2
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.added - before))
        return functional.relu(self.norm2(self.conv2(hidden)) + shortcut)
