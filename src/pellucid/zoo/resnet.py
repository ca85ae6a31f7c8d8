"""The residual networks of the CIFAR experiments: 6n + 2 layers, shortcuts without weights.

References:
    He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2, option A.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid._checks import ConfigError

# Per channel, of pixels in [0, 1]: what the published CIFAR-10 weights of this family expect.
CIFAR_RESNET_MEAN = (0.485, 0.456, 0.406)
CIFAR_RESNET_STD = (0.229, 0.224, 0.225)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `relu1` between them, `relu2` after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.extra = channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Every `stride`-th pixel, with channels of zeros before and after, half of them on each side."""
        if self.stride == 1 and not self.extra:
            return x
        before = self.extra // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


class ResNet(nn.Module):
    """`conv1`, `bn1`, `relu`, stages `layer1` to `layer3`, `average`, `linear`. Build it with `resnet`."""

    def __init__(self, blocks: int, widths: Sequence[int], in_channels: int, classes: int):
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(blocks, first, first, stride=1)
        self.layer2 = _stage(blocks, first, second, stride=2)
        self.layer3 = _stage(blocks, second, third, stride=2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.average(x).flatten(1))


def _stage(blocks: int, in_channels: int, channels: int, *, stride: int) -> nn.Sequential:
    first = _Block(in_channels, channels, stride)
    return nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(blocks - 1)))


def resnet(
    depth: int, *, widths: Sequence[int] = (16, 32, 64), in_channels: int = 3, classes: int = 10
) -> ResNet:
    """The residual network of `depth` = 6n + 2 layers, for any image size of at least 4 pixels.

    State-dict keys are those of the published CIFAR-10 weights (`conv1`, `bn1`, `layer1.0.conv1`, ...,
    `linear`), which expect pixels normalised by `CIFAR_RESNET_MEAN` and `CIFAR_RESNET_STD`. ReLUs: `relu`,
    `layer{s}.{b}.relu1` inside a block and `layer{s}.{b}.relu2` after its sum.

    Args:
        depth: 8, 14, 20, 26, 32, ...
        widths: Channels of the three stages, which must not fall; (8, 16, 32) costs about a third.

    Raises:
        ConfigError: Another depth, or widths that are not three numbers in rising order.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ConfigError(f"expected a depth of 6n + 2 with n >= 1 (8, 14, 20, 26, 32, ...), got {depth}")
    if len(widths) != 3 or min(*widths, in_channels, classes) < 1 or sorted(widths) != list(widths):
        raise ConfigError(
            f"expected three widths that do not fall and sizes of at least 1, got widths {tuple(widths)}, "
            f"in_channels {in_channels}, classes {classes}"
        )
    return ResNet(blocks, widths, in_channels, classes)


def resnet8(*, widths: Sequence[int] = (16, 32, 64), in_channels: int = 3, classes: int = 10) -> ResNet:
    """`resnet` of depth 8: one block a stage."""
    return resnet(8, widths=widths, in_channels=in_channels, classes=classes)


def resnet20(*, widths: Sequence[int] = (16, 32, 64), in_channels: int = 3, classes: int = 10) -> ResNet:
    """`resnet` of depth 20: three blocks a stage, 0.27 M parameters."""
    return resnet(20, widths=widths, in_channels=in_channels, classes=classes)


def resnet32(*, widths: Sequence[int] = (16, 32, 64), in_channels: int = 3, classes: int = 10) -> ResNet:
    """`resnet` of depth 32: five blocks a stage, 0.46 M parameters."""
    return resnet(32, widths=widths, in_channels=in_channels, classes=classes)


def resnet44(*, widths: Sequence[int] = (16, 32, 64), in_channels: int = 3, classes: int = 10) -> ResNet:
    """`resnet` of depth 44: seven blocks a stage, 0.66 M parameters."""
    return resnet(44, widths=widths, in_channels=in_channels, classes=classes)


def resnet56(*, widths: Sequence[int] = (16, 32, 64), in_channels: int = 3, classes: int = 10) -> ResNet:
    """`resnet` of depth 56: nine blocks a stage, 0.85 M parameters."""
    return resnet(56, widths=widths, in_channels=in_channels, classes=classes)
