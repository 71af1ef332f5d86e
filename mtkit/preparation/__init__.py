"""Preparation of a run: makes its tokenizer, its training corpora as token ids, and its validation text.

Reads parallel text and settings, and writes the folders tokenizer and data of the run. Pairs that are left out are
counted and reported, and there are warnings about suspicious text. May import the bundle package (a run may start from
a model and its tokenizer) and the packages below it, but not training.
"""
