"""Model bundles: all that is needed to translate, in a folder or in one file.

Writes, opens and describes bundles, and reads the checkpoints of a run as bundles. May import models, text and config,
but neither search nor translation.
"""
