"""Words with their links, the forms of French and English words, and how words become a line.

Words that share a link are aligned: wherever the two languages put them, `align` finds them.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import demo_lexicon as lexicon
from demo_lexicon import Adjective, EnglishVerb, Verb

# A number with decimals; letters or digits with the apostrophe or hyphen after them (l' | homme, vas- | tu), where an
# English 's or n't stays with its word; any other sign alone.
TOKEN = re.compile(r"\d+[.,:]\d+|\w+(?:'[st]\b|['-])?|[^\w\s]")


def tokenize(line: str) -> list[str]:
    """The tokens that alignments count, of either language: ["L'", "homme", "dort", "."]."""
    return TOKEN.findall(line)


class Word(NamedTuple):
    text: str
    links: frozenset[int] = frozenset()
    bound: bool = False  # an object pronoun: "de le voir" is not contracted


Words = tuple[Word, ...]


class Phrase(NamedTuple):
    source: Words = ()
    target: Words = ()


EMPTY = Phrase()
Feature = tuple[str, str, str]


class Pair(NamedTuple):
    source: str
    target: str
    alignment: tuple[tuple[int, int], ...]
    features: frozenset[Feature]  # the combinations in it, such as ("object", "lire", "journal")


def join(*phrases: Phrase) -> Phrase:
    """The phrases one after the other, on both sides."""
    return Phrase(tuple(w for p in phrases for w in p.source), tuple(w for p in phrases for w in p.target))


@dataclass(frozen=True)
class Nominal:
    """Who or what a clause is about: a noun phrase with all that agreement needs."""

    phrase: Phrase
    person: int  # 0 to 5: je, tu, il, nous, vous, ils
    gender: str
    owner: str  # my, your, his, her, its, our, their
    kind: str  # pronoun, name, or the noun's kind
    key: str = ""

    @property
    def plural(self) -> bool:
        return self.person >= 3

    @property
    def ending(self) -> str:
        """What agreement adds to a participle."""
        return ("e" if self.gender == "f" else "") + ("s" if self.plural else "")


@dataclass(frozen=True)
class Clitic:
    phrase: Phrase
    ending: str = ""  # what it adds to the participle after avoir
    key: str = "clitic"


@dataclass(frozen=True)
class Clause:
    subject: Nominal
    verb: Verb
    english: EnglishVerb
    tense: str
    helper: tuple[Verb, str, EnglishVerb] | None = None  # what governs the infinitive, its preposition, its English
    negation: str = ""  # pas, jamais, plus, rien
    frequency: str = ""
    clitic: Clitic | None = None
    complement: Phrase = EMPTY
    question: str = ""  # est-ce que, inversion, or subject for "qui"
    front: Phrase = EMPTY  # the question word
    ending: str = ""  # the agreement of the participle with an object that stands before it


IMPERFECT = ("ais", "ais", "ait", "ions", "iez", "aient")
FUTURE = ("ai", "as", "a", "ons", "ez", "ont")

# What each tense is in French and in English.
TENSES = {
    "habit": ("present", "simple"),
    "now": ("present", "progressive"),
    "past": ("perfect", "past"),
    "background": ("imperfect", "past progressive"),
    "former": ("imperfect", "used to"),
    "future": ("future", "will"),
    "when": ("future", "simple"),
    "going": ("present", "going to"),
    "just": ("present", "just"),
}
CONTRACTED = {"can": "can't", "will": "won't", "am": "am not"}


def starts_with_vowel(word: str) -> bool:
    """Whether French elides before the word: oiseau, homme, y, but not onze or huit."""
    if word in ("onze", "huit"):
        return False
    return unicodedata.normalize("NFD", word)[0].lower() in "aeiouyhœ"


# ---- French forms


def imperfect(verb: Verb, person: int) -> str:
    stem = "ét" if verb.infinitive == "être" else verb.present[3][:-3]
    if person in (3, 4):
        stem = stem.replace("ç", "c")
        stem = stem[:-1] if stem.endswith("ge") else stem
    return stem + IMPERFECT[person]


def finite(verb: Verb, tense: str, person: int) -> str:
    """The inflected word: mange, mangeait, mangera; for the perfect its auxiliary."""
    if tense == "imperfect":
        return imperfect(verb, person)
    if tense == "future":
        return verb.future_stem + FUTURE[person]
    if tense == "perfect":
        return (lexicon.ETRE if verb.auxiliary == "être" else lexicon.HAVE).present[person]
    return verb.present[person]


def agree(participle: str, ending: str) -> str:
    return participle + (ending.removesuffix("s") if participle.endswith("s") else ending)


def inflect(adjective: Adjective, gender: str, plural: bool) -> str:
    return adjective.forms[(gender == "f") + 2 * plural]


# ---- English forms


def be(person: int, past: bool = False) -> str:
    if past:
        return "was" if person in (0, 2) else "were"
    return {0: "am", 2: "is"}.get(person, "are")


def english_forms(verb: EnglishVerb, tense: str, person: int, aspect: str) -> tuple[str, str]:
    """The auxiliary, or an empty one, and the words of the verb after it."""
    if tense == "past progressive" and aspect == "state":
        tense = "past"
    if verb.base in ("can", "must") and tense != "will":
        return ("could" if tense == "past" else verb.base), ""
    if tense == "will":
        return "will", {"can": "be able to", "must": "have to"}.get(verb.base, verb.base)
    if verb.base.split()[0] == "be" and tense in ("simple", "past"):
        return be(person, tense == "past"), verb.base[3:]
    return {
        "simple": ("", verb.third if person == 2 else verb.base),
        "past": ("", verb.past),
        "progressive": (be(person), verb.ing),
        "past progressive": (be(person, past=True), verb.ing),
        "used to": ("", f"used to {verb.base}"),
        "going to": (be(person), "going to"),
        "just": ("has" if person == 2 else "have", "just"),
    }[tense]


def do_support(verb: EnglishVerb, tense: str, person: int) -> tuple[str, str]:
    """Do, does or did, and the bare verb."""
    if tense == "simple":
        return ("does" if person == 2 else "do"), verb.base
    return "did", f"use to {verb.base}" if tense == "used to" else verb.base


# ---- from words to a line


def fuse_source(words: Sequence[Word]) -> list[Word]:
    """The French words with their elisions (le homme: l'homme) and contractions (de le pain: du pain)."""
    elided = []
    for word, following in itertools.zip_longest(words, words[1:]):
        text = word.text
        before_vowel = following is not None and starts_with_vowel(following.text)
        if text in ("le", "la", "je", "me", "te", "se", "ne", "de", "que") and before_vowel:
            word = word._replace(text=text[:-1] + "'")
        elif text == "si" and following is not None and following.text in ("il", "ils"):
            word = word._replace(text="s'")
        elided.append(word)
    fused: list[Word] = []
    contractions = {("de", "le"): "du", ("de", "les"): "des", ("à", "le"): "au", ("à", "les"): "aux"}
    for word in elided:
        contracted = contractions.get((fused[-1].text, word.text)) if fused and not word.bound else None
        if contracted:
            fused[-1] = Word(contracted, fused[-1].links | word.links)
        else:
            fused.append(word)
    return fused


def fuse_target(words: Sequence[Word]) -> list[Word]:
    """The English words, with "an" where the next begins with a vowel."""
    fused = []
    for word, following in itertools.zip_longest(words, words[1:]):
        if word.text == "a" and following is not None and takes_an(following.text):
            word = word._replace(text="an")
        fused.append(word)
    return fused


def takes_an(word: str) -> bool:
    return word[0] in "aeiouAEIOU" and not word.startswith(("use", "uni", "one"))


def write_line(words: Sequence[Word], space_before: str) -> str:
    """The words as a line; the signs in space_before keep a space before them."""
    line = ""
    for word in words:
        tight = not line or line.endswith(("'", "-")) or (word.text in ".,?!" and word.text not in space_before)
        line += word.text if tight else " " + word.text
    return line[0].upper() + line[1:]


def align(source: Sequence[Word], target: Sequence[Word]) -> tuple[tuple[int, int], ...]:
    """Pairs of token numbers whose words share a link."""
    source_links = [word.links for word in source for _ in tokenize(word.text)]
    target_links = [word.links for word in target for _ in tokenize(word.text)]
    return tuple((i, j) for i, s in enumerate(source_links) for j, t in enumerate(target_links) if s & t)


class VerbLinks(NamedTuple):
    """What the words of a verb group have in common across the languages."""

    finite: frozenset[int]
    main: frozenset[int]
    negation: frozenset[int]
    question: frozenset[int]
    nothing: frozenset[int]  # rien and anything, or the adverb


def governing(clause: Clause) -> tuple[Verb | None, str]:
    """The verb before an infinitive and its preposition: veut, va, vient de."""
    if clause.tense == "going":
        return lexicon.ALLER, ""
    if clause.tense == "just":
        return lexicon.VENIR, "de"
    return (clause.helper[0], clause.helper[1]) if clause.helper else (None, "")
