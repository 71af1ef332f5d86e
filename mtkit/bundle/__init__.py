"""Model bundles: everything needed to translate, in a folder or in one file.

Writes, opens and describes bundles, and reads checkpoints of a run as if they were bundles. Of the other packages
of mtkit, only `models`, `data`, `text` and `config` may be imported here.
"""
