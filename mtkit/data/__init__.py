"""Binarized corpora: sentence pairs as token ids on disk, the order of training, and the batches made of them.

Token ids go in; memory-mapped corpora, plans and padded batches come out. May import text and config.
"""
