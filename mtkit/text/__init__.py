"""Text and tokenizers: lines of files and pipes, parallel corpora, test sets, tokenizers and their vocabularies.

Takes text files and settings; gives lines, sentence pairs and token ids. May import config; never imports torch.
"""
