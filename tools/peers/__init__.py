"""Parts of tools/bench_sim.py: what is compared, the process that each runs in, and its environment."""
