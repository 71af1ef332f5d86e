"""The model that travels: all that is needed to translate, in a folder or in one file.

Writes and opens bundles, reads checkpoints of a run as bundles, and tells what a bundle is. May import text and config,
but neither searches nor translation.
"""
