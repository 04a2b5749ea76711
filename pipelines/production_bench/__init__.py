"""Parts of `bench_production.py`."""
