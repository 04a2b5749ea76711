"""Self-supervised pretraining of the built-in encoder."""
