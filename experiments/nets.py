"""Builders of published small networks whose weights have to be had elsewhere, for `--model nets:NAME`.

Run from this folder, or put it on the path: `pellucid inspect --model nets:mobilenet_v2 --weights FILE ...`.
"""

from collections import OrderedDict

from torch import nn

MOBILENET_V1_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
MOBILENET_V1_WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2 with TensorFlow's padding: stride-2 convolutions pad right and bottom only."""
    from torchvision.models import mobilenet_v2 as build

    return one_sided(build(weights=None))


def one_sided(model: nn.Module) -> nn.Module:
    """Give every stride-2 convolution TensorFlow's `same` padding, by a pre-hook, so that state-dict keys stay."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            module.register_forward_pre_hook(lambda _, args: (nn.functional.pad(args[0], (0, 1, 0, 1)),))
    return model


def mobilenet_v1_quarter() -> nn.Module:
    """MobileNetV1 at width 0.25 for 128 px, batch norm folded into the convolutions."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    before = 8
    parts["conv0"], parts["relu0"] = nn.Conv2d(3, before, 3, stride=2, padding=1), nn.ReLU6()
    for i, (stride, width) in enumerate(zip(MOBILENET_V1_STRIDES, MOBILENET_V1_WIDTHS, strict=True), start=1):
        after = width // 4
        parts[f"dw{i}"] = nn.Conv2d(before, before, 3, stride=stride, padding=1, groups=before)
        parts[f"relu_dw{i}"] = nn.ReLU6()
        parts[f"pw{i}"] = nn.Conv2d(before, after, 1)
        parts[f"relu_pw{i}"] = nn.ReLU6()
        before = after
    parts["average"], parts["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    parts["fc"] = nn.Linear(before, 1000)
    return one_sided(nn.Sequential(parts))


def robust_small() -> nn.Module:
    """The small provably robust networks of Wong and Kolter for 28 x 28 grey images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
