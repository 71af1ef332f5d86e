"""Training: reads binarized corpora and validation text; writes checkpoints, a log and a bundle.

train has the training loop and the life of a run, update one update of the weights. May import preparation, translation
(validation translates) and what is below them.
"""
