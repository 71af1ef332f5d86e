"""The words of the demo corpus: plain tables, read by demo_grammar.

A table is text, one entry a line, so that it can be checked by eye. `_` stands for a space inside an entry, `/` parts
the ways of saying one thing in English: the first is the only one used unless the corpus is asked for variety.
"""

from __future__ import annotations

from typing import NamedTuple


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


class Noun(NamedTuple):
    french: str
    french_plural: str
    gender: str  # "m" or "f"
    english: tuple[str, ...]
    english_plural: tuple[str, ...]
    kind: str  # what verbs and adjectives ask of it: food, mass, text, place, person, ...


class Adjective(NamedTuple):
    forms: tuple[str, str, str, str]  # masculine, feminine, and their plurals
    before_vowel: str  # the masculine before a vowel: bel, nouvel, vieil
    english: tuple[str, ...]
    precedes: bool
    kinds: tuple[str, ...]


class EnglishVerb(NamedTuple):
    base: str
    third: str
    past: str
    participle: str
    ing: str


class Verb(NamedTuple):
    infinitive: str
    present: tuple[str, ...]  # je, tu, il, nous, vous, ils
    participle: str
    future_stem: str
    auxiliary: str
    english: tuple[EnglishVerb, ...]
    aspect: str  # "state" is never progressive, "moment" only in habits, past and future, "action" everything
    kinds: tuple[str, ...]  # the objects it takes, or how its place is said


# Kinds of nouns, and what is true of all nouns of a kind in this corpus:
#   food, mass (no plural), text, idea, lesson, clothes, object, dish, machine, opening, vehicle,
#   transport, place, room, person, kin, animal
NOUN_TABLE = """
pomme f apple food
orange f orange food
banane f banana food
gâteau,gâteaux m cake food
œuf m egg food
sandwich m sandwich food
tomate f tomato,tomatoes food
poire f pear food
carotte f carrot food
omelette f omelette food
pain m bread mass
fromage m cheese mass
viande f meat mass
poisson m fish mass
riz,riz m rice mass
soupe f soup mass
beurre m butter mass
chocolat m chocolate mass
confiture f jam mass
eau f water drink
café m coffee drink
thé m tea drink
lait m milk drink
vin m wine drink
bière f beer drink
livre m book text
lettre f letter text
journal,journaux m newspaper text
article m article text
roman m novel text
poème m poem text
message m message text
histoire f story,stories text
question f question idea
problème m problem idea
réponse f answer idea
leçon f lesson lesson
règle f rule lesson
mot m word lesson
chanson f song lesson
exercice m exercise idea
chemise f shirt clothes
manteau,manteaux m coat clothes
chapeau,chapeaux m hat clothes
robe f dress clothes
cravate f tie clothes
écharpe f scarf,scarves clothes
veste f jacket clothes
ceinture f belt clothes
pull m jumper/sweater clothes
clé f key object
sac m bag object
parapluie m umbrella object
stylo m pen object
valise f suitcase object
couteau,couteaux m knife,knives object
photo f photo/picture object
cadeau,cadeaux m present/gift object
bague f ring object
jouet m toy object
table f table object
chaise f chair object
miroir m mirror object
verre m glass dish
assiette f plate dish
tasse f cup dish
vase m vase dish
bouteille f bottle dish
téléphone m phone/telephone machine
ordinateur m computer machine
lampe f lamp machine
montre f watch machine
radio f radio machine
horloge f clock machine
porte f door opening
fenêtre f window opening
boîte f box opening
tiroir m drawer opening
voiture f car vehicle
vélo m bicycle/bike vehicle
moto f motorbike/motorcycle vehicle
camion m lorry/truck vehicle
bateau,bateaux m boat vehicle
train m train transport
bus,bus m bus transport
avion m plane transport
marché m market place
gare f station place
parc m park place
musée m museum place
bibliothèque f library place
hôpital,hôpitaux m hospital place
restaurant m restaurant place
église f church place
hôtel m hotel place
banque f bank place
théâtre m theatre place
cinéma m cinema place
plage f beach place
piscine f swimming_pool place
château,châteaux m castle place
aéroport m airport place
université f university place
pharmacie f pharmacy place
jardin m garden room
cuisine f kitchen room
chambre f bedroom room
salon m living_room room
bureau,bureaux m office room
maison f house room
garage m garage room
appartement m flat/apartment room
homme m man person
femme f woman person
garçon m boy person
fille f girl person
voisin m neighbour person
voisine f neighbour person
ami m friend person
amie f friend person
étudiant m student person
étudiante f student person
médecin m doctor person
infirmier m nurse person
infirmière f nurse person
boulanger m baker person
boulangère f baker person
professeur m teacher person
avocat m lawyer person
avocate f lawyer person
acteur m actor person
actrice f actress person
serveur m waiter person
serveuse f waitress person
chanteur m singer person
chanteuse f singer person
enfant m child person
frère m brother kin
sœur f sister kin
père m father kin
mère f mother kin
oncle m uncle kin
tante f aunt kin
cousin m cousin kin
cousine f cousin kin
grand-père,grands-pères m grandfather kin
grand-mère,grands-mères f grandmother kin
chat m cat animal
chien m dog animal
cheval,chevaux m horse animal
oiseau,oiseaux m bird animal
lapin m rabbit animal
vache f cow animal
canard m duck animal
souris,souris f mouse animal
"""

ENGLISH_PLURALS = {"man": "men", "woman": "women", "child": "children", "mouse": "mice"}

# masculine feminine english place-in-French kinds; "thing" stands for the six kinds of handy things.
ADJECTIVE_TABLE = """
blanc blanche white after clothes object vehicle room animal dish
noir noire black after clothes object vehicle animal machine
rouge rouge red after clothes object vehicle opening dish machine
bleu bleue blue after clothes object vehicle opening dish machine
vert verte green after clothes object vehicle opening dish
jaune jaune yellow after clothes object vehicle dish machine
grand grande big/large before thing text room animal place opening
petit petite small/little before thing text room animal place opening food
beau belle beautiful/lovely before clothes object vehicle room place animal text
nouveau nouvelle new before thing text room place opening
vieux vieille old before thing text room place opening animal person
bon bonne good before food mass drink text idea lesson
mauvais mauvaise bad before mass drink text idea lesson
joli jolie pretty before clothes object room place dish
jeune jeune young before person
cher chère expensive after clothes object vehicle room machine
lourd lourde heavy after object machine dish opening
utile utile useful after text object machine idea lesson
intéressant intéressante interesting after text idea lesson place
difficile difficile difficult/hard after text idea lesson
simple simple simple after text idea lesson
important importante important after text idea lesson
moderne moderne modern after room place machine vehicle
propre propre clean after clothes dish vehicle room opening
sale sale dirty after clothes dish vehicle room opening
froid froide cold after mass drink food room
chaud chaude hot after mass drink food
délicieux délicieuse delicious/tasty after food mass drink
vide vide empty after dish room opening
calme calme quiet after room place animal person
rapide rapide fast/quick after vehicle transport animal machine
cassé cassée broken after dish machine opening
élégant élégante elegant after clothes person
étrange étrange strange/odd after text idea lesson object animal
célèbre célèbre famous after place person
gentil gentille kind/nice after person animal
heureux heureuse happy after person
triste triste sad after person text
fatigué fatiguée tired after person animal
malade malade sick/ill after person animal
intelligent intelligente clever/smart after person animal
drôle drôle funny/amusing after person text
sérieux sérieuse serious after person text idea lesson
timide timide shy after person animal
riche riche rich/wealthy after person
pauvre pauvre poor after person
poli polie polite after person
italien italienne Italian after mass vehicle clothes person
français française French after mass drink vehicle person text
espagnol espagnole Spanish after drink vehicle person text
"""
THING = ("clothes", "object", "dish", "machine", "vehicle")
COLOURS = frozenset(words("white black red blue green yellow"))
WITHOUT_DEGREE = frozenset(words("cassé délicieux italien français espagnol blanc noir rouge bleu vert jaune vide"))
BEFORE_VOWEL = {"beau": "bel", "nouveau": "nouvel", "vieux": "vieil"}
COMPARATIVES = {
    "big": "bigger",
    "good": "better",
    "bad": "worse",
    "sad": "sadder",
    "shy": "shyer",
    "hot": "hotter",
    "red": "redder",
}
LONG_ADJECTIVES = frozenset(
    words(
        "beautiful expensive useful interesting difficult important modern delicious broken elegant famous tired "
        "serious empty polite amusing"
    )
)

# infinitive, the six present forms, participle, future stem
IRREGULAR_FRENCH = """
être suis es est sommes êtes sont été ser
avoir ai as a avons avez ont eu aur
aller vais vas va allons allez vont allé ir
venir viens viens vient venons venez viennent venu viendr
boire bois bois boit buvons buvez boivent bu boir
lire lis lis lit lisons lisez lisent lu lir
écrire écris écris écrit écrivons écrivez écrivent écrit écrir
prendre prends prends prend prenons prenez prennent pris prendr
apprendre apprends apprends apprend apprenons apprenez apprennent appris apprendr
comprendre comprends comprends comprend comprenons comprenez comprennent compris comprendr
vendre vends vends vend vendons vendez vendent vendu vendr
attendre attends attends attend attendons attendez attendent attendu attendr
répondre réponds réponds répond répondons répondez répondent répondu répondr
perdre perds perds perd perdons perdez perdent perdu perdr
mettre mets mets met mettons mettez mettent mis mettr
voir vois vois voit voyons voyez voient vu verr
offrir offre offres offre offrons offrez offrent offert offrir
ouvrir ouvre ouvres ouvre ouvrons ouvrez ouvrent ouvert ouvrir
dormir dors dors dort dormons dormez dorment dormi dormir
partir pars pars part partons partez partent parti partir
sortir sors sors sort sortons sortez sortent sorti sortir
courir cours cours court courons courez courent couru courr
connaître connais connais connaît connaissons connaissez connaissent connu connaîtr
conduire conduis conduis conduit conduisons conduisez conduisent conduit conduir
finir finis finis finit finissons finissez finissent fini finir
choisir choisis choisis choisit choisissons choisissez choisissent choisi choisir
vouloir veux veux veut voulons voulez veulent voulu voudr
pouvoir peux peux peut pouvons pouvez peuvent pu pourr
devoir dois dois doit devons devez doivent dû devr
savoir sais sais sait savons savez savent su saur
dire dis dis dit disons dites disent dit dir
plaire plais plais plaît plaisons plaisez plaisent plu plair
envoyer envoie envoies envoie envoyons envoyez envoient envoyé enverr
appeler appelle appelles appelle appelons appelez appellent appelé appeller
"""
ETRE_VERBS = frozenset(words("aller venir partir sortir arriver rentrer rester tomber"))

# third person, past, participle, -ing; a verb that is not here is regular
IRREGULAR_ENGLISH = """
be is was been being
have has had had having
eat eats ate eaten eating
drink drinks drank drunk drinking
buy buys bought bought buying
cost costs cost cost costing
sell sells sold sold selling
read reads read read reading
write writes wrote written writing
find finds found found finding
lose loses lost lost losing
forget forgets forgot forgotten forgetting
break breaks broke broken breaking
bring brings brought brought bringing
wear wears wore worn wearing
put puts put put putting
take takes took taken taking
drive drives drove driven driving
see sees saw seen seeing
know knows knew known knowing
understand understands understood understood understanding
meet meets met met meeting
choose chooses chose chosen choosing
hide hides hid hidden hiding
keep keeps kept kept keeping
draw draws drew drawn drawing
give gives gave given giving
show shows showed shown showing
send sends sent sent sending
lend lends lent lent lending
tell tells told told telling
go goes went gone going
come comes came come coming
leave leaves left left leaving
fall falls fell fallen falling
sleep sleeps slept slept sleeping
run runs ran run running
sing sings sang sung singing
swim swims swam swum swimming
get gets got got getting
wake wakes woke woken waking
say says said said saying
think thinks thought thought thinking
speak speaks spoke spoken speaking
travel travels travelled travelled travelling
begin begins began begun beginning
cut cuts cut cut cutting
shut shuts shut shut shutting
weep weeps wept wept weeping
"""

# infinitive, english, aspect, kinds of objects; the pronoun for an object (it or him) follows from the first kind
TRANSITIVE_TABLE = """
manger eat action food mass
boire drink action drink
acheter buy/purchase action food mass clothes object vehicle machine
vendre sell action food mass clothes vehicle machine
préparer prepare action food mass
apporter bring action food mass drink dish object
lire read action text
écrire write action text
chercher look_for/search_for action object clothes text machine
trouver find moment object clothes idea machine
perdre lose moment object clothes machine
oublier forget moment object clothes text
cacher hide action object text machine
garder keep state object text
réparer repair/fix action machine vehicle opening
laver wash action clothes dish vehicle
nettoyer clean action room opening dish
porter wear action clothes
casser break moment dish machine
couper cut action food mass
ouvrir open action opening
fermer close/shut action opening
prendre take action transport
conduire drive action vehicle
visiter visit action place
regarder look_at action object text room animal
dessiner draw action animal object room
comprendre understand state idea text lesson
apprendre learn action lesson
expliquer explain action idea lesson
finir finish action text
choisir choose action clothes object text
voir see state object place animal person
avoir have state object vehicle animal machine
vouloir want state food drink object clothes
rencontrer meet moment person kin
inviter invite action person kin
aider help action person kin
attendre wait_for action person kin
appeler call action person kin
remercier thank action person kin
connaître know state person
écouter listen_to action person kin
"""
TASTES_TABLE = """
aimer like state food mass drink animal
adorer love state food mass drink animal
détester hate state food mass drink animal
"""
GIVING_TABLE = """
donner give action object clothes food text
montrer show action object text clothes place
envoyer send action text object
prêter lend action object vehicle clothes
offrir offer action object clothes
"""
TALKING_TABLE = """
parler speak_to/talk_to action person
téléphoner phone/call action person
répondre answer action person
obéir obey action person
"""
# "static": at the market, in Paris; "motion": to the market, to Paris; "none": nowhere
INTRANSITIVE_TABLE = """
habiter live state town
travailler work action static
dormir sleep action static
chanter sing action static
danser dance action static
étudier study action static
manger eat action static
jouer play action static
marcher walk action static
nager swim action none
courir run action none
pleurer cry/weep action none
voyager travel action none
aller go action motion
venir come moment motion
arriver arrive moment static
rester stay action static
partir leave moment none
rentrer come_back/return moment none
sortir go_out moment none
tomber fall moment none
"""
REFLEXIVE_TABLE = """
lever get_up moment none
coucher go_to_bed moment none
réveiller wake_up moment none
reposer rest action static
promener go_for_a_walk moment static
habiller get_dressed moment none
dépêcher hurry action none
"""
# The verb before an infinitive: infinitive, French preposition or -, english, aspect
HELPER_TABLE = """
vouloir - want_to state
pouvoir - can state
devoir - must state
savoir - know_how_to state
aimer - like_to state
adorer - love_to state
préférer - prefer_to state
espérer - hope_to state
essayer de try_to action
commencer à start_to/begin_to action
décider de decide_to moment
oublier de forget_to moment
refuser de refuse_to moment
"""

WOMEN = words(
    "Marie Julie Alice Claire Sophie Emma Laura Louise Anne Sarah Léa Nadia Isabelle Chloé Manon Zoé Inès Lucie "
    "Valérie Élise"
)
MEN = words(
    "Paul Pierre Marc Luc Jean Thomas Antoine Nicolas Julien Karim Lucas David Olivier Émile Louis Victor Samuel "
    "Adrien Mathieu Simon"
)
TOWNS = {town: town for town in words("Paris Lyon Marseille Lille Nantes Bordeaux Toulouse Rome Madrid Berlin")} | {
    "Bruxelles": "Brussels",
    "Londres": "London",
    "Genève": "Geneva",
    "Lisbonne": "Lisbon",
    "Vienne": "Vienna",
    "Moscou": "Moscow",
}
COUNTRIES = {
    "en France": "France",
    "en Italie": "Italy",
    "en Espagne": "Spain",
    "en Allemagne": "Germany",
    "en Suisse": "Switzerland",
    "au Japon": "Japan",
    "au Canada": "Canada",
    "au Portugal": "Portugal",
}
JOBS = (  # masculine, feminine, english for him and for her
    ("médecin", "médecin", "doctor", "doctor"),
    ("infirmier", "infirmière", "nurse", "nurse"),
    ("boulanger", "boulangère", "baker", "baker"),
    ("professeur", "professeur", "teacher", "teacher"),
    ("avocat", "avocate", "lawyer", "lawyer"),
    ("étudiant", "étudiante", "student", "student"),
    ("acteur", "actrice", "actor", "actress"),
    ("chanteur", "chanteuse", "singer", "singer"),
    ("ingénieur", "ingénieure", "engineer", "engineer"),
)
# what French has and English is
FEELINGS = {
    "faim": "hungry",
    "soif": "thirsty",
    "froid": "cold",
    "chaud": "hot",
    "peur": "afraid",
    "raison": "right",
    "tort": "wrong",
    "sommeil": "sleepy",
}

# Words that share a number are aligned; a word without one is aligned with every other such word.
GAMES = (
    ("à_2 le_2 football_2", "football_2"),
    ("à_2 le_2 tennis_2", "tennis_2"),
    ("à_2 les_2 cartes_2", "cards_2"),
    ("à_2 les_2 échecs_2", "chess_2"),
    ("de_1 le_1 piano_2", "the_1 piano_2"),
    ("de_1 la_1 guitare_2", "the_1 guitar_2"),
    ("de_1 le_1 violon_2", "the_1 violin_2"),
    ("de_1 la_1 flûte_2", "the_1 flute_2"),
)
NOW = (("maintenant", "now"), ("en ce moment", "at the moment"))
HABITS = (
    ("tous_1 les_1 jours_2", "every_1 day_2"),
    ("tous_1 les_1 matins_2", "every_1 morning_2"),
    ("tous_1 les_1 soirs_2", "every_1 evening_2"),
    ("chaque_1 semaine_2", "every_1 week_2"),
    ("chaque_1 été_2", "every_1 summer_2"),
    ("le_1 lundi_2", "on_1 Mondays_2"),
    ("le_1 mardi_2", "on_1 Tuesdays_2"),
    ("le_1 samedi_2", "on_1 Saturdays_2"),
    ("le_1 dimanche_2", "on_1 Sundays_2"),
)
PAST_TIMES = (
    ("hier", "yesterday"),
    ("hier_1 matin_2", "yesterday_1 morning_2"),
    ("hier_1 soir_2", "last_1 night_2"),
    ("la_1 semaine_2 dernière_1", "last_1 week_2"),
    ("l'_1 année_2 dernière_1", "last_1 year_2"),
    ("lundi_2 dernier_1", "last_1 Monday_2"),
    ("vendredi_2 dernier_1", "last_1 Friday_2"),
    ("le_1 mois_2 dernier_1", "last_1 month_2"),
)
FUTURE_TIMES = (
    ("demain", "tomorrow"),
    ("demain_1 matin_2", "tomorrow_1 morning_2"),
    ("demain_1 soir_2", "tomorrow_1 evening_2"),
    ("la_1 semaine_2 prochaine_1", "next_1 week_2"),
    ("l'_1 année_2 prochaine_1", "next_1 year_2"),
    ("lundi_2 prochain_1", "next_1 Monday_2"),
    ("le_1 mois_2 prochain_1", "next_1 month_2"),
    ("bientôt", "soon"),
)
FORMER_TIMES = (("autrefois", "in the past"), ("à_1 l'_1 époque_2", "in_1 those_2 days_2"))
UNITS = (("jours", "days"), ("heures", "hours"), ("semaines", "weeks"), ("mois", "months"), ("ans", "years"))
FREQUENCIES = {"souvent": "often", "toujours": "always", "parfois": "sometimes", "rarement": "rarely"}

FRENCH_NUMBERS = words(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit "
    "dix-neuf"
)
ENGLISH_NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
FRENCH_TENS = {2: "vingt", 3: "trente", 4: "quarante", 5: "cinquante", 6: "soixante"}
ENGLISH_TENS = {2: "twenty", 3: "thirty", 4: "forty", 5: "fifty", 6: "sixty", 7: "seventy", 8: "eighty", 9: "ninety"}


def number(value: int) -> tuple[str, str]:
    """The words for 0 to 99 in French (masculine) and English: (vingt et un, twenty-one)."""
    if value < 20:
        return FRENCH_NUMBERS[value], ENGLISH_NUMBERS[value]
    tens, units = divmod(value, 10)
    english = ENGLISH_TENS[tens] + (f"-{ENGLISH_NUMBERS[units]}" if units else "")
    if tens in (7, 9):
        tens, units = tens - 1, units + 10
    if tens == 8:
        return ("quatre-vingts" if units == 0 else f"quatre-vingt-{FRENCH_NUMBERS[units]}"), english
    if units == 0:
        return FRENCH_TENS[tens], english
    joint = " et " if units in (1, 11) else "-"
    return FRENCH_TENS[tens] + joint + FRENCH_NUMBERS[units], english


def spaced(entry: str) -> str:
    return entry.replace("_", " ")


def rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


def english_plural(noun: str) -> str:
    """The plural of an English noun: box, boxes."""
    if noun in ENGLISH_PLURALS:
        return ENGLISH_PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeo":
        return noun[:-1] + "ies"
    return noun + "s"


def read_noun(row: list[str]) -> Noun:
    french, gender, english, kind = row
    singular, _, plural = french.partition(",")
    english_words, _, given_plural = spaced(english).partition(",")
    ways = tuple(english_words.split("/"))
    plurals = (given_plural,) if given_plural else tuple(english_plural(way) for way in ways)
    return Noun(singular, plural or singular + "s", gender, ways, plurals, kind)


def read_adjective(row: list[str]) -> Adjective:
    masculine, feminine, english, place, *kinds = row
    plural = masculine + ("x" if masculine.endswith("eau") else "" if masculine[-1] in "sx" else "s")
    wide = tuple(kind for name in kinds for kind in (THING if name == "thing" else (name,)))
    forms = (masculine, feminine, plural, feminine + "s")
    before_vowel = BEFORE_VOWEL.get(masculine, masculine)
    return Adjective(forms, before_vowel, tuple(english.split("/")), place == "before", wide)


def comparative(adjective: str) -> str:
    """Big gives bigger, heavy heavier, useful more useful."""
    if adjective in LONG_ADJECTIVES or adjective[0].isupper():
        return f"more {adjective}"
    if adjective in COMPARATIVES:
        return COMPARATIVES[adjective]
    if adjective.endswith("y"):
        return adjective[:-1] + "ier"
    return adjective + ("r" if adjective.endswith("e") else "er")


def english_verb(entry: str) -> EnglishVerb:
    """All forms of a verb such as "look for": the first word is inflected, the others follow it."""
    base, *others = spaced(entry).split()
    irregular = {row[0]: row for row in rows(IRREGULAR_ENGLISH)}
    forms = irregular[base] if base in irregular else regular_english(base)
    return EnglishVerb(*(" ".join([form, *others]) for form in forms))


def regular_english(base: str) -> list[str]:
    if base.endswith("y") and base[-2] not in "aeo":
        return [base, base[:-1] + "ies", base[:-1] + "ied", base[:-1] + "ied", base + "ing"]
    if base.endswith("e"):
        return [base, base + "s", base + "d", base + "d", base[:-1] + "ing"]
    third = base + ("es" if base.endswith(("s", "x", "ch", "sh")) else "s")
    stem = base + base[-1] if base in ("prefer",) else base
    return [base, third, stem + "ed", stem + "ed", stem + "ing"]


def french_forms(infinitive: str) -> tuple[tuple[str, ...], str, str]:
    """The six present forms, the participle and the stem of the future."""
    for name, *forms in rows(IRREGULAR_FRENCH):
        if name == infinitive:
            return tuple(forms[:6]), forms[6], forms[7]
    stem = infinitive[:-2]
    if infinitive.endswith("ir"):
        endings = ("is", "is", "it", "issons", "issez", "issent")
        return tuple(stem + ending for ending in endings), stem + "i", infinitive
    strong = strong_stem(stem)
    soft = stem + "e" if stem.endswith("g") else stem[:-1] + "ç" if stem.endswith("c") else stem
    present = (strong + "e", strong + "es", strong + "e", soft + "ons", stem + "ez", strong + "ent")
    # é stays in the future (préférera), other changes are kept (achètera, nettoiera).
    return present, stem + "é", (stem if "é" in stem[-3:] else strong) + "er"


def strong_stem(stem: str) -> str:
    """The stem under stress: achet- gives achèt-, nettoy- nettoi-, préfér- préfèr-."""
    if stem.endswith("y"):
        return stem[:-1] + "i"
    if stem in ("achet", "lev", "promen"):
        return stem[:-2] + "è" + stem[-1]
    if stem in ("préfér", "espér"):
        return stem[:-2] + "è" + stem[-1]
    return stem


def make_verb(infinitive: str, english: str, aspect: str, kinds: tuple[str, ...], auxiliary: str = "") -> Verb:
    present, participle, future_stem = french_forms(infinitive)
    auxiliary = auxiliary or ("être" if infinitive in ETRE_VERBS else "avoir")
    ways = tuple(english_verb(way) for way in english.split("/"))
    return Verb(infinitive, present, participle, future_stem, auxiliary, ways, aspect, kinds)


def read_verbs(table: str, auxiliary: str = "") -> tuple[Verb, ...]:
    return tuple(make_verb(row[0], row[1], row[2], tuple(row[3:]), auxiliary) for row in rows(table))


NOUNS = tuple(read_noun(row) for row in rows(NOUN_TABLE))
ADJECTIVES = tuple(read_adjective(row) for row in rows(ADJECTIVE_TABLE))
TRANSITIVE = read_verbs(TRANSITIVE_TABLE)
TASTES = read_verbs(TASTES_TABLE)
GIVING = read_verbs(GIVING_TABLE)
TALKING = read_verbs(TALKING_TABLE)
INTRANSITIVE = read_verbs(INTRANSITIVE_TABLE)
REFLEXIVE = read_verbs(REFLEXIVE_TABLE, auxiliary="être")
HELPERS = tuple(
    (make_verb(infinitive, english, aspect, ()), "" if preposition == "-" else preposition)
    for infinitive, preposition, english, aspect in rows(HELPER_TABLE)
)
ETRE = make_verb("être", "be", "state", ())
AVOIR_AS_BE = make_verb("avoir", "be", "state", ())
ALLER = make_verb("aller", "go", "state", ())
VENIR = make_verb("venir", "have", "state", ())
HAVE = make_verb("avoir", "have", "state", ())
PLAY = make_verb("jouer", "play", "action", ())
COST = make_verb("coûter", "cost", "state", ())
DEPART = make_verb("partir", "leave", "action", ())
PLEASE = make_verb("plaire", "like", "state", ())
MISS = make_verb("manquer", "miss", "state", ())
SAY = make_verb("dire", "say", "state", ())
THINK = make_verb("penser", "think", "state", ())
KNOW = make_verb("savoir", "know", "state", ())
ARRIVE = make_verb("arriver", "arrive", "action", ())
ADVERBS = {"jamais": "never", "plus": "no longer"}
