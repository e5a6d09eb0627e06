"""sparsestore without the shuffle at conversion: its rows lie sorted by label, and block_rows="auto" chooses blocks short enough for S <= 2."""
from . import sparsestore_
from .sparsestore_ import GROUP, batches, convert, tf_dataset, versions  # noqa: F401

sparsestore_.CONVERT = dict(shuffle=False)
SETTINGS = 'as sparsestore, but convert(shuffle=False): the source\'s order kept; loader(shuffle=True, block_rows="auto")'
