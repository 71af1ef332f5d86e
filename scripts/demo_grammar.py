"""A grammar of French and English at once: it composes pairs of sentences and knows which words correspond.

Every node yields a Phrase, the words of both sides. Words that were made together carry a common link, so the word
alignment is a record of how the pair was made, not a guess. What is said is drawn from one random stream and how it
is said in English from another: with variety 1 a meaning has one wording, with more the same French has several.

The mapping is kept regular: the imperfect is "was ...ing", or "used to" beside words of habit; the passé composé is
the simple past; du and des are "some", and "any" after a negation; a possessor's gender shows in the French subject.
"""

from __future__ import annotations

from dataclasses import replace

import demo_lexicon as lexicon
from demo_clauses import NEGATIONS, Clauses
from demo_forms import EMPTY, Clause, Nominal, Pair, Phrase, Word, align, fuse_source, fuse_target, join, write_line
from demo_lexicon import Verb

CONJUNCTIONS = (("et", "and"), ("mais", "but"), ("parce que", "because"))


class Grammar(Clauses):
    """Composes one sentence pair; what it says follows from `meaning`, how English says it from `wording`."""

    def question(self) -> Phrase:
        """A question with est-ce que, with inversion, or about its subject."""
        frame = self.pick(("present", "present", "past", "past", "future"))
        draw = self.meaning.random()
        if draw < 0.1:
            who = Nominal(self.say("qui", "who"), 2, "m", "their", "other")
            return self.deed(frame, who, "subject")
        if draw < 0.2:
            return self.which_or_how_many(frame)
        inverted = self.chance(0.45)
        subject = self.pronoun(self.pick((1, 1, 4, 4, 2, 6, 5, 7))) if inverted else self.somebody()
        manner = "inversion" if inverted else "est-ce que"
        if draw < 0.45:
            return self.statement(frame, subject, manner)
        words = (
            ("où", "where"),
            ("quand", "when"),
            ("pourquoi", "why"),
            ("que", "what"),
            ("à quelle heure", "what time"),
        )
        asked = self.pick(words)
        if asked[0] == "que":
            return self.deed_of(lexicon.TRANSITIVE, frame, subject, manner, self.say(*asked))
        table = (*lexicon.INTRANSITIVE, *lexicon.REFLEXIVE, *lexicon.TRANSITIVE)
        return self.deed_of(table, frame, subject, manner, self.say(*asked))

    def deed_of(self, table: tuple[Verb, ...], frame: str, subject: Nominal, manner: str, front: Phrase) -> Phrase:
        """A question that begins with a question word, whose verb is of the table."""
        word = front.source[0].text
        fitting = [verb for verb in table if verb.aspect != "state" and not (word == "que" and "person" in verb.kinds)]
        if word in ("où", "que"):
            fitting = [verb for verb in fitting if verb.infinitive not in ("arriver", "venir", "aller")] or fitting
        verb = self.pick([v for v in fitting if frame != "present" or v.aspect == "action"])
        tense = (
            "now" if frame == "present" else self.pick(("past", "past", "background")) if frame == "past" else "future"
        )
        if verb.aspect == "moment" and tense == "background":
            tense = "past"
        clause = Clause(subject, verb, self.way(verb.english), tense, question=manner, front=front)
        return self.realise(self.complete(clause))

    def which_or_how_many(self, frame: str) -> Phrase:
        """Combien de pommes Paul a-t-il ... is kept simple: combien de pommes est-ce que Paul mange."""
        verb = self.pick(
            [v for v in lexicon.TRANSITIVE if v.aspect == "action" and v.kinds[0] not in ("person", "transport")]
        )
        nouns = [noun for noun in self.nouns(*verb.kinds) if noun.kind not in ("mass", "drink")]
        if not nouns:
            return self.question()
        noun = self.pick(nouns)
        self.note("object", verb.infinitive, noun.french)
        asked = self.noun_phrase(noun, self.pick(("which", "which_many")), plain=self.chance(0.7))
        tense = {"present": "now", "past": "past", "future": "future"}[frame]
        way = self.way(verb.english)
        clause = Clause(
            self.somebody(), verb, way, tense, question="est-ce que", front=asked.phrase, ending=asked.ending
        )
        return self.realise(clause)

    def order(self) -> Phrase:
        """An imperative: Ferme la porte, N'oublie pas tes clés, Donne-moi ce livre."""
        person = self.pick((1, 4))
        addressee = Nominal(EMPTY, person, "m", "your", "pronoun", "tu")
        giving = self.chance(0.3)
        verbs = lexicon.GIVING if giving else [v for v in lexicon.TRANSITIVE if v.aspect == "action"]
        verb = self.pick([v for v in verbs if v.kinds[0] not in ("vehicle", "transport")])
        self.note("construction", "imperative", verb.infinitive)
        negation = "pas" if self.chance(0.3) and not giving else ""
        form = verb.present[person]
        form = form.removesuffix("s") if form.endswith("es") and person == 1 else form
        english, main, denied = self.way(verb.english), self.link(), self.link()
        thing = self.object_of(verb, addressee, negation).phrase
        target = [Word(word, main) for word in english.base.split()]
        if negation:
            source: list[Word] = [Word("ne", denied), Word(form, main), Word("pas", denied)]
            target = [Word("don't", denied), *target]
            return join(Phrase(tuple(source), tuple(target)), thing)
        if giving:
            french, pronoun = self.pick((("moi", "me"), ("nous", "us"), ("leur", "them")))
            receiver = self.say(french, pronoun)
            return join(Phrase((Word(form + "-", main),), tuple(target)), receiver, thing)
        return join(Phrase((Word(form, main),), tuple(target)), thing)

    def weather(self, frame: str) -> Phrase:
        """Il pleut, it is raining; a frame after when or if says it rains."""
        self.begun = True
        forms = {
            "present": (("il_1 pleut_2", "it_1 is_2 raining_2"), ("il_1 neige_2", "it_1 is_2 snowing_2")),
            "habitual": (("il_1 pleut_2", "it_1 rains_2"), ("il_1 neige_2", "it_1 snows_2")),
            "when": (("il_1 pleuvra_2", "it_1 rains_2"), ("il_1 neigera_2", "it_1 snows_2")),
            "past": (("il_1 pleuvait_2", "it_1 was_2 raining_2"), ("il_1 neigeait_2", "it_1 was_2 snowing_2")),
            "future": (("il_1 pleuvra_2", "it_1 will_2 rain_2"), ("il_1 neigera_2", "it_1 will_2 snow_2")),
        }
        verbs = {"past": ("faisait", "was"), "future": ("fera", "will be"), "when": ("fera", "is")}
        french, english = verbs.get(frame, ("fait", "is"))
        if self.chance(0.6):
            return self.say(*self.pick(forms[{"if": "habitual", "while": "past"}.get(frame, frame)]))
        kind = self.pick((("froid", "cold"), ("chaud", "hot"), ("beau", "sunny")))
        marked = " ".join(f"{word}_2" for word in english.split())
        return self.say(f"il_1 {french}_2 {kind[0]}_3", f"it_1 {marked} {kind[1]}_3")

    def relative(self, frame: str) -> Nominal:
        """A noun with a relative clause: la femme qui chante, le livre que Paul a acheté."""
        if self.chance(0.5):
            noun = self.pick([noun for noun in self.nouns("person") if noun.french not in self.taken])
            self.taken.add(noun.french)
            head = self.noun_phrase(noun, self.pick(("le", "le", "ce", "les")))
            which = replace(head, phrase=self.say("qui", "who"))
            return replace(head, phrase=join(head.phrase, self.statement(frame, which)))
        verb = self.pick(
            [
                v
                for v in lexicon.TRANSITIVE
                if v.kinds[0] in ("text", "object", "clothes", "idea") or v.infinitive == "acheter"
            ]
        )
        noun = self.pick(
            [n for n in self.nouns(*verb.kinds) if n.kind not in ("mass", "drink", "food", "person", "animal")]
        )
        self.note("object", verb.infinitive, noun.french)
        self.taken.add(noun.french)
        head = self.noun_phrase(noun, self.pick(("le", "le", "ce", "les")))
        tense = self.tense_for(verb.aspect, frame)
        tense = {"former": "past", "just": "past", "habit": "past" if verb.aspect != "state" else "habit"}.get(
            tense, tense
        )
        clause = Clause(self.somebody(), verb, self.way(verb.english), tense, ending=head.ending)
        link = self.say("que", "that")
        return replace(head, phrase=join(head.phrase, link, self.realise(clause)))

    def taken_up(self, frame: str, subject: Nominal, thing: Nominal) -> Phrase:
        """A clause whose object pronoun stands for the thing: et il la cherche."""
        human = thing.owner in ("his", "her") or thing.kind in ("person", "kin", "name")
        usable = [v for v in lexicon.TRANSITIVE if thing.kind in v.kinds or (human and v.kinds[0] == "person")]
        verb = self.pick([v for v in usable if v.infinitive != self.last_verb] or usable)
        english = {"his": "him", "her": "her"}.get(thing.owner, "it")
        tense = self.tense_for(verb.aspect, frame)
        tense = {"former": "past", "just": "habit", "habit": "habit"}.get(tense, tense)
        negation = ""
        if NEGATIONS.get((tense, verb.aspect)) and (self.chance(0.4) or (tense == "habit" and verb.aspect != "state")):
            negation = self.pick(NEGATIONS[tense, verb.aspect])
        clitic = self.pronoun_object(thing.gender, thing.plural, english)
        return self.realise(Clause(subject, verb, self.way(verb.english), tense, None, negation, clitic=clitic))

    def compound(self, num_clauses: int) -> Phrase:
        """A statement of that many clauses."""
        frame = self.pick(("present", "past", "past", "future"))
        if num_clauses == 1:
            return self.statement(frame)
        draw = self.meaning.random()
        if draw < 0.15:
            return join(self.report(), self.compound(num_clauses - 1))
        if draw < 0.3:
            return self.joined(frame, self.statement(frame, self.relative(frame)), None, num_clauses - 2)
        if draw < 0.42:
            return join(
                self.circumstance(frame),
                self.say(",", ","),
                self.chain("habitual" if frame == "present" else frame, num_clauses - 1),
            )
        return self.chain(frame, num_clauses)

    def report(self) -> Phrase:
        """Je pense que, Marie dit que."""
        verb = self.pick((lexicon.THINK, lexicon.SAY, lexicon.KNOW))
        subject = self.pronoun(self.pick((0, 0, 2, 3, 6, 5))) if self.chance(0.6) else self.somebody()
        tense = "habit"
        return join(self.realise(Clause(subject, verb, verb.english[0], tense)), self.say("que", "that"))

    def circumstance(self, frame: str) -> Phrase:
        """A clause in front: Quand il pleut, Si tu viens, Pendant que Paul dormait."""
        if frame == "present":
            word, inner = ("quand", "when"), "habitual"
        elif frame == "future":
            word, inner = self.pick(((("quand", "when"), "when"), (("si", "if"), "if")))
        else:
            word, inner = ("pendant que", "while"), "while"
        event = self.weather(inner) if self.chance(0.3) else self.statement(inner)
        return join(self.say(*word), event)

    def chain(self, frame: str, num_clauses: int) -> Phrase:
        subject = self.somebody()
        return self.joined(frame, self.statement(frame, subject), subject, num_clauses - 1)

    def joined(self, frame: str, first: Phrase, subject: Nominal | None, num_more: int) -> Phrase:
        """The first clause and as many more, each with a conjunction and often the same subject as a pronoun."""
        phrase, word = first, ("", "")
        for _ in range(num_more):
            word = self.pick([conjunction for conjunction in CONJUNCTIONS if conjunction != word])
            phrase = join(phrase, self.say(*word))
            thing, self.last_object = self.last_object, None
            if subject is None or self.chance(0.3):
                if self.chance(0.2):
                    phrase, subject = join(phrase, self.weather(frame)), None
                    continue
                subject = self.somebody()
                following = subject
            else:
                following = self.pronoun_for(subject)
            if thing is not None and word[0] != "parce que" and self.chance(0.6):
                phrase = join(phrase, self.taken_up(frame, following, thing))
            else:
                phrase = join(phrase, self.statement(frame, following))
        return phrase

    def sentence(self) -> Pair:
        """One sentence pair, with its alignment and the combinations it is made of."""
        low, high = self.clauses
        num_clauses = low
        while num_clauses < high and self.chance(0.4):
            num_clauses += 1
        draw = self.meaning.random()
        sign = "."
        if num_clauses == 1 and draw < 0.22:
            phrase, sign = self.question(), "?"
        elif num_clauses == 1 and draw < 0.28:
            phrase, sign = self.order(), "!"
        else:
            phrase = self.compound(num_clauses)
        phrase = join(phrase, self.say(sign, sign))
        source, target = fuse_source(phrase.source), fuse_target(phrase.target)
        target = [word._replace(text="I") if word.text == "i" else word for word in target]
        lines = write_line(source, space_before="?!"), write_line(target, space_before="")
        return Pair(*lines, align(source, target), frozenset(self.features))
