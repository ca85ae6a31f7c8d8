"""The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships: real data that is always there."""

from typing import Any, Literal

import numpy as np
import torch

from pellucid._checks import check_one_of
from pellucid.data.arrays import array_source
from pellucid.data.source import Source
from pellucid.data.split import held_out, others

TEST = 600  # of 1,797


def digits_source(*, split: Literal["train", "test", "all"] = "test") -> Source:
    """Handwritten digits, 1 x 8 x 8, grey values k / 16 for k = 0 to 16; 1,197 to train, 600 to test.

    The split is stratified by class and depends on no seed (`pellucid.data.split.held_out`). Both parts keep the
    order of the file, and `names` tell each digit's place in it.

    References: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits

    check_one_of(split, ("train", "test", "all"), "split")
    found: Any = load_digits()  # a Bunch, whose fields the type checker does not know
    images = torch.from_numpy(found.images.astype(np.float32) / np.float32(16)).unsqueeze(1)
    targets = torch.from_numpy(found.target.astype(np.int64))
    whole = array_source(
        images,
        targets,
        name="digits",
        classes=[str(i) for i in range(10)],
        names=[f"digit {i}" for i in range(len(images))],
    )
    if split == "all":
        return whole
    test = held_out(targets, TEST)
    return whole.take(test if split == "test" else others(len(whole), test))
