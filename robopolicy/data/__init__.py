"""Datasets: the on-disk episode store, training windows, the normaliser, collection."""

from robopolicy.data.episodes import EpisodeStore, EpisodeWriter, write_episodes

__all__ = ["EpisodeStore", "EpisodeWriter", "write_episodes"]
