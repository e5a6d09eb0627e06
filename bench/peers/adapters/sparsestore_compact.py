"""sparsestore's compressed profile."""
from . import sparsestore_
from .sparsestore_ import GROUP, batches, convert, tf_dataset, versions  # noqa: F401

sparsestore_.CONVERT["profile"] = "compact"
SETTINGS = 'as sparsestore, but convert(profile="compact")'
