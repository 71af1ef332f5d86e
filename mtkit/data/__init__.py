"""Binarized corpora (sentence pairs stored as token ids), the order of training, and batches.

Stores token ids as memory-mapped corpora, and makes plans and padded batches of them. May import text and config.
"""
