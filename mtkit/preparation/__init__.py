"""Preparation of a run: examines its text, makes its tokenizer, its training corpora as ids, and its validation text.

Reads parallel text and settings, and writes the folders `tokenizer` and `data` of the run directory. `doctor` finds
what is wrong with text, and mends it. A teacher may translate training text. Of the other packages of mtkit, only
`translation`, `bundle`, `models`, `data`, `text` and `config` may be imported here.
"""
