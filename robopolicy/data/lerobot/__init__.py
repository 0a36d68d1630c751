"""LeRobotDataset v3.0 folders, written and read by ourselves with pyarrow and PyAV (v2.0 and v2.1 are read only).

    meta/info.json                                   version, rate, features, sizes
    meta/tasks.parquet                               task texts (index) and their numbers
    meta/stats.json                                  statistics of all episodes
    meta/episodes/chunk-000/file-000.parquet         a row per episode: where its data and videos are, its statistics
    meta/robopolicy.json                             ours: the DatasetSpec, which holds units and frames
    data/chunk-000/file-000.parquet                  a row per step, episodes one after the other
    videos/<key>/chunk-000/file-000.mp4              likewise

Images become video, or PNG inside the data files; depth, points and every other array are parquet columns. What our
episodes' info holds (outcome, seeds, drawn parameters) are columns "robopolicy/..." of meta/episodes: LeRobot's loader
ignores them, and an import (data/importers) restores them.
"""

from robopolicy.data.lerobot.exporting import export_dataset

__all__ = ["export_dataset"]
