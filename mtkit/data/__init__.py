"""Binarized corpora (sentence pairs stored as token ids), the order of training, and batches.

Stores token ids in files that are memory-mapped, plans which pairs form which batches, and makes padded batches. Of the
other packages of mtkit, only `text` and `config` may be imported here.
"""
