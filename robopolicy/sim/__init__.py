"""The simulated worlds: PyBullet, its MuJoCo twin, randomisation, tasks, experts. Imports no torch."""
