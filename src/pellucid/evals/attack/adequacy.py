"""Is an attack curve fit to be read as robustness? The checks of good practice, as sentences about one curve.

A weak attack makes a weak network look strong. Each check compares two numbers that a sound attack must order; one
that does not is a problem in words, and a curve with a problem has no verdict.

References: Athalye et al., "Obfuscated gradients give a false sense of security", ICML 2018; Carlini et al., "On
evaluating adversarial robustness", 2019.
"""

import dataclasses as dc

TOLERANCE = 0.01  # one percentage point: what the random start alone may move
ZERO_GRADIENT = 0.01  # fraction of images whose gradient may be exactly zero


@dc.dataclass(frozen=True)
class Numbers:
    """The accuracies, as fractions, that the checks compare; `chance` is 1 / classes.

    `again` and `more_steps` are PGD and PGD with twice the steps on the same first `checked` images; `whole` is PGD
    on those images with the whole pixel range to move in.
    """

    n: int
    checked: int
    chance: float
    clean: float
    radii: tuple[float, ...]
    accuracy: tuple[float, ...]
    fgsm: tuple[float, ...]
    again: tuple[float, ...]
    more_steps: tuple[float, ...]
    whole: float
    transfer: tuple[float, ...] | None
    zero_gradient: float


def problems(numbers: Numbers) -> tuple[str, ...]:
    """What speaks against reading the curve as robustness; empty when every check passes."""
    found = [*_order(numbers), *_strength(numbers), *_gradient(numbers)]
    return tuple(found)


def notes(numbers: Numbers) -> tuple[str, ...]:
    """What a reader should know that is no fault: where twice the steps would still lower the curve."""
    return tuple(
        f"not converged at radius {r:g}: twice the steps lower accuracy from {few:.2%} to {many:.2%} ({numbers.checked} "
        "images); read the curve as an upper bound there"
        for r, few, many in zip(numbers.radii, numbers.again, numbers.more_steps, strict=True)
        if many < few - allowance(numbers.checked)
    )


def allowance(n: int) -> float:
    """How far two accuracies on `n` images may be out of order: a percentage point, or one image if that is more."""
    return max(TOLERANCE, 1 / n) + 1e-9


def _order(c: Numbers) -> list[str]:
    found: list[str] = []
    if c.radii[0] == 0 and c.accuracy[0] != c.clean:
        found.append(
            f"accuracy at radius 0 is {c.accuracy[0]:.2%} but clean accuracy is {c.clean:.2%}: the model answers the "
            "same images differently twice, so it draws random numbers in evaluation mode"
        )
    pairs = zip(c.radii, c.radii[1:], c.accuracy, c.accuracy[1:], strict=False)
    found += [
        f"accuracy rises from {a:.2%} at radius {r:g} to {b:.2%} at radius {s:g}: the attack fails at larger radii"
        for r, s, a, b in pairs
        if b > a + allowance(c.n)
    ]
    return found


def _strength(c: Numbers) -> list[str]:
    found = [
        f"one step (FGSM, {one:.2%}) beats PGD ({many:.2%}) at radius {r:g}: PGD's steps lead nowhere"
        for r, many, one in zip(c.radii, c.accuracy, c.fgsm, strict=True)
        if many > one + allowance(c.n)
    ]
    found += [
        f"twice the steps raise accuracy from {few:.2%} to {many:.2%} at radius {r:g} ({c.checked} images): the ascent "
        "does not converge, try a smaller step"
        for r, few, many in zip(c.radii, c.again, c.more_steps, strict=True)
        if many > few + allowance(c.checked)
    ]
    if c.transfer is not None:
        found += [
            f"images made for another model ({other:.2%}) fool this one better than its own gradient ({own:.2%}) at "
            f"radius {r:g}: its gradient is masked"
            for r, own, other in zip(c.radii, c.accuracy, c.transfer, strict=True)
            if other < own - allowance(c.n)
        ]
    if c.whole > c.chance + 0.05 + 1e-9:
        found.append(
            f"with the whole pixel range to move in, {c.whole:.2%} of {c.checked} images are still right (chance "
            f"{c.chance:.2%}): any network falls there, so the attack does not follow the real gradient"
        )
    return found


def _gradient(c: Numbers) -> list[str]:
    if c.zero_gradient <= ZERO_GRADIENT:
        return []
    return [
        f"the gradient is exactly zero on {c.zero_gradient:.1%} of the images: they count as robust only because the "
        "attack cannot move; try loss=margin"
    ]
