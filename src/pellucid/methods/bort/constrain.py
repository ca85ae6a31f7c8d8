"""Pull weight matrices towards orthogonality at every step of any optimizer.

    W <- W - lr * strength * Delta(W)        before the optimizer's own step; Delta(W) = W W^T W - a W

Nothing is added to the model, the loss or the gradient; the optimizer keeps its own fast path.

References: Zhang et al., "Bort: Towards Explainable Neural Networks with Bounded Orthogonal Constraint", ICLR 2023
(its AdamW form is decoupled like this; its SGD form is `constrain_coupled`).
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from pellucid._checks import ConfigError
from pellucid.methods.bort.gram import PANEL
from pellucid.methods.bort.guards import Guard, Settings
from pellucid.methods.bort.matrices import Matrix, listed
from pellucid.methods.bort.pull import MOST, Amplitude, Number, Pull, pull_full_
from pellucid.methods.bort.sharded import is_sharded, pull_sharded_

Act = Callable[[Sequence[Matrix], Number, Mapping[str, Any]], None]

SMALL = 1 << 14
"""Numbers in a weight up to which calls cost more than arithmetic: such weights of one shape are pulled together."""

_PULLED: "weakref.WeakKeyDictionary[Optimizer, list[Constraint]]" = weakref.WeakKeyDictionary()


def constrain(
    optimizer: Optimizer,
    params: Iterable[Matrix | Tensor],
    *,
    strength: float,
    amplitude: Amplitude = 1.0,
    every: int = 1,
    pull: Pull = pull_full_,
) -> "Constraint":
    """Pull weights towards a * (orthonormal rows or columns) at each step of an optimizer; undo with `.remove()`.

    Once per `optimizer.step()`, before it, each chosen matrix moves by lr * strength * Delta, with the learning rate of
    its group at that time; so a schedule anneals the constraint, a step that a gradient scaler skips pulls nothing, and
    frozen parameters stay. One pull a step whatever a closure does. Groups added later are not picked up.

    Args:
        params: `matrices(model)`, or weight tensors that the optimizer holds.
        strength: has no universal default, because lr * strength * steps decides: see `strength_for_budget`. 0 is off.
        amplitude: the target a of squared singular values, or `keep_norm`.
        every: pull each matrix once in so many steps, as many times as far. The matrices take turns, so that steps cost
            alike; whose turn it is, is kept with the optimizer's state.
        pull: which member of the family; `pull_full_` is the method, rows and columns only bound norms.

    Raises:
        ConfigError: anything that would pull nothing, the wrong thing or too far; the message names the layer.
    """
    settings = Settings(strength, amplitude, every, pull)

    def move(due: Sequence[Matrix], step: Number, group: Mapping[str, Any]) -> None:  # noqa: ARG001
        for alike in _alike(due):
            if len(alike) == 1:
                pull_matrix_(alike[0], step, amplitude, pull)
            else:
                _pull_stack_(alike, step, amplitude, pull)

    return Constraint(optimizer, listed(params), settings, act=move)


def pull_matrix_(matrix: Matrix, step: Number, amplitude: Amplitude, pull: Pull) -> None:
    """One pull of one parameter, in place, however it lies in memory."""
    if is_sharded(matrix.param):
        pull_sharded_(matrix, step, amplitude, pull)
        return
    param = matrix.param.detach()
    w = matrix.read(param)
    pull(w, step, amplitude)
    if not param.is_contiguous():  # channels_last and the like: `w` is a copy
        param.copy_(w.reshape(param.shape))


def _alike(due: Sequence[Matrix]) -> Iterable[list[Matrix]]:
    """Small weights of one shape together, at most a panel of numbers at a time; the others alone."""
    stacks: dict[Any, list[Matrix]] = {}
    for matrix in due:
        param = matrix.param
        if param.numel() > SMALL or matrix.parts > 1 or is_sharded(param):
            yield [matrix]
        else:
            stacks.setdefault((matrix.shape, param.dtype, param.device), []).append(matrix)
    for stack in stacks.values():
        most = max(1, PANEL // stack[0].param.numel())
        for start in range(0, len(stack), most):
            yield stack[start : start + most]


def _pull_stack_(alike: Sequence[Matrix], step: Number, amplitude: Amplitude, pull: Pull) -> None:
    params = [matrix.param.detach() for matrix in alike]
    moved = pull(torch.stack([param.flatten(1) for param in params]), step, amplitude)
    for param, w in zip(params, moved.unbind(), strict=True):
        param.copy_(w.view(param.shape))


class Constraint:
    """A constraint that is on: made by `constrain`, ended by `remove()`; also a context manager.

    Args:
        act: what to do to the matrices whose turn it is, given the step lr * strength * every and the parameter group.
    """

    def __init__(
        self, optimizer: Optimizer, matrices: Sequence[Matrix], settings: Settings, *, act: Act
    ) -> None:
        check_optimizer(optimizer)
        places = _places(optimizer, matrices)
        self.matrices, self.settings = tuple(matrices), settings
        self._act = act
        self._members = {
            place: [m for m, p in zip(matrices, places, strict=True) if p == place] for place in places
        }
        self._guards = {place: Guard(settings, members) for place, members in self._members.items()}
        self._turns = _share_out(matrices, settings.every)
        self._spent: Number = 0.0
        self._optimizer = weakref.ref(optimizer)
        others = _PULLED.setdefault(optimizer, [])
        _check_alone(matrices, others)
        for place in self._members:
            self._step(optimizer, place)  # what cannot work is told now
        taken = {other._key for other in others}  # pyright: ignore[reportPrivateUsage]  # of its own kind
        self._key = next(key for i in range(len(taken) + 1) if (key := f"turns_{i}") not in taken)
        # A compiled step runs the pull as it is: the turns and the guards are Python.
        self._handles = [optimizer.register_step_pre_hook(uncompiled(self._before))]
        others.append(self)
        if not matrices:
            warnings.warn("nothing to constrain: no matrix was chosen", stacklevel=4)

    def remove(self) -> None:
        """End the constraint; the optimizer is as it was before."""
        for handle in self._handles:
            handle.remove()
        if (optimizer := self._optimizer()) is not None:
            for group in optimizer.param_groups:
                group.pop(self._key, None)
            if self in _PULLED.get(optimizer, []):
                _PULLED[optimizer].remove(self)

    def __enter__(self) -> "Constraint":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def budget(self) -> float:
        """The pull so far: the sum over steps of lr * strength, in this process since `constrain`."""
        return float(self._spent)

    def describe(self) -> dict[str, Any]:
        """What was asked for, in numbers and texts, to save beside a run."""
        s = self.settings
        amplitude = (
            s.amplitude if not callable(s.amplitude) else getattr(s.amplitude, "__name__", "a function")
        )
        return {
            "strength": s.strength,
            "amplitude": amplitude,
            "every": s.every,
            "pull": getattr(s.pull, "__name__", "a function"),
            "matrices": len(self.matrices),
        }

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if not self.settings.strength or not self._members:
            return
        steps = {place: self._step(optimizer, place) for place in self._members}
        turn = self._turn(optimizer)
        self._spent = self._spent + next(iter(steps.values())) / self.settings.every
        with torch.no_grad(), _full_precision(self.matrices):
            for place, members in self._members.items():
                step = steps[place]
                if isinstance(step, float) and step == 0.0:
                    continue
                due = [m for m in members if self._turns[id(m)] == turn and m.param.requires_grad]
                self._act(due, step, optimizer.param_groups[place])

    def _step(self, optimizer: Optimizer, place: int) -> Number:
        """lr * strength * every of a group, known to be safe; a tensor where the rate is one, or a scaler may skip."""
        group = optimizer.param_groups[place]
        if group.get("differentiable"):
            raise ConfigError(
                "the optimizer is differentiable: a pull in place would break the graph through its steps; use "
                "differentiable=False"
            )
        lr, far, step = group["lr"], self.settings.strength * self.settings.every, None
        if isinstance(lr, Tensor):
            # Looking would wait for the device, and stop a CUDA graph: clipped, where a number is refused.
            step = lr * far
            if self.settings.scale:
                step = step.clamp(max=MOST / self.settings.scale)
        else:
            self._guards[place].check(float(lr), float(group.get("weight_decay") or 0.0))
            step = float(lr) * far
        overflow = getattr(optimizer, "found_inf", None)
        if isinstance(
            overflow, Tensor
        ):  # a fused optimizer looks for itself whether the scaler wants it to skip
            step = step * (1.0 - overflow.reshape(()))
        return step

    def _turn(self, optimizer: Optimizer) -> int:
        every = self.settings.every
        if every == 1:
            return 0
        if _capturing():
            raise ConfigError(
                "a CUDA graph repeats one step, so every=1 is all it can do; capture with every=1"
            )
        group = optimizer.param_groups[next(iter(self._members))]
        turn = int(group.get(self._key, 0)) % every  # a loaded state may have counted further
        group[self._key] = (turn + 1) % every
        return turn


def uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook, left out of graphs that `torch.compile` makes of a step."""
    return cast("Callable[..., None]", torch.compiler.disable(hook))


def check_optimizer(optimizer: Any) -> None:
    """An optimizer whose own `step` runs hooks.

    Raises:
        ConfigError: something else, or a wrapper around the optimizer that steps.
    """
    for name in ("base_optimizer", "optimizer"):
        if isinstance(getattr(optimizer, name, None), Optimizer):
            raise ConfigError(
                f"{type(optimizer).__name__} wraps another optimizer: constrain its .{name}, whose step changes the "
                "weights, so that there is one pull a step"
            )
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")


def _places(optimizer: Optimizer, matrices: Sequence[Matrix]) -> list[int]:
    """The parameter group of each matrix."""
    where = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    twice = {id(m.param) for m in matrices if sum(o.param is m.param for o in matrices) > 1}
    for matrix in matrices:
        param = matrix.param
        if id(param) not in where:
            raise ConfigError(
                f"layer {matrix.layer!r} is not in the optimizer, so nothing would train it; give its weight to the "
                "optimizer, or leave it out. Wrap a model (fully_shard, .to of another type) before both"
            )
        if id(param) in twice:
            raise ConfigError(f"layer {matrix.layer!r} is named twice")
        _check_numbers(matrix)
    return [where[id(matrix.param)] for matrix in matrices]


def _check_numbers(matrix: Matrix) -> None:
    dtype = matrix.param.dtype
    if dtype in (torch.float32, torch.float64):
        return
    if dtype.is_complex:
        raise ConfigError(f"layer {matrix.layer!r} is complex; the constraint is defined for real weights")
    raise ConfigError(
        f"layer {matrix.layer!r} is {dtype}: so small a step is lost to rounding there and the weight would never move; "
        "keep float32 weights and compute under autocast"
    )


def _check_alone(matrices: Sequence[Matrix], others: Iterable[Constraint]) -> None:
    taken = {id(m.param) for other in others for m in other.matrices}
    for matrix in matrices:
        if id(matrix.param) in taken:
            raise ConfigError(
                f"layer {matrix.layer!r} is constrained already; remove() that constraint first"
            )


def _share_out(matrices: Sequence[Matrix], every: int) -> dict[int, int]:
    """Whose turn is when: the dearest matrix first, each to the turn that costs least so far."""
    loads, turns = [0] * every, dict[int, int]()
    for matrix in sorted(matrices, key=lambda matrix: -matrix.flops):
        turn = loads.index(min(loads))
        loads[turn] += matrix.flops
        turns[id(matrix)] = turn
    return turns


def _full_precision(matrices: Sequence[Matrix]) -> Any:
    """Autocast would compute the products of a step taken under it in half precision."""
    kind = matrices[0].param.device.type if matrices else "cpu"
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else torch.no_grad()


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
