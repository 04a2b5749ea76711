"""Parts of bench_encoder.py."""
