"""Training: reads binarized corpora and validation text; writes checkpoints, a log and a bundle.

The module `train` has the training loop, from the start of a run to its bundle; the module `update` makes one update of
the weights. Of the other packages of mtkit, only `preparation`, `translation` (for validation) and the packages that
these two import may be imported here.
"""
