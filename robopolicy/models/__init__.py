"""Networks. They know arrays and specs, no simulator and no dataset."""
