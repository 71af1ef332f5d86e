"""Preparation of a run: examines its text, makes its tokenizer, its training corpora as ids, and its validation text.

Reads parallel text and settings, and writes the folders `tokenizer` and `data` of the run directory. `doctor` finds and
mends faults in text, `distill` translates training text with a teacher model, and `new` writes the settings of a first
run. Of the other packages, only `translation`, `bundle`, `models`, `data`, `text` and `config` may be imported here.
"""
