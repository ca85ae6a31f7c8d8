"""Data: batches, sources, and the specs that open them."""

from pellucid.data.arrays import array_source
from pellucid.data.cifar import cifar10_source
from pellucid.data.classmap import ClassMap, read_class_map
from pellucid.data.concepts import concepts
from pellucid.data.digits import digits_source
from pellucid.data.examples import ArrayExamples
from pellucid.data.folder import folder_source
from pellucid.data.hf import hf_source
from pellucid.data.idx import fashion_mnist_source, mnist_source
from pellucid.data.shapes import shapes_source
from pellucid.data.source import Batch, Source
from pellucid.data.spec import open_source
from pellucid.data.table import table_source

__all__ = [
    "ArrayExamples",
    "Batch",
    "ClassMap",
    "Source",
    "array_source",
    "cifar10_source",
    "concepts",
    "digits_source",
    "fashion_mnist_source",
    "folder_source",
    "hf_source",
    "mnist_source",
    "open_source",
    "read_class_map",
    "shapes_source",
    "table_source",
]
