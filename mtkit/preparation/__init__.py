"""From parallel text to what training reads: the tokenizer, the corpora as ids, and the validation text.

Parallel text and settings go in; the folders tokenizer and data of a run come out. Pairs that are left out are counted
and reported, and suspicious text gives a warning. May import the bundle (a run may start from a model and its
tokenizer) and the rooms below it, but not training.
"""
