"""Model bundles: everything needed to translate, in a folder or in one file.

Writes, opens and describes bundles, and reads checkpoints of a run as if they were bundles. May import models, text and
config, but neither search nor translation.
"""
