"""One pass over a source feeds every statistic.

`recording` holds the pass itself, `board` the statistics it feeds (layers of one kind share one update), `places` what
runs inside the hooks, `checkpoint` stopping and going on, `ranks` several processes.
"""

from pellucid.record.recording import Recording, record

__all__ = ["Recording", "record"]
