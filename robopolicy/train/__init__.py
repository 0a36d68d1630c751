"""One training loop for everything that has phases and a loss."""
