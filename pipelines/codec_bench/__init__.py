"""What `bench_codec.py` measures: a module a section, and what they share."""
