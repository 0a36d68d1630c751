"""Parts of tools/bench_policies.py: tasks and their environments, cells of training and evaluation, latency, summaries."""
