"""Parts of tools/bench_deploy.py and tools/drill.py: a policy, a server process to kill, a robot that does what it is told."""
