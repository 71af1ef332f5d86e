"""The demo corpus is what its generator says: repeatable, split cleanly, aligned by construction."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from random import Random
from types import ModuleType

import pytest
import sacrebleu

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "data" / "demo"
SPLITS = ("train", "valid", "test")
NAMES = [f"{split}.{side}" for split in SPLITS for side in ("fr", "en")]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import generate_demo
    finally:
        sys.path.pop(0)
    return generate_demo


@pytest.fixture(scope="module")
def grammar(demo: ModuleType) -> ModuleType:
    return sys.modules["demo_grammar"]


@pytest.fixture(scope="module")
def forms(demo: ModuleType) -> ModuleType:
    return sys.modules["demo_forms"]


@pytest.fixture(scope="module")
def corpus(demo: ModuleType) -> dict:
    return demo.generate(demo.Dials())


def lines(name: str) -> list[str]:
    return (CORPUS / name).read_text(encoding="utf-8").splitlines()


def small(demo: ModuleType, **dials: object) -> dict:
    return demo.generate(demo.Dials(**{"train": 120, "valid": 10, "test": 20, **dials}))


# ---- the committed files


def test_the_generator_writes_the_committed_bytes_again(demo, corpus, tmp_path):
    demo.write(corpus, tmp_path, alignment=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (CORPUS / name).read_bytes(), name


def test_no_sentence_of_either_side_stands_in_two_splits():
    for side in ("fr", "en"):
        train, valid, test = (set(lines(f"{split}.{side}")) for split in SPLITS)
        assert not train & valid
        assert not train & test
        assert not valid & test


def test_sides_have_as_many_lines_and_the_files_stay_small():
    for split in SPLITS:
        sources, targets = lines(f"{split}.fr"), lines(f"{split}.en")
        assert len(sources) == len(targets) == len(set(sources))
    assert 8_000 <= sum(len(lines(f"{split}.fr")) for split in SPLITS) <= 20_000
    assert sum((CORPUS / name).stat().st_size for name in NAMES) < 2_000_000


def test_the_demo_shows_new_sentences_with_words_of_the_training_text_and_others_with_words_that_it_lacks():
    script = (ROOT / "scripts" / "demo").read_text("utf-8")
    sentences = re.findall(r'^  "(.+)"$', script, re.MULTILINE)
    assert len(sentences) == len(set(sentences)) == 6
    assert not set(sentences) & {line for split in SPLITS for line in lines(f"{split}.fr")}
    known = words(" ".join(lines("train.fr")))
    lacking = [words(sentence) - known for sentence in sentences]
    assert not any(lacking[:3])
    assert all(lacking[3:])
    (shown,) = re.findall(r"has never seen \((.*)\)", script)
    assert words(shown) == set().union(*lacking[3:])


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def test_every_line_is_clean_text():
    for name in NAMES:
        for line in lines(name):
            assert line == " ".join(line.split())
            assert line[0].isupper() or line[0].isdigit()
            assert line[-1] in ".?!"
            assert "_" not in line


def test_french_elides_and_contracts():
    words = [line.lower().split() for split in SPLITS for line in lines(f"{split}.fr")]
    bigrams = {bigram for line in words for bigram in pairwise(line)}
    assert not {("si", "il"), ("si", "ils")} & bigrams
    # "de le" and "à les" are right before a verb (essayer de le lire) and before nothing else.
    infinitives = ("er", "ir", "re")
    assert all(
        any(follower.rstrip(".?!,").endswith(infinitives) for follower in followers)
        for followers in (
            line[place + 2 : place + 3]
            for line in words
            for place, pair in enumerate(pairwise(line))
            if pair[0] in ("à", "de") and pair[1] in ("le", "les")
        )
    )
    for first, second in bigrams:
        if first in ("le", "la", "je", "me", "te", "se", "ne", "de", "que"):
            assert second[0] not in "aeiouéèêàœ" or second == "onze", (first, second)


def test_english_says_an_before_a_vowel():
    for split in SPLITS:
        for line in lines(f"{split}.en"):
            for first, second in pairwise(line.lower().split()):
                if first in ("a", "an"):
                    vowel = second[0] in "aeiou" and not second.startswith(("use", "uni"))
                    assert (first == "an") == vowel, line


# ---- the splits


def test_each_test_sentence_has_a_combination_that_training_lacks(demo, corpus):
    def combinations(pair):
        return {feature for feature in pair.features if demo.is_held_out(feature, demo.Dials().seed)}

    assert all(combinations(pair) for pair in corpus["test"] + corpus["valid"])
    assert not any(combinations(pair) for pair in corpus["train"])


def test_looking_up_the_nearest_sentence_stays_below_60_bleu(demo):
    train, test = (list(zip(lines(f"{split}.fr"), lines(f"{split}.en"), strict=True)) for split in ("train", "test"))
    assert demo.lookup_bleu(train, test[::8]) < 60


def test_the_lookup_ranks_as_the_chrf_of_sacrebleu(demo):
    train = [*lines("train.fr")[:200], "Oui.", "Non !"]
    lookup = demo.Lookup(train)
    for query in [*lines("test.fr")[:5], "Oui ?"]:
        exact = [sacrebleu.sentence_chrf(line, [query]).score for line in train]
        assert lookup.scores(query).tolist() == pytest.approx(exact, abs=1e-6)
        assert lookup.nearest(query) == max(range(len(train)), key=lambda i: (round(exact[i], 6), -i))


# ---- the alignment


def test_alignments_point_into_their_sentences_and_leave_no_content_word_alone(forms, corpus):
    # What one language says and the other does not: articles of things in general, "of" in Marie's sister, "à" ...
    silent_source = {"le", "la", "les", "l'", "de", "d'", "est-", "ce", "que", "qu'", "en"}
    silent_target = {"do", "does", "did", "a", "an"}
    for pair in corpus["test"] + corpus["train"][:2000]:
        source, target = forms.tokenize(pair.source), forms.tokenize(pair.target)
        assert all(i < len(source) and j < len(target) for i, j in pair.alignment)
        alone = {source[i].lower() for i in set(range(len(source))) - {i for i, _ in pair.alignment}}
        assert alone <= silent_source, pair
        alone = {target[j].lower() for j in set(range(len(target))) - {j for _, j in pair.alignment}}
        assert alone <= silent_target, pair


def test_tokens_keep_an_apostrophe_or_hyphen_with_the_word_before(forms):
    assert forms.tokenize("L'homme n'a-t-il pas 12,50 euros ?") == [
        *("L'", "homme", "n'", "a-", "t-", "il", "pas", "12,50", "euros", "?")
    ]
    assert forms.tokenize("Paul's dog doesn't bark at 8:15.") == [
        *("Paul's", "dog", "doesn't", "bark", "at", "8:15", ".")
    ]


def aligned(forms: ModuleType, phrase) -> tuple[str, str, str]:
    source, target = forms.fuse_source(phrase.source), forms.fuse_target(phrase.target)
    links = " ".join(f"{i}-{j}" for i, j in forms.align(source, target))
    return forms.write_line(source, ""), forms.write_line(target, ""), links


def fresh(grammar: ModuleType):
    return grammar.Grammar(Random("a"), Random("b"))


def noun(grammar: ModuleType, french: str):
    return next(noun for noun in grammar.lexicon.NOUNS if noun.french == french)


def test_an_adjective_after_its_noun_crosses_it(grammar, forms, monkeypatch):
    composer = fresh(grammar)
    white = next(adjective for adjective in grammar.lexicon.ADJECTIVES if adjective.forms[0] == "blanc")
    old = next(adjective for adjective in grammar.lexicon.ADJECTIVES if adjective.forms[0] == "vieux")
    monkeypatch.setattr(composer, "adjectives", lambda noun: (old, white))
    house = composer.noun_phrase(noun(grammar, "maison"), "le")
    assert aligned(forms, house.phrase) == ("La vieille maison blanche", "The old white house", "0-0 1-1 2-3 3-2")


def test_two_words_of_negation_go_with_one(grammar, forms):
    composer, lexicon = fresh(grammar), grammar.lexicon
    verb = next(verb for verb in lexicon.TRANSITIVE if verb.infinitive == "manger")
    bread = composer.noun_phrase(noun(grammar, "pain"), "none", plain=True)
    clause = forms.Clause(composer.pronoun(2), verb, verb.english[0], "past", negation="pas", complement=bread.phrase)
    assert aligned(forms, composer.realise(clause)) == (
        "Il n'a pas mangé de pain",
        "He didn't eat any bread",
        "0-0 1-1 2-1 3-1 4-2 5-3 6-4",
    )


def test_an_object_pronoun_crosses_its_verb_and_the_participle_agrees(grammar, forms):
    composer, lexicon = fresh(grammar), grammar.lexicon
    verb = next(verb for verb in lexicon.TRANSITIVE if verb.infinitive == "aider")
    her = composer.pronoun_object("f", plural=False, english="her")
    clause = forms.Clause(composer.pronoun(0), verb, verb.english[0], "past", clitic=her)
    assert aligned(forms, composer.realise(clause)) == ("Je l'ai aidée", "I helped her", "0-0 1-2 2-1 3-1")


def test_contracted_words_are_aligned_with_both_meanings(grammar, forms):
    composer = fresh(grammar)
    market = composer.noun_phrase(noun(grammar, "marché"), "le", plain=True)
    phrase = forms.join(composer.say("à", "to"), market.phrase)
    assert aligned(forms, phrase) == ("Au marché", "To the market", "0-0 0-1 1-2")


def test_alignments_are_written_only_when_asked_for(demo, tmp_path):
    corpus = small(demo)
    demo.write(corpus, tmp_path / "plain", alignment=None)
    demo.write(corpus, tmp_path / "gold", alignment="tokens")
    assert not (tmp_path / "plain" / "test.align").exists()
    gold = (tmp_path / "gold" / "test.align").read_text("utf-8").splitlines()
    assert gold == [" ".join(f"{i}-{j}" for i, j in pair.alignment) for pair in corpus["test"]]


def test_alignments_between_words_join_those_of_their_tokens(demo, forms, corpus):
    pair = forms.Pair("L'homme dort.", "The man is sleeping.", ((0, 0), (1, 1), (2, 2), (2, 3), (3, 4)), frozenset())
    assert demo.between_words(pair) == [(0, 0), (0, 1), (1, 2), (1, 3)]
    written = [" ".join(f"{i}-{j}" for i, j in demo.between_words(pair)) for pair in corpus["test"]]
    assert written == lines("test.align")


# ---- the dials


def test_names_held_out_stand_in_the_test_and_not_in_training(demo):
    dials = demo.Dials(train=300, valid=40, test=200, held_out_names=6)
    corpus, hidden = demo.generate(dials), demo.hidden_names(dials)
    assert len(hidden) == 6

    def names(split):
        return {name for pair in corpus[split] for kind, _, name in pair.features if kind == "name"}

    assert not hidden & (names("train") | names("valid"))
    assert hidden <= names("test")


def test_more_clauses_make_longer_sentences(demo):
    def length(clauses):
        sources = [pair.source.split() for pair in small(demo, clauses=clauses)["train"]]
        return sum(map(len, sources)) / len(sources)

    short, medium, long = (length(clauses) for clauses in ((1, 1), (2, 3), (4, 5)))
    assert short < 8 < medium < 20 < long


def test_with_variety_one_french_sentence_has_several_translations(demo):
    def translations(variety):
        found = defaultdict(set)
        for pair in small(demo, variety=variety)["train"]:
            found[pair.source].add(pair.target)
        return [len(targets) for targets in found.values()]

    assert max(translations(1)) == 1
    assert sum(count > 1 for count in translations(3)) > 10


def test_another_seed_says_other_things(demo):
    one, two = ({pair.source for pair in small(demo, seed=seed)["train"]} for seed in (1, 2))
    assert len(one & two) < 30
