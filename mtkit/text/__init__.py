"""Text: lines of files and pipes, parallel corpora, tokenizers and their special symbols.

Files go in; lines, pairs and ids come out. May import config alone; nothing here imports torch.
"""
