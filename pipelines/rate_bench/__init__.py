"""Parts of `bench_rate_accuracy.py`: tasks, codecs of pixels and of embeddings, the figure."""
