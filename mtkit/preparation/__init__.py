"""From parallel text to what training reads: the tokenizer, the corpora as ids, the validation text.

Pairs that cannot be used are counted and reported, and suspicious text is warned of. May import the bundle (a run may
start from a model and its tokenizer) and what is below it, but no training.
"""
