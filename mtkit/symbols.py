"""The ids that every vocabulary begins with. They are the project's own: every tokenizer is trained to have them."""

PAD = 0  # fills a row; zero, so that a fresh array of zeros is padding
UNKNOWN = 1  # stands for what has no piece; no text is, where a tokenizer spells in bytes
BEGIN = 2  # the decoder starts from it, unless its model has another start token
END = 3  # ends every source and every target

NUM_SPECIAL = 4

START_TOKENS = {"begin": BEGIN, "pad": PAD, "end": END}  # what a decoder may read first, by the names of the settings
