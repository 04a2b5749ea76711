"""Heads on stores that are much larger than memory."""
