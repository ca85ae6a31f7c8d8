"""Robust accuracy against the radius, whether the attack was adequate, and the margin control."""

from pellucid.evals.attack.curve import AttackCurve, attack_curve
from pellucid.evals.attack.margins import MarginControl, margin_control

__all__ = ["AttackCurve", "MarginControl", "attack_curve", "margin_control"]
