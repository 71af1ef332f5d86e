"""Training: binarized corpora and validation text go in; checkpoints, a log and a bundle come out.

train holds the loop and the life of a run (start, resume, save, finish), update one update of the weights. May import
preparation, translation (validation translates) and what is below them.
"""
