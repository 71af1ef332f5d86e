"""Who, what, where and when: the phrases that clauses of the demo corpus are made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeVar

import demo_lexicon as lexicon
from demo_forms import EMPTY, Feature, Nominal, Phrase, Word, Words, inflect, join, starts_with_vowel
from demo_lexicon import Adjective, Noun, Verb

T = TypeVar("T")

# How objects of a kind are introduced, the frequent ways more than once.
ALL_DETERMINERS = ("un", "un", "un", "le", "le", "ce", "possessive", "possessive", "des", "les", "number", "several")
DETERMINERS = {
    "mass": ("partitive", "partitive", "partitive", "le", "ce"),
    "drink": ("partitive", "partitive", "partitive", "le", "ce"),
    "place": ("un", "le", "le", "ce"),
    "transport": ("un", "le", "le", "ce"),
    "vehicle": ("un", "un", "le", "ce", "possessive"),
    "machine": ("un", "un", "le", "ce", "possessive"),
    "person": ("un", "un", "le", "le", "ce", "les", "des", "number"),
}

PRONOUNS = (
    ("je", "I", "m", "my"),
    ("tu", "you", "m", "your"),
    ("il", "he", "m", "his"),
    ("nous", "we", "m", "our"),
    ("vous", "you", "m", "your"),
    ("ils", "they", "m", "their"),
    ("elle", "she", "f", "her"),
    ("elles", "they", "f", "their"),
)
OWNERS = ("my", "your", "", "our", "your", "their")
POSSESSIVES = (
    ("mon", "ma", "mes"),
    ("ton", "ta", "tes"),
    ("son", "sa", "ses"),
    ("notre", "notre", "nos"),
    ("votre", "votre", "vos"),
    ("leur", "leur", "leurs"),
)


@dataclass
class Phrases:
    """Composes phrases; what they say follows from `meaning`, how English says it from `wording`."""

    meaning: Random
    wording: Random
    clauses: tuple[int, int] = (1, 3)
    variety: int = 1
    features: set[Feature] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    last_object: Nominal | None = None
    taken: set[str] = field(default_factory=set)  # names and nouns already in the sentence
    last_verb: str = ""
    begun: bool = False  # a clause stands already, so that a time may no longer open the sentence
    timed: bool = False  # the sentence has its time

    # ---- drawing and linking

    def link(self) -> frozenset[int]:
        return frozenset([next(self.numbers)])

    def chance(self, probability: float) -> bool:
        return self.meaning.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.meaning.random() * len(options))]

    def way(self, ways: Sequence[T]) -> T:
        """One of the first `variety` ways of saying a thing."""
        allowed = ways[: self.variety]
        return allowed[int(self.wording.random() * len(allowed))]

    def say(self, source: str, target: str) -> Phrase:
        """A phrase of the lexicon: "hier_1 soir_2" and "last_1 night_2"; words without a number share one link."""
        links: dict[str, frozenset[int]] = {}

        def words(text: str) -> Words:
            parts = [part.partition("_") for part in text.split()]
            return tuple(Word(word, links.setdefault(mark, self.link())) for word, _, mark in parts)

        return Phrase(words(source), words(target))

    def note(self, kind: str, first: str, second: str) -> None:
        self.features.add((kind, first, second))

    # ---- noun phrases

    def adjectives(self, noun: Noun) -> tuple[Adjective | None, Adjective | None]:
        """At most one adjective that precedes the noun in French and one that follows it."""
        fitting = [adjective for adjective in lexicon.ADJECTIVES if noun.kind in adjective.kinds]
        before = [adjective for adjective in fitting if adjective.precedes]
        after = [adjective for adjective in fitting if not adjective.precedes]
        draw = self.meaning.random()
        first = self.pick(before) if before and draw < 0.17 else None
        # Both at once (a beautiful white dress) only for things: of persons English has its own order.
        second = self.pick(after) if after and (0.17 if noun.kind == "person" else 0.14) <= draw < 0.34 else None
        for adjective in (first, second):
            if adjective:
                self.note("adjective", noun.french, adjective.forms[0])
        return first, second

    def noun_phrase(self, noun: Noun, determiner: str, owner: Nominal | None = None, plain: bool = False) -> Nominal:
        """The noun with a determiner (un, le, ce, possessive, number, partitive, none-of, generic) and adjectives."""
        countable = noun.kind not in ("mass", "drink")
        plural = countable and determiner in ("des", "les", "number", "generic", "several", "which_many")
        if countable and determiner in ("ce", "possessive", "none") and noun.kind not in ("kin", "vehicle", "machine"):
            plural = self.chance(0.3)
        first, second = (None, None) if plain else self.adjectives(noun)
        head, adjective_links = self.link(), (self.link(), self.link())
        source, target = [], []
        if first:
            vowel = starts_with_vowel(noun.french) and noun.gender == "m" and not plural
            text = first.before_vowel if vowel else inflect(first, noun.gender, plural)
            source.append(Word(text, adjective_links[0]))
            target.append(Word(self.way(first.english), adjective_links[0]))
        source.append(Word(noun.french_plural if plural else noun.french, head))
        if second:
            source.append(Word(inflect(second, noun.gender, plural), adjective_links[1]))
            target.append(Word(self.way(second.english), adjective_links[1]))
        target.append(Word(self.way(noun.english_plural if plural else noun.english), head))
        opening = self.determine(determiner, noun, plural, source[0].text, owner, bool(first))
        person = 5 if plural else 2
        human = noun.kind in ("person", "kin")
        possessor = "their" if plural else ("her" if noun.gender == "f" else "his") if human else "its"
        phrase = join(opening, Phrase(tuple(source), tuple(target)))
        return Nominal(phrase, person, noun.gender, possessor, noun.kind, noun.french)

    def determine(
        self, determiner: str, noun: Noun, plural: bool, following: str, owner: Nominal | None, adjective_first: bool
    ) -> Phrase:
        """The determiner of a noun phrase whose next French word is `following`."""
        feminine, vowel = noun.gender == "f", starts_with_vowel(following)
        definite = "les" if plural else "la" if feminine else "le"
        if determiner == "le" or determiner == "les":
            return self.say(definite, "the")
        if determiner == "generic":
            return Phrase((Word(definite, self.link()),), ())
        if determiner == "un":
            return self.say("une" if feminine else "un", "a")
        if determiner == "des":
            return self.say("de" if adjective_first else "des", "some")
        if determiner == "partitive":
            return self.say(f"de {definite}", "some")
        if determiner == "none":
            return self.say("de", "any" if plural or noun.kind in ("mass", "drink") else "a")
        if determiner == "ce":
            singular = "cette" if feminine else "cet" if vowel else "ce"
            return self.say("ces" if plural else singular, "these" if plural else "this")
        if determiner == "number":
            return self.say(*lexicon.number(2 + int(self.meaning.random() * 10)))
        if determiner == "several":
            return self.say("plusieurs", "several") if self.chance(0.5) else self.say("beaucoup de", "many")
        if determiner == "which_many":
            return self.say("combien_1 de_2", "how_1 many_2")
        if determiner == "which":
            return self.say("quelle" if feminine else "quel", "which")
        return self.possessive(owner, feminine, plural, vowel)

    def possessive(self, owner: Nominal | None, feminine: bool, plural: bool, vowel: bool) -> Phrase:
        """My, your, ... of the owner; without one, of somebody present."""
        if owner is None or owner.kind not in ("pronoun", "name", "person", "kin"):
            person = self.pick((0, 0, 1, 3, 4))
            english = OWNERS[person]
        else:
            person, english = owner.person, owner.owner
            if owner.kind == "name" and owner.person == 2:
                self.note("possessor", "name", owner.key)
        forms = POSSESSIVES[person]
        form = forms[2] if plural else forms[1] if feminine and not vowel else forms[0]
        return self.say(form, english)

    def nouns(self, *kinds: str) -> list[Noun]:
        return [noun for noun in lexicon.NOUNS if noun.kind in kinds]

    def object_of(self, verb: Verb, subject: Nominal, negation: str) -> Nominal:
        """An object that suits the verb; after a negation un, du and des become de."""
        noun = self.pick([noun for noun in self.nouns(*verb.kinds) if noun.french not in self.taken])
        if noun.kind in ("person", "kin") and self.chance(0.4):
            return self.name()
        self.note("object", verb.infinitive, noun.french)
        self.taken.add(noun.french)
        if noun.kind == "kin":
            if verb.infinitive == "avoir" or self.chance(0.8):
                return self.noun_phrase(noun, "possessive", subject)
            return self.kin_of_somebody(noun)
        if verb in lexicon.TASTES:
            return self.noun_phrase(noun, "generic")
        determiner = self.pick(DETERMINERS.get(noun.kind, ALL_DETERMINERS))
        if verb.infinitive in ("connaître", "comprendre", "voir", "garder") and determiner in ("un", "des"):
            determiner = "le"
        if negation and determiner in ("un", "partitive", "des", "number", "several"):
            determiner = "none"
        return self.noun_phrase(noun, determiner, subject)

    def kin_of_somebody(self, noun: Noun) -> Nominal:
        """La sœur de Marie, Marie's sister."""
        name = self.name()
        kin = self.noun_phrase(noun, "le", plain=True)
        article, head = kin.phrase.source
        of = Word("de", name.phrase.source[0].links)
        possessor = name.phrase.target[0]._replace(text=f"{name.phrase.target[0].text}'s")
        possessor = possessor._replace(links=possessor.links | article.links)
        phrase = Phrase((article, head, of, *name.phrase.source), (possessor, kin.phrase.target[-1]))
        return replace(kin, phrase=phrase, kind="kin")

    def name(self) -> Nominal:
        women = self.chance(0.5)
        name = self.pick([n for n in (lexicon.WOMEN if women else lexicon.MEN) if n not in self.taken])
        self.taken.add(name)
        self.note("name", "", name)
        phrase = self.say(name, name)
        return Nominal(phrase, 2, "f" if women else "m", "her" if women else "his", "name", name)

    def two_names(self) -> Nominal:
        first, second = self.name(), self.name()
        gender = "f" if first.gender == second.gender == "f" else "m"
        return Nominal(join(first.phrase, self.say("et", "and"), second.phrase), 5, gender, "their", "name", first.key)

    def pronoun(self, index: int | None = None) -> Nominal:
        """One of je, tu, il, nous, vous, ils, elle, elles; je, tu and their plurals may be women."""
        if index is None:
            index = self.pick((0, 0, 0, 1, 1, 2, 2, 6, 6, 3, 4, 5, 7))
        french, english, gender, owner = PRONOUNS[index]
        if index in (0, 1):
            gender = self.pick("mf")
        person = {6: 2, 7: 5}.get(index, index)
        return Nominal(self.say(french, english), person, gender, owner, "pronoun", french)

    def pronoun_for(self, nominal: Nominal) -> Nominal:
        """The pronoun that takes up a noun phrase: elle for "la maison", it in English."""
        if nominal.kind == "pronoun":
            return replace(nominal, phrase=self.say(nominal.phrase.source[0].text, nominal.phrase.target[0].text))
        french = ("elle" if nominal.gender == "f" else "il") + ("s" if nominal.plural else "")
        english = {"his": "he", "her": "she", "its": "it", "their": "they"}[nominal.owner]
        kind = nominal.kind if nominal.owner == "its" or nominal.kind not in ("name", "person", "kin") else "pronoun"
        return replace(nominal, phrase=self.say(french, english), kind=kind)

    def somebody(self) -> Nominal:
        draw = self.meaning.random()
        if draw < 0.42:
            return self.pronoun()
        if draw < 0.68:
            return self.name()
        if draw < 0.73:
            return self.two_names()
        noun = self.pick([noun for noun in self.nouns("person", "kin") if noun.french not in self.taken])
        self.taken.add(noun.french)
        if noun.kind == "kin":
            return self.noun_phrase(noun, "possessive", plain=True) if self.chance(0.7) else self.kin_of_somebody(noun)
        return self.noun_phrase(noun, self.pick(("le", "le", "un", "ce", "les", "number")))

    # ---- places and times

    def place(self, how: str) -> Phrase:
        """Where something happens ("static", or "town" for a town or country) or where somebody goes ("motion")."""
        into = how == "motion"
        draw = self.meaning.random() * (0.42 if how == "town" else 1)
        if draw < 0.3:
            town = self.pick(sorted(lexicon.TOWNS))
            self.note("place", how, town)
            return self.say("à_1 " + town + "_2", ("to_1 " if into else "in_1 ") + lexicon.TOWNS[town] + "_2")
        if draw < 0.42:
            french, country = self.pick(sorted(lexicon.COUNTRIES.items()))
            preposition, name = french.split()
            return self.say(f"{preposition}_1 {name}_2", ("to_1 " if into else "in_1 ") + country + "_2")
        if draw < 0.75 or into:
            noun = self.pick(self.nouns("place"))
            self.note("place", how, noun.french)
            phrase = self.noun_phrase(noun, "le", plain=True).phrase
            return join(self.say("à", "to" if into else "at"), phrase)
        noun = self.pick(self.nouns("room"))
        self.note("place", "dans", noun.french)
        return join(self.say("dans", "in"), self.noun_phrase(noun, self.pick(("le", "le", "un", "ce"))).phrase)

    def clock(self) -> Phrase:
        """At eight o'clock, at half past eight, at 14:25."""
        hour, kind = 1 + int(self.meaning.random() * 11), self.meaning.random()
        at, (french, english) = self.say("à", "at"), lexicon.number(hour)
        french, unit = ("une", "heure") if hour == 1 else (french, "heures")
        if kind < 0.1:
            return join(at, self.say("midi", "noon") if self.chance(0.5) else self.say("minuit", "midnight"))
        if kind < 0.4:
            return join(at, self.say(f"{french}_1 {unit}_2", f"{english}_1 o'clock_2"))
        if kind < 0.55:
            return join(at, self.say(f"{french}_1 {unit}_2 et_2 demie_3", f"half_3 past_2 {english}_1"))
        if kind < 0.65:
            return join(at, self.say(f"{french}_1 {unit}_2 et_2 quart_3", f"quarter_3 past_2 {english}_1"))
        if kind < 0.75:
            return join(at, self.say(f"{french}_1 {unit}_2 moins_2 le_3 quart_3", f"quarter_3 to_2 {english}_1"))
        if kind < 0.85:
            minutes = self.pick((("dix", "ten"), ("vingt", "twenty")))
            return join(at, self.say(f"{french}_1 {unit}_2 {minutes[0]}_3", f"{minutes[1]}_3 past_2 {english}_1"))
        hour, minute = 6 + int(self.meaning.random() * 17), 5 * (2 + int(self.meaning.random() * 10))
        return join(at, self.say(f"{hour} h {minute}", f"{hour}:{minute}"))

    def ago(self) -> Phrase:
        """Il y a deux jours, two days ago."""
        french, english = lexicon.number(2 + int(self.meaning.random() * 9))
        unit = self.pick(lexicon.UNITS)
        return self.say(f"il_1 y_1 a_1 {french}_2 {unit[0]}_3", f"{english}_2 {unit[1]}_3 ago_1")

    def later(self) -> Phrase:
        french, english = lexicon.number(2 + int(self.meaning.random() * 9))
        unit = self.pick(lexicon.UNITS)
        return self.say(f"dans_1 {french}_2 {unit[0]}_3", f"in_1 {english}_2 {unit[1]}_3")

    def time(self, tense: str) -> Phrase:
        """A time that suits the tense."""
        if tense in ("habit", "former"):
            times = lexicon.HABITS if tense == "habit" or self.chance(0.6) else lexicon.FORMER_TIMES
            return self.say(*self.pick(times))
        if tense == "now":
            return self.say(*self.pick(lexicon.NOW))
        if tense == "past":
            return self.ago() if self.chance(0.25) else self.say(*self.pick(lexicon.PAST_TIMES))
        if tense == "future":
            return self.later() if self.chance(0.2) else self.say(*self.pick(lexicon.FUTURE_TIMES))
        return self.say(*self.pick(lexicon.FUTURE_TIMES)) if tense == "going" else EMPTY
