"""The constants of the fifteen corruptions, and how they follow the size of the image.

SMALL holds the constants of CIFAR-10-C (made for 32 px) and serves images whose shorter side is at most 64 px; LARGE
holds those of ImageNet-C (made for 224 px) and serves larger ones. Lengths, marked `px`, are multiplied by side / 32
or side / 224, so that a blur covers the same part of the picture at every size; below 32 px they stay as they are,
because a blur narrower than a pixel is no blur (elastic_transform alone shrinks with the image: its jitter would
otherwise fold an 8 px picture over), and above 64 px a defocus disc has a radius of at least a pixel. At 32 and 224 px the constants are exactly the published ones.

References: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
ICLR 2019, and the constants of its released images.
"""

from pellucid._checks import ConfigError, DataError, check_one_of

TYPES = (
    "gaussian_noise", "shot_noise", "impulse_noise",
    "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
    "snow", "frost", "fog",
    "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
LARGEST_SMALL_SIDE = 64
SMALLEST_SIDE = 8

Level = dict[str, float]


def _rows(names: str, *values: tuple[float | int, ...]) -> tuple[Level, ...]:
    return tuple(dict(zip(names.split(), map(float, row), strict=True)) for row in values)


def _row(name: str, *values: float | int) -> tuple[Level, ...]:
    return tuple({name: float(value)} for value in values)


SMALL = {
    "gaussian_noise": _row("sigma", 0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": _row("photons", 500, 250, 100, 75, 50),
    "impulse_noise": _row("amount", 0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": _rows("radius_px edge_px", (0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": _rows("sigma_px reach_px rounds", (0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": _rows("radius_px sigma_px", (6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": _rows("largest step", (1.06, 0.01), (1.11, 0.01), (1.15, 0.01), (1.20, 0.01), (1.25, 0.01)),
    # pixel_px: size of the snow's own pixels in image pixels; it is drawn at 32 or 224 px and resized, because the
    # threshold cuts another share of flakes off a field of another grain.
    "snow": _rows(
        "mean sigma flake threshold radius blur keep pixel_px",
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95, 1), (0.1, 0.2, 1, 0.5, 10, 4, 0.9, 1), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9, 1),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85, 1), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8, 1),
    ),
    # texture_px: size of the texture's pixels in image pixels; its pictures are 300 to 600 px high.
    "frost": _rows(
        "image frost texture_px",
        (1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2),
    ),
    "fog": _rows("amount decay", (0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": _row("add", 0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": _row("factor", 0.75, 0.5, 0.4, 0.3, 0.15),
    # px2: noise smoothed over sigma_px shrinks by 1 / sigma, so amount / sigma is the length of a displacement.
    "elastic_transform": _rows(
        "amount_px2 sigma_px jitter_px",
        (0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96),
    ),
    "pixelate": _row("factor", 0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": _row("quality", 80, 65, 58, 50, 40),
}  # fmt: skip

LARGE = {
    "gaussian_noise": _row("sigma", 0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": _row("photons", 60, 25, 12, 5, 3),
    "impulse_noise": _row("amount", 0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": _rows("radius_px edge_px", (3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": _rows("sigma_px reach_px rounds", (0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": _rows("radius_px sigma_px", (10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": _rows("largest step", (1.11, 0.01), (1.15, 0.01), (1.20, 0.02), (1.24, 0.02), (1.30, 0.03)),
    "snow": _rows(
        "mean sigma flake threshold radius blur keep pixel_px",
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8, 1), (0.2, 0.3, 2, 0.5, 12, 4, 0.7, 1), (0.55, 0.3, 4, 0.9, 12, 8, 0.7, 1),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65, 1), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55, 1),
    ),
    "frost": _rows(
        "image frost texture_px", (1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)
    ),
    "fog": _rows("amount decay", (1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": _row("add", 0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": _row("factor", 0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": _rows(  # the published 244 is kept
        "amount_px2 sigma_px jitter_px",
        (488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88),
    ),
    "pixelate": _row("factor", 0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": _row("quality", 25, 18, 15, 10, 7),
}  # fmt: skip


def level(name: str, severity: int, side: int) -> Level:
    """The constants of a corruption at a severity for images whose shorter side is `side` px.

    Raises:
        ConfigError: an unknown corruption (the nearest is named) or a severity outside 1 to 5.
        DataError: an image smaller than 8 px.
    """
    check_one_of(name, TYPES, "corruption")
    if severity not in SEVERITIES:
        raise ConfigError(
            f"severity must be 1, 2, 3, 4 or 5, got {severity!r}; the clean image is no severity"
        )
    if side < SMALLEST_SIDE:
        raise DataError(f"corruptions need images of at least {SMALLEST_SIDE} px a side, got {side}")
    small = side <= LARGEST_SMALL_SIDE
    scale = side / 32 if small else side / 224
    if small and name != "elastic_transform":
        scale = max(scale, 1.0)
    constants = (SMALL if small else LARGE)[name][severity - 1]
    found = {
        key: value * scale if key.endswith("_px") else value * scale**2 if key.endswith("_px2") else value
        for key, value in constants.items()
    }
    if name == "defocus_blur" and not small:
        found["radius_px"] = max(found["radius_px"], 1.0)
    return found
