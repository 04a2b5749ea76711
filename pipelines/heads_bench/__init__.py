"""Parts of bench_heads.py."""
