"""Datasets in other formats become ours: LeRobotDataset, robomimic HDF5, diffusion_policy replay buffers, RLDS.

A source (`source.py`) reads one format and knows nothing of our keys but its defaults; `mapping.py` turns its fields into
our arrays; `run.py` writes them. A further format is one more source.
"""

from robopolicy.data.importers.run import import_dataset

__all__ = ["import_dataset"]
