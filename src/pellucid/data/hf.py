"""Images from a Hugging Face data set, only when asked for by name."""

import dataclasses as dc
import io
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pellucid._checks import ConfigError, DataError, check_one_of, nearest
from pellucid.data.columns import encode
from pellucid.data.folder import SPLIT_NAMES
from pellucid.data.imagefiles import image_examples
from pellucid.data.images import Channels, Fit, Look
from pellucid.data.source import Source
from pellucid.preprocess import Size, parse_size


@dc.dataclass(frozen=True)
class _Rows:
    """Encoded images in a column of a data set."""

    origin: str
    rows: Any
    column: str
    names: Sequence[str]

    def open(self, i: int) -> BufferedIOBase:
        cell = self.rows[i][self.column]
        if cell["bytes"] is not None:
            return io.BytesIO(cell["bytes"])
        return Path(cell["path"]).open("rb")

    def where(self, i: int) -> str:
        return f"{self.origin}[{i}]"


def hf_source(
    name: str,
    *,
    split: Literal["train", "test", "all"] = "test",
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    size: Size | None = None,
    fit: Fit = "crop",
    channels: Channels | None = None,
    skip_unreadable: bool = False,
    workers: int = 0,
) -> Source:
    """A data set by its name on the hub, or a local one (`save_to_disk`, or a folder that `load_dataset` takes).

    Needs the extra `hf`; nothing is fetched unless the name is one on the hub. No code of a data set is run.

    Args:
        split: `test` is the split `test`, or else `validation`; `all` puts all splits together.
        image: column of the images; None: the only one of that type.
        label: column of the classes; None: `label`, or else the only one of class type, or else unlabelled.

    Raises:
        ConfigError: the package `datasets` is not installed.
        DataError: no such data set, split or column; and what `folder_source` raises for images.
    """
    check_one_of(split, ("train", "test", "all"), "split")
    rows = _load(name, config, split)
    features = dict(rows.features)
    column = _image_column(features, image, name)
    found = rows.cast_column(column, _image_bytes())
    targets, classes = _labels(rows, features, label, name)
    files = _Rows(name, found, column, [f"{split}/{i}" for i in range(len(rows))])
    look = Look(parse_size(size), fit, channels)
    examples = image_examples(files, look, targets=targets, skip_unreadable=skip_unreadable)
    return Source(name, examples, classes, names=files.names, workers=workers)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("hf: needs the package datasets; try: pip install 'pellucid[hf]'") from error
    return datasets


def _image_bytes() -> Any:
    return _datasets().Image(decode=False)  # our own decoder, so that broken images are told as everywhere


def _load(name: str, config: str | None, split: str) -> Any:
    datasets = _datasets()
    path = Path(name).expanduser()
    if name.startswith(("/", ".", "~")) and not path.exists():
        raise DataError(f"no data set at {path}")
    saved = path.is_dir() and any((path / f).is_file() for f in ("state.json", "dataset_dict.json"))
    try:
        found = (
            datasets.load_from_disk(str(path))
            if saved
            else datasets.load_dataset(str(path) if path.is_dir() else name, config)
        )
    except Exception as error:  # hub, network, cache and format errors alike
        raise DataError(f"cannot open the data set {name!r}: {str(error) or type(error).__name__}") from error
    if not isinstance(found, datasets.DatasetDict):
        return found  # saved as one piece: it has no splits
    if split == "all":
        return datasets.concatenate_datasets(list(found.values()))
    for part in SPLIT_NAMES[split]:
        if part in found:
            return found[part]
    raise DataError(
        f"data set {name!r} has the splits {list(found)}, none for {split!r}; say --split train or all"
    )


def _image_column(features: dict[str, Any], image: str | None, name: str) -> str:
    images = [key for key, kind in features.items() if type(kind).__name__ == "Image"]
    if image is not None and image not in images:
        raise DataError(f"data set {name!r} has no image column {image!r}; its image columns: {images}")
    if image is None and len(images) != 1:
        raise DataError(
            f"data set {name!r} has {len(images)} image columns among {list(features)}; name one (?image=)"
        )
    return image or images[0]


def _labels(
    rows: Any, features: dict[str, Any], label: str | None, name: str
) -> tuple[Tensor | None, tuple[str, ...]]:
    kinds = [key for key, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if label is None and "label" in features:
        label = "label"
    if label is None and len(kinds) > 1:
        raise DataError(f"data set {name!r} has the class columns {kinds}; name one (?label=)")
    label = label or next(iter(kinds), None)
    if label is None:
        return None, ()
    if label not in features:
        raise DataError(f"data set {name!r} has no column {label!r}; nearest: {nearest(label, features)}")
    values = list(rows[label])
    if label not in kinds:
        return encode(str(value) for value in values)
    targets = torch.tensor([-1 if value is None else int(value) for value in values])
    if bool((targets < 0).all()):
        return None, ()  # the hub's way to leave a test set unlabelled
    if bool((targets < 0).any()):
        raise DataError(f"data set {name!r}: {int((targets < 0).sum())} of {len(targets)} rows have no label")
    return targets, tuple(features[label].names)
