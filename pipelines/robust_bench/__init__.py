"""Parts of bench_robust_lowrank.py."""
