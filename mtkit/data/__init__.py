"""Binarized corpora on disk, the order in which training takes their pairs, and the batches made of them.

Ids go in; memory-mapped corpora, plans and padded batches come out. May import text and config.
"""
