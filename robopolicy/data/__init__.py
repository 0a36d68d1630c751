"""Datasets: the on-disk episode store, training windows, the normaliser, collection."""
