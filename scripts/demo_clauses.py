"""The clauses of the demo corpus: a verb with its tense, negation, pronouns and complements, in both languages."""

from __future__ import annotations

from dataclasses import replace

import demo_lexicon as lexicon
from demo_forms import (
    CONTRACTED,
    EMPTY,
    TENSES,
    Clause,
    Clitic,
    Nominal,
    Phrase,
    VerbLinks,
    Word,
    Words,
    agree,
    be,
    do_support,
    english_forms,
    finite,
    governing,
    inflect,
    join,
    starts_with_vowel,
)
from demo_lexicon import Adjective, Verb
from demo_phrases import Phrases

OBJECT_PRONOUNS = (("me", "me"), ("te", "you"), ("", ""), ("nous", "us"), ("vous", "you"))
REFLEXIVES = ("me", "te", "se", "nous", "vous", "se")

# The negations that stay natural with each tense, given the verb's aspect.
NEGATIONS = {
    ("habit", "state"): ("pas", "pas", "plus"),
    ("habit", "action"): ("jamais", "plus"),
    ("habit", "moment"): ("jamais",),
    ("now", "action"): ("pas",),
    ("past", "action"): ("pas", "pas", "jamais"),
    ("past", "moment"): ("pas", "pas", "jamais"),
    ("background", "state"): ("pas", "pas", "plus"),
    ("background", "action"): ("pas",),
    ("future", "state"): ("pas", "jamais", "plus"),
    ("future", "action"): ("pas", "jamais", "plus"),
    ("future", "moment"): ("pas", "jamais"),
    ("going", "action"): ("pas",),
    ("going", "moment"): ("pas",),
}


class Clauses(Phrases):
    """Composes clauses: deeds, states, and what is said of things."""

    # ---- from a clause to its words

    def realise(self, clause: Clause) -> Phrase:
        """The clause in both languages; the links between their verbs follow from the parts that say the same."""
        verb = clause.verb.infinitive
        self.begun, self.last_verb = True, verb
        if clause.english.base != "be":
            if clause.tense == "going":
                self.note("construction", "going", verb)
            for kind, value in (("negation", clause.negation), ("question", clause.question)):
                if value:
                    self.note(kind, value, verb)
            if clause.helper:
                self.note("helper", clause.helper[0].infinitive, verb)
            if clause.clitic:
                self.note("clitic", clause.clitic.key, verb)
        if clause.subject.kind == "name":
            self.note("subject", clause.subject.key, verb)
        links = VerbLinks(self.link(), self.link(), self.link(), self.link(), self.link())
        return Phrase(self.french(clause, links), self.english(clause, links))

    def french(self, clause: Clause, links: VerbLinks) -> Words:
        tense, person, verb = TENSES[clause.tense][0], clause.subject.person, clause.verb
        governor, preposition = governing(clause)
        inflected = governor or verb
        text = finite(inflected, tense, person)
        simple = governor is None and tense != "perfect"
        head = Word(text, links.finite | links.main if simple else links.finite)
        clitics: list[Word] = []
        if verb in lexicon.REFLEXIVE:
            clitics.append(Word(REFLEXIVES[person], links.main, bound=True))
        if clause.clitic:
            clitics += [word._replace(bound=True) for word in clause.clitic.phrase.source]
        before = [Word("ne", links.negation)] if clause.negation else []
        after = [Word(clause.negation, links.nothing | links.negation)] if clause.negation else []
        if clause.negation == "rien":
            after = [Word("rien", links.nothing)]
        if clause.frequency:
            after.append(Word(clause.frequency, links.nothing))
        if tense == "perfect":
            ending = clause.clitic.ending if clause.clitic else clause.ending
            ending = clause.subject.ending if inflected.auxiliary == "être" else "" if governor else ending
            after.append(Word(agree(inflected.participle, ending), links.finite if governor else links.main))
        if governor is None:
            before += clitics
        else:
            after += [Word(preposition, links.finite)] if preposition else []
            after += [*clitics, Word(verb.infinitive, links.main)]
        return self.french_order(clause, links, before, head, after)

    def french_order(
        self, clause: Clause, links: VerbLinks, before: list[Word], head: Word, after: list[Word]
    ) -> Words:
        front, subject = clause.front.source, clause.subject.phrase.source
        complement = clause.complement.source
        if clause.question == "inversion":
            bridge = [Word("t-", head.links)] if clause.subject.person == 2 and head.text[-1] in "ae" else []
            inverted = [head._replace(text=head.text + "-"), *bridge, *subject]
            return (*front, *before, *inverted, *after, *complement)
        asked = [Word("est-ce", links.question), Word("que", links.question)] if clause.question == "est-ce que" else []
        return (*front, *asked, *subject, *before, head, *after, *complement)

    def english(self, clause: Clause, links: VerbLinks) -> Words:
        """The English clause: auxiliary, inversion and do-support are worked out here."""
        tense, person, verb = TENSES[clause.tense][1], clause.subject.person, clause.english
        governed = clause.helper is not None or clause.tense in ("going", "just")
        head_verb, aspect = verb, clause.verb.aspect
        if clause.helper:
            head_verb, aspect = clause.helper[2], clause.helper[0].aspect
        auxiliary, main = english_forms(head_verb, tense, person, aspect)
        denied, asked = clause.negation in ("pas", "rien"), clause.question in ("est-ce que", "inversion")
        auxiliary_links = links.finite
        if not auxiliary and (denied or asked):
            past = tense in ("past", "past progressive")
            auxiliary, main = do_support(head_verb, "past" if past else tense, person)
            marked = denied or clause.question == "est-ce que"
            auxiliary_links = links.finite if tense == "past" or not marked else frozenset()
        if clause.question == "est-ce que":
            auxiliary_links |= links.question
        if denied:
            auxiliary, auxiliary_links = self.deny(auxiliary, asked), auxiliary_links | links.negation
        helped = [Word(auxiliary.split()[0], auxiliary_links)] if auxiliary else []
        detached = [Word("not", links.negation)] if auxiliary.endswith(" not") else []
        if clause.negation in ("jamais", "plus"):
            detached = [Word(word, links.negation) for word in lexicon.ADVERBS[clause.negation].split()]
        if clause.frequency:
            detached = [Word(lexicon.FREQUENCIES[clause.frequency], links.nothing)]
        main_links = links.finite if governed else links.finite | links.main
        if auxiliary:
            main_links = links.finite if governed else links.main
        words = [Word(word, main_links) for word in main.split()]
        if governed:
            bare = verb.participle if clause.tense == "just" else verb.base
            words += [Word(word, links.main) for word in bare.split()]
        if verb.base == "be" and not main:
            helped = [word._replace(links=word.links | links.main) for word in helped]
        if clause.clitic:
            words += clause.clitic.phrase.target
        if clause.negation == "rien":
            words.append(Word("anything", links.nothing))
        front, subject = clause.front.target, clause.subject.phrase.target
        opening = (*front, *helped, *subject) if asked else (*front, *subject, *helped)
        return (*opening, *detached, *words, *clause.complement.target)

    def deny(self, auxiliary: str, asked: bool) -> str:
        """The negated auxiliary: doesn't, or in other words does not."""
        contracted = CONTRACTED.get(auxiliary, f"{auxiliary}n't")
        return contracted if asked else self.way((contracted, f"{auxiliary} not"))

    # ---- what is said of somebody

    def tense_for(self, aspect: str, frame: str) -> str:
        """A tense of the frame (present, past, future) that the verb's aspect allows."""
        draw = self.meaning.random()
        if frame == "present":
            if aspect == "state":
                return "habit"
            if draw < 0.15:
                return "just"
            return "now" if aspect == "action" and draw < 0.6 else "habit"
        if frame == "past":
            if aspect == "state":
                return "background"
            if draw < 0.12:
                return "former"
            return "background" if aspect == "action" and draw < 0.3 else "past"
        if frame == "future":
            return "going" if aspect != "state" and draw < 0.4 else "future"
        return {"when": "when", "while": "background"}.get(frame, "habit")

    def statement(
        self, frame: str, subject: Nominal | None = None, question: str = "", front: Phrase = EMPTY
    ) -> Phrase:
        """A clause about somebody in the frame: present, past, future, or a clause after when, if and while."""
        if subject is None and question == "" and frame in ("present", "past", "future") and self.chance(0.2):
            return self.thing_statement(frame)
        subject = subject or self.somebody()
        if subject.kind not in ("pronoun", "name", "person", "kin"):
            return self.thing_statement(frame, subject)
        if frame in ("present", "past", "future", "if") and front == EMPTY and self.chance(0.2):
            return self.state_of(frame, subject, question)
        return self.deed(frame, subject, question, front)

    def deed(self, frame: str, subject: Nominal, question: str, front: Phrase = EMPTY) -> Phrase:
        verb = self.pick_verb(frame)
        helper, aspect = None, verb.aspect
        if verb.aspect == "action" and frame in ("present", "past", "future") and self.chance(0.15):
            governor, preposition = self.pick(lexicon.HELPERS)
            if governor.infinitive != "devoir" or (frame == "present" and not question):
                helper, aspect = (governor, preposition, self.way(governor.english)), governor.aspect
        tense = self.tense_for(aspect, frame)
        marked = frame in ("present", "past") and (tense == "former" or (tense == "habit" and aspect != "state"))
        negations = NEGATIONS.get((tense, aspect), ())
        allowed = not question and frame not in ("while", "habitual", "when")
        negation = self.pick(negations) if negations and allowed and self.chance(0.25) else ""
        frequency = ""
        if marked and not negation and tense == "habit" and self.chance(0.4):
            frequency = self.pick(sorted(lexicon.FREQUENCIES))
        clause = Clause(
            subject, verb, self.way(verb.english), tense, helper, negation, frequency, question=question, front=front
        )
        clause = self.complete(clause)
        late = EMPTY
        timeless = front != EMPTY or negation in ("jamais", "plus") or frequency
        free = aspect != "state" and not self.timed and frame in ("present", "past", "future")
        if not timeless and (marked or (free and self.chance(0.45))):
            late = self.time(tense)
        if not timeless and free and late == EMPTY and tense in ("past", "going", "future"):
            late = self.clock() if self.chance(0.2) else EMPTY
        return self.with_time(clause, late, early=not question and self.chance(0.3))

    def with_time(self, clause: Clause, time: Phrase, early: bool) -> Phrase:
        """The clause with its time at the end, or before it and a comma: Hier, ..."""
        if time == EMPTY:
            return self.realise(clause)
        self.timed = True
        if early and not self.begun and clause.subject.phrase.source[0].text != "qui":
            return join(time, self.say(",", ","), self.realise(clause))
        return self.realise(replace(clause, complement=join(clause.complement, time)))

    def pick_verb(self, frame: str) -> Verb:
        draw = self.meaning.random()
        tables = (
            (0.46, lexicon.TRANSITIVE),
            (0.52, lexicon.TASTES),
            (0.64, lexicon.GIVING),
            (0.71, lexicon.TALKING),
            (0.88, lexicon.INTRANSITIVE),
            (0.96, lexicon.REFLEXIVE),
            (1.0, (lexicon.PLAY,)),
        )
        table = next(table for limit, table in tables if draw < limit)
        if frame == "while":
            table = tuple(verb for verb in table if verb.aspect == "action") or lexicon.INTRANSITIVE[1:8]
        return self.pick(table)

    def complete(self, clause: Clause) -> Clause:
        """The clause with the objects, pronouns and places that its verb takes."""
        verb = clause.verb
        if verb == lexicon.PLAY:
            return replace(clause, complement=self.say(*self.pick(lexicon.GAMES)))
        if verb in lexicon.GIVING:
            return self.complete_giving(clause)
        if verb in lexicon.TALKING:
            return self.complete_talking(clause)
        if verb in lexicon.REFLEXIVE or verb in lexicon.INTRANSITIVE:
            return self.complete_place(clause)
        return self.complete_transitive(clause)

    def complete_place(self, clause: Clause) -> Clause:
        how = clause.verb.kinds[0]
        if how == "none" or (clause.front.source and clause.front.source[0].text == "où"):
            return clause
        needed = clause.verb.infinitive in ("habiter", "aller", "rester", "venir")
        if not needed and not self.chance(0.5):
            return clause
        elsewhere = clause.tense not in ("future", "when") and clause.verb.infinitive in ("aller", "habiter")
        if elsewhere and self.chance(0.15) and not clause.question:
            return replace(clause, clitic=Clitic(self.say("y", "there"), key="y"))
        return replace(clause, complement=self.place(how))

    def complete_transitive(self, clause: Clause) -> Clause:
        verb, negation = clause.verb, clause.negation
        if clause.front.source and clause.front.source[0].text == "que":
            return clause
        if negation == "pas" and "person" not in verb.kinds and verb not in lexicon.TASTES and self.chance(0.25):
            return replace(clause, negation="rien")
        if verb not in lexicon.TASTES and self.chance(0.25):
            return replace(clause, clitic=self.object_pronoun(clause))
        if verb.infinitive == "avoir" and self.chance(0.2) and not negation:
            french, english = lexicon.number(2 + int(self.meaning.random() * 9))
            some, count = self.say("en", "of them"), self.say(french, english)
            counted = Phrase(count.source, count.target + some.target)
            return replace(clause, clitic=Clitic(Phrase(some.source), key="en"), complement=counted)
        thing = self.object_of(verb, clause.subject, negation)
        self.last_object = thing if negation == "" and verb not in lexicon.TASTES else None
        complement = thing.phrase
        if verb.aspect == "action" and verb.kinds[0] not in ("opening", "transport", "place") and self.chance(0.15):
            complement = join(complement, self.place("static"))
        return replace(clause, complement=complement)

    def object_pronoun(self, clause: Clause) -> Clitic:
        """Le, la, les and, for verbs that are about persons, me, te, nous, vous: him, it, them, me."""
        verb, subject = clause.verb, clause.subject
        human = verb.kinds[0] == "person"
        if human and self.chance(0.6):
            same = {0: (0, 3), 1: (1, 4), 3: (0, 3), 4: (1, 4)}.get(subject.person, ())
            person = self.pick([person for person in (0, 1, 3, 4) if person not in same])
            french, english = OBJECT_PRONOUNS[person]
            feminine = "e" if person < 3 and self.chance(0.5) else ""
            return Clitic(self.say(french, english), feminine + ("s" if person > 2 else ""), french)
        gender, plural = self.pick("mf"), self.chance(0.35)
        if human and starts_with_vowel(verb.infinitive) and (clause.tense != "past" or clause.helper):
            plural = True  # "l'aide" would not tell him from her
        return self.pronoun_object(gender, plural, {"m": "him", "f": "her"}[gender] if human else "it")

    def pronoun_object(self, gender: str, plural: bool, english: str) -> Clitic:
        french = "les" if plural else "la" if gender == "f" else "le"
        ending = ("e" if gender == "f" else "") + ("s" if plural else "")
        return Clitic(self.say(french, "them" if plural else english), ending, french)

    def recipient(self, clause: Clause) -> Clitic:
        """Me, te, nous, vous or leur; lui would not tell him from her."""
        same = {0: (0, 3), 1: (1, 4), 3: (0, 3), 4: (1, 4)}.get(clause.subject.person, ())
        person = self.pick([person for person in (0, 1, 3, 4, 5) if person not in same])
        french, english = ("leur", "them") if person == 5 else OBJECT_PRONOUNS[person]
        return Clitic(self.say(french, english), key=french)

    def other_person(self, subject: Nominal) -> Nominal:
        """Somebody who is not the subject and not a pronoun."""
        if self.chance(0.5):
            return self.name()
        noun = self.pick([noun for noun in self.nouns("person", "kin") if noun.french not in self.taken])
        self.taken.add(noun.french)
        if noun.kind == "kin":
            return self.noun_phrase(noun, "possessive", subject, plain=True)
        return self.noun_phrase(noun, self.pick(("le", "le", "ce", "les")))

    def complete_giving(self, clause: Clause) -> Clause:
        if clause.front.source and clause.front.source[0].text == "que":
            return replace(clause, clitic=self.recipient(clause))
        thing = self.object_of(clause.verb, clause.subject, clause.negation)
        self.last_object = thing if not clause.negation else None
        if self.chance(0.45):
            return replace(clause, clitic=self.recipient(clause), complement=thing.phrase)
        receiver = self.other_person(clause.subject)
        return replace(clause, complement=join(thing.phrase, self.say("à", "to"), receiver.phrase))

    def complete_talking(self, clause: Clause) -> Clause:
        if self.chance(0.4):
            return replace(clause, clitic=self.recipient(clause))
        receiver = self.other_person(clause.subject).phrase
        first = receiver.target[0]
        to = self.link()
        marked = Phrase(receiver.source, (first._replace(links=first.links | to), *receiver.target[1:]))
        return replace(clause, complement=join(Phrase((Word("à", to),)), marked))

    def state_of(self, frame: str, subject: Nominal, question: str = "") -> Phrase:
        """How or what somebody is: tired, twelve years old, hungry, a doctor, taller than Paul."""
        tense = {"present": "habit", "if": "habit", "past": "background", "future": "future"}[frame]
        negation = ""
        if not question and self.chance(0.2):
            negation = self.pick(NEGATIONS["habit", "state"])
        draw = self.meaning.random()
        verb = lexicon.ETRE
        if draw < 0.45:
            complement = self.quality(subject, negation)
        elif draw < 0.6:
            verb, negation = lexicon.AVOIR_AS_BE, ""
            french, english = lexicon.number(5 + int(self.meaning.random() * 65))
            years = self.say("ans", "years old")
            complement = join(self.say(french, english), years)
        elif draw < 0.85 or (subject.person == 4):
            verb = lexicon.AVOIR_AS_BE
            complement = self.say(*self.pick(sorted(lexicon.FEELINGS.items())))
        else:
            complement = self.job(subject)
        clause = Clause(subject, verb, verb.english[0], tense, None, negation, complement=complement, question=question)
        return self.realise(clause)

    def quality(self, subject: Nominal, negation: str = "") -> Phrase:
        """An adjective, agreeing with the subject; or a comparison with somebody."""
        kind = "person" if subject.kind in ("pronoun", "name", "kin") else subject.kind
        said = {word.text for word in subject.phrase.target}
        banned = said | (lexicon.COLOURS if said & lexicon.COLOURS else set())
        adjective = self.pick([a for a in lexicon.ADJECTIVES if kind in a.kinds and not banned & set(a.english)])
        if subject.kind not in ("pronoun", "name"):
            self.note("adjective", subject.key, adjective.forms[0])
        else:
            self.note("quality", subject.key, adjective.forms[0])
        french, english = inflect(adjective, subject.gender, subject.plural), self.way(adjective.english)
        same = self.say(french, english)
        if adjective.forms[0] in lexicon.WITHOUT_DEGREE:
            return same
        if kind == "person" and not negation and self.chance(0.25):
            return self.comparison(adjective, same, english)
        if self.chance(0.4):
            word = self.pick((("très", "very"), ("très", "very"), ("trop", "too")))
            return join(self.say(*word), same)
        return same

    def comparison(self, adjective: Adjective, same: Phrase, english: str) -> Phrase:
        """Plus grand que, bigger than; aussi grand que, as big as."""
        other = self.name()
        if self.chance(0.35):
            return join(self.say("aussi", "as"), same, self.say("que", "as"), other.phrase)
        words = lexicon.comparative(english).split()
        more = self.link()
        if len(words) == 2:
            better = Phrase((Word("plus", more), *same.source), (Word("more", more), *same.target))
        else:
            better = Phrase((Word("plus", more), *same.source), (Word(words[0], more | same.target[0].links),))
        return join(better, self.say("que", "than"), other.phrase)

    def job(self, subject: Nominal) -> Phrase:
        """Médecin, a doctor; médecins, doctors."""
        his, hers, male, female = self.pick(lexicon.JOBS)
        french, english = (hers, female) if subject.gender == "f" else (his, male)
        self.note("job", subject.key, his)
        if subject.plural:
            return self.say(french + "s", lexicon.english_plural(english))
        noun = self.link()
        return Phrase((Word(french, noun),), (Word("a", noun), Word(english, noun)))

    # ---- what is said of things

    def thing_statement(self, frame: str, subject: Nominal | None = None) -> Phrase:
        """Where a thing is, how it is, what it costs, when the train leaves, what there is."""
        if subject is None:
            draw = self.meaning.random()
            if draw < 0.2:
                return self.there_is(frame)
            if draw < 0.3:
                return self.departure(frame)
            if draw < 0.42:
                return self.liking(frame)
            kinds = ("object", "machine", "vehicle", "room", "opening", "clothes", "text", "animal", "dish", "idea")
            noun = self.pick(self.nouns(*kinds))
            self.taken.add(noun.french)
            subject = self.noun_phrase(noun, self.pick(("le", "le", "ce", "possessive", "les")), plain=self.chance(0.7))
        tense = {"present": "habit", "past": "background", "future": "future"}.get(frame, "habit")
        negation = self.pick(NEGATIONS["habit", "state"]) if self.chance(0.2) else ""
        verb = lexicon.ETRE
        if subject.kind in ("object", "dish") and self.chance(0.4):
            french, english = self.pick((("sur", "on"), ("sous", "under")))
            noun = self.pick([noun for noun in lexicon.NOUNS if noun.french in ("table", "chaise", "boîte")])
            complement = join(self.say(french, english), self.noun_phrase(noun, "le", plain=True).phrase)
        elif subject.kind in ("clothes", "vehicle", "machine") and self.chance(0.4):
            verb, complement = lexicon.COST, self.price()
        else:
            complement = self.quality(subject, negation)
        clause = Clause(subject, verb, verb.english[0], tense, None, negation, complement=complement)
        return self.realise(clause)

    def price(self) -> Phrase:
        whole = 5 + int(self.meaning.random() * 90)
        if self.chance(0.4):
            cents = 5 * (1 + int(self.meaning.random() * 19))
            return self.say(f"{whole},{cents:02}_1 euros_2", f"{whole}.{cents:02}_1 euros_2")
        if self.chance(0.5):
            return self.say(f"{whole}_1 euros_2", f"{whole}_1 euros_2")
        french, english = lexicon.number(whole)
        return join(self.say(french, english), self.say("euros", "euros"))

    def there_is(self, frame: str) -> Phrase:
        """Il y a une pomme sur la table, there is an apple on the table."""
        noun = self.pick(self.nouns("food", "object", "dish", "text", "animal", "mass", "drink", "person"))
        self.note("object", "il y a", noun.french)
        countable = noun.kind not in ("mass", "drink")
        determiner = self.pick(("un", "un", "des", "number", "several")) if countable else "partitive"
        negation = "pas" if self.chance(0.25) else ""
        thing = self.noun_phrase(noun, "none" if negation else determiner)
        past, future = frame == "past", frame == "future"
        verb = "avait" if past else "aura" if future else "a"
        whole = self.link()
        if negation:
            source = [Word("il", whole), Word("ne", whole), Word("y", whole), Word(verb, whole), Word("pas", whole)]
        else:
            source = [Word("il", whole), Word("y", whole), Word(verb, whole)]
        person = 5 if thing.plural else 2
        auxiliary = "will" if future else be(person, past)
        words = ["there", self.deny(auxiliary, False) if negation else auxiliary] + (["be"] if future else [])
        target = [Word(word, whole) for text in words for word in text.split()]
        room = self.noun_phrase(self.pick(self.nouns("room")), "le", plain=True).phrase
        place = join(self.say("dans", "in"), room)
        return join(Phrase(tuple(source), tuple(target)), thing.phrase, place)

    def departure(self, frame: str) -> Phrase:
        """Le train part à huit heures, the train leaves at eight o'clock."""
        noun = self.pick(self.nouns("transport"))
        verb = self.pick((lexicon.DEPART, lexicon.ARRIVE))
        subject = self.noun_phrase(noun, "le", plain=True)
        towns = self.pick(sorted(lexicon.TOWNS.items()))
        if self.chance(0.5):
            subject = replace(subject, phrase=join(subject.phrase, self.say("de", "from"), self.say(*towns)))
        tense = {"past": "past", "future": "future"}.get(frame, "habit")
        return self.realise(Clause(subject, verb, verb.english[0], tense, complement=self.clock()))

    def liking(self, frame: str) -> Phrase:
        """Ce livre plaît à Paul, Paul likes this book; Paul me manque, I miss Paul: the roles are exchanged."""
        verb = self.pick((lexicon.PLEASE, lexicon.MISS))
        if verb == lexicon.PLEASE:
            noun = self.pick(self.nouns("text", "clothes", "vehicle", "object"))
            liked = self.noun_phrase(noun, self.pick(("ce", "le", "possessive")))
        else:
            liked = self.name()
        self.note("subject", liked.key, verb.infinitive)
        tense = {"present": "habit", "past": "background", "future": "future"}.get(frame, "habit")
        french_tense = TENSES[tense][0]
        links, negation = VerbLinks(*(self.link() for _ in range(5))), "pas" if self.chance(0.2) else ""
        if self.chance(0.6):
            person, french, english = self.pick(
                ((0, "me", "I"), (1, "te", "you"), (3, "nous", "we"), (5, "leur", "they"))
            )
            liker = Nominal(self.say(french, english), person, "m", "", "pronoun")
        else:
            liker = self.name()
        pronoun = liker.kind == "pronoun"
        head = Word(finite(verb, french_tense, liked.person), links.finite | links.main)
        bound = [word._replace(bound=True) for word in liker.phrase.source] if pronoun else []
        to = [] if pronoun else [Word("à", links.main), *liker.phrase.source]
        ne, pas = ([Word("ne", links.negation)], [Word("pas", links.negation)]) if negation else ([], [])
        source = (*liked.phrase.source, *ne, *bound, head, *pas, *to)
        plain = Clause(liker, verb, verb.english[0], tense, negation=negation, complement=liked.phrase)
        return Phrase(source, self.english(plain, links))
