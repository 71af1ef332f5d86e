"""What feeds the training loop: how often each pair comes, in which segmentation, and the batches made ahead."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain

from mtkit.batch import Batch
from mtkit.changes import earlier_budgets
from mtkit.config.settings import Config
from mtkit.data.ahead import made_ahead
from mtkit.data.batches import Sampling, micro_batches
from mtkit.data.corpus import Corpus
from mtkit.data.mixing import Mixture, is_natural, mix
from mtkit.errors import CheckpointError, DataError
from mtkit.symbols import Marks
from mtkit.text.tokenizer import Tokenizer
from mtkit.training.checkpoint import Progress

NUM_AHEAD = 8  # batches that are made before they are needed

Stream = Iterator[tuple[int, tuple[Batch, ...]]]  # each batch in its parts, with its epoch


@dataclass(frozen=True)
class Feed:
    """The binarized pairs, and how training takes them."""

    config: Config
    corpus: Corpus
    mixture: Mixture | None  # None: each pair once an epoch
    sampling: Sampling | None  # None: the ids that the corpus holds
    marks: Marks  # of the model that reads the batches

    @staticmethod
    def prepare(config: Config, tokenizer: Tokenizer, corpus: Corpus, marks: Marks) -> "Feed":
        """As the settings say; a corpus that does not hold what they ask for is an error."""
        return Feed(config, corpus, mixture_of(config, corpus), sampling_of(config, tokenizer, corpus), marks)

    @contextmanager
    def batches(self, progress: Progress) -> Iterator[Stream]:
        """The batches from here on, made in a thread that ends with the block."""
        stream = micro_batches(
            self.corpus,
            self.config.training,
            progress.pairs,
            self.sampling,
            self.marks,
            self.mixture,
            earlier_budgets(progress.changes),
        )
        try:
            first = next(stream)
        except ValueError as error:
            raise CheckpointError(
                f"{self.config.run_path}: cannot go on from step {progress.step:,}: {error}, so another version of "
                "mtkit ordered its data; go on with that one, or start anew with --fresh"
            ) from None
        with made_ahead(stream, NUM_AHEAD) as rest:
            yield chain([first], rest)


def mixture_of(config: Config, corpus: Corpus) -> Mixture | None:
    """How often an epoch goes through each of the corpora; None where it goes through all once."""
    weights = [text.weight for text in config.data.train]
    if is_natural(weights, config.data.temperature):
        return None
    if len(corpus.manifest.corpora) != len(weights):
        raise DataError(
            f"{corpus.directory}: tells the pairs of {len(corpus.manifest.corpora)} corpora, but data.train has "
            f"{len(weights)}; binarize the corpora again"
        )
    return mix(corpus.manifest.corpora, weights, config.data.temperature)


def sampling_of(config: Config, tokenizer: Tokenizer, corpus: Corpus) -> Sampling | None:
    """How training samples segmentations of the corpus's text, if it does."""
    settings = config.training
    if not settings.samples_subwords:
        return None
    corpus.require_text()
    alpha = settings.bpe_dropout if settings.unigram_alpha is None else settings.unigram_alpha
    source, target = (
        partial(sample, alpha=alpha, nbest=settings.unigram_nbest)
        for sample in (tokenizer.sample_source, tokenizer.sample_target)
    )
    return Sampling(source, target, config.data.max_length)
