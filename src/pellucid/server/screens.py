"""What a browser is told of a trial: where which image stands, and under what name it is fetched. Nothing else.

An image's name is made from the participant, the trial and the place on the screen. The copy in a catch trial, or one
target in a practice and a main trial, have names that share nothing.
"""

import dataclasses as dc
from collections import OrderedDict
from collections.abc import Mapping

from sqlalchemy import Connection

from pellucid.server.enrolment import trials_of
from pellucid.server.keys import Keys
from pellucid.study.frozen import STIMULI, Frozen, practice_trials
from pellucid.study.items import Stimulus, StudyItem
from pellucid.study.schedule import Trial

KEPT = 1000
"""Participants whose screens are kept in memory; others are made again from the database."""


@dc.dataclass(frozen=True)
class Image:
    """An image on a screen."""

    url: str
    width: int
    height: int


@dc.dataclass(frozen=True)
class Screen:
    """One trial, as a browser sees it; `rest` if a break comes first."""

    ordinal: int
    kind: str
    rest: bool
    images: dict[str, Image]


@dc.dataclass(frozen=True)
class Screens:
    """All that one participant is shown.

    Attributes:
        files: the image's file behind each name.
    """

    assignment: int
    trials: tuple[Trial, ...]
    practice: tuple[Trial, ...]
    main: tuple[Screen, ...]
    practised: tuple[Screen, ...]
    files: Mapping[str, str]


class Projector:
    """Makes the screens of participants (in any thread) and remembers them (in the event loop's alone)."""

    def __init__(self, frozen: Frozen, keys: Keys) -> None:
        self._frozen, self._keys = frozen, keys
        self._folder = frozen.path / STIMULI
        self._items = {item.id: item for item in (*frozen.items, *frozen.practice)}
        self._made: OrderedDict[str, Screens] = OrderedDict()

    def known(self, participant: str) -> Screens | None:
        """The screens of this participant if they were made already."""
        found = self._made.get(participant)
        if found is not None:
            self._made.move_to_end(participant)
        return found

    def remember(self, participant: str, screens: Screens) -> Screens:
        """Keep the screens of this participant at hand."""
        self._made[participant] = screens
        while len(self._made) > KEPT:
            self._made.popitem(last=False)
        return screens

    def forget(self, participant: str) -> None:
        """Nothing is shown to this participant any more."""
        self._made.pop(participant, None)

    def load(self, connection: Connection, participant: str) -> Screens:
        """The screens of this participant from the schedule in the database.

        Raises:
            Refused: there is no schedule.
        """
        assignment, trials = trials_of(connection, participant)
        practice = practice_trials(self._frozen, participant)
        files: dict[str, str] = {}
        main = tuple(self._screen(participant, "trial", n, trial, files) for n, trial in enumerate(trials))
        practised = tuple(self._screen(participant, "practice", n, t, files) for n, t in enumerate(practice))
        return Screens(assignment, trials, practice, main, practised, files)

    def _screen(
        self, participant: str, part: str, ordinal: int, trial: Trial, files: dict[str, str]
    ) -> Screen:
        images: dict[str, Image] = {}
        for slot, stimulus in stimuli_of(trial, self._items).items():
            name = self._keys.stimulus(participant, f"{part}:{ordinal}", slot)
            files[name] = f"{self._folder}/{stimulus.sha256}.png"
            images[slot] = Image(url=f"/stimuli/{name}", width=stimulus.width, height=stimulus.height)
        rest = part == "trial" and ordinal > 0 and ordinal % self._frozen.study.trials.block == 0
        return Screen(ordinal=ordinal, kind=trial.kind, rest=rest, images=images)


def stimuli_of(trial: Trial, items: Mapping[str, StudyItem]) -> dict[str, Stimulus]:
    """Which image stands where: reference, left, right; or row1 to row3 and column1 to column3."""
    shown = [items[name] for name in trial.items]
    if trial.kind == "match":
        rows = [shown[n].target_image if trial.catch else shown[n].found for n in trial.rows]
        places = {f"row{n}": stimulus for n, stimulus in enumerate(rows, 1)}
        return places | {f"column{n}": shown[k].target_image for n, k in enumerate(trial.columns, 1)}
    (item,) = shown
    options = {"target": item.target_image, "start": item.start}
    left, right = ("target", "start") if trial.target_side == "left" else ("start", "target")
    reference = options[trial.copied] if trial.catch else item.found
    return {"reference": reference, "left": options[left], "right": options[right]}
