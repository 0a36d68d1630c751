"""Parts of tools/bench_steering.py: what is trained and collected (study.py), arms and cells (cells.py), latency, figures."""
