"""mtkit doctor finds each kind of fault where it was planted, and nothing in text without faults; mtkit clean mends."""

import gzip
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from mtkit.cli import _run
from mtkit.errors import DataError
from mtkit.evaluation.report import as_html, as_text
from mtkit.preparation.characters import KINDS, MENDED, Block, Diagnosis, Learned, Lengths, minima
from mtkit.preparation.doctor import Examination, HeldOutPair, clean, examine, parts_of_files
from mtkit.preparation.faults import MENDS, Seen, Sides, judge, mend_mojibake
from tests.conftest import write_lines

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "data" / "demo"

Pairs = list[tuple[str, str]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Two thousand pairs of the demo corpus, without faults; no pair twice."""
    sides = [(DEMO / f"train.{code}").read_text("utf-8").splitlines()[:2400] for code in ("fr", "en")]
    return list(dict.fromkeys(zip(*sides, strict=True)))[:2000]


def diagnosed(pairs: Pairs, folder: Path, held_out: Pairs = ()) -> Diagnosis:
    """What the doctor finds in these pairs."""
    return examine(parts_of_files(written(pairs, folder), None), held_out_pairs(held_out))


def held_out_pairs(pairs: Pairs) -> list[HeldOutPair]:
    return [HeldOutPair("test", number, *pair) for number, pair in enumerate(pairs, start=1)]


def written(pairs: Pairs, folder: Path) -> list[Path]:
    files = [folder / "text.fr", folder / "text.en"]
    for side, file in enumerate(files):
        write_lines(file, [pair[side] for pair in pairs])
    return files


def lines_of(diagnosis: Diagnosis, name: str) -> list[int | None]:
    return [example.line for example in diagnosis.found[name].examples]


# What a fault makes of a pair; each is planted in a few pairs, and must be found in these alone.
GERMAN = (
    "Der Zug nach München hatte schon wieder zwanzig Minuten Verspätung.",
    "Ich habe gestern meinen Schlüssel in der Küche liegen lassen.",
    "Wir möchten am Wochenende mit den Kindern in die Berge fahren.",
    "Können Sie mir bitte sagen, wo ich hier umsteigen muss?",
    "Seine Schwester studiert seit zwei Jahren Medizin in Heidelberg.",
    "Das Wetter soll morgen früh deutlich besser werden als heute.",
    "Niemand wusste, warum das Geschäft so lange geschlossen war.",
    "Meine Großmutter erzählt uns oft von ihrer Zeit auf dem Land.",
    "Leider konnten wir die Rechnung noch nicht vollständig bezahlen.",
    "Er fragte mich, ob ich ihm beim Umzug helfen würde.",
    "Die Nachbarn beschweren sich ständig über den Lärm der Baustelle.",
    "Zum Frühstück esse ich meistens Brötchen mit Käse und Marmelade.",
)
FAULTS = {
    "blank side": lambda source, target, n: (source, " \u3000"),
    "replacement characters": lambda source, target, n: (source.replace("e", "\ufffd"), target),
    "mojibake": lambda source, target, n: (f"{source} déjà".encode().decode("latin-1"), target),
    "private-use characters": lambda source, target, n: (source, f"{target} \ue000"),
    "control characters": lambda source, target, n: (source.replace(" ", "\x07\x1b[0m ", 1), f"\u200b{target}"),
    "spaces": lambda source, target, n: (source, f" {target}"),
    "not NFC": lambda source, target, n: (unicodedata.normalize("NFD", f"{source} é"), target),
    "markup": lambda source, target, n: (f"<p> {source} </p>", f"{target} &amp; mo&#10;re"),
    "identical": lambda source, target, n: (source, source.upper()),
    "no words": lambda source, target, n: ("*** --- ***", f"===== {n} ====="),
    "wrong script": lambda source, target, n: ("Где находится ближайшая станция?", target),
    "swapped": lambda source, target, n: (target, source),
    "wrong language": lambda source, target, n: (GERMAN[n], target),
    "length ratio": lambda source, target, n: (source, " ".join([target] * 6)),
    "numbers differ": lambda source, target, n: (f"{source} (1984)", f"{target} (2017)"),
    "addresses differ": lambda source, target, n: (f"{source} https://a.org/x", f"{target} https://b.org/y"),
}


def with_faults(pairs: Pairs) -> tuple[Pairs, dict[str, list[int]]]:
    """The pairs with each fault in twelve of them, and the places where it is."""
    long = [place for place, pair in enumerate(pairs) if min(map(len, pair)) > 40]
    dirty, places = list(pairs), {}
    for number, (name, fault) in enumerate(FAULTS.items()):
        places[name] = long[number :: len(FAULTS)][:12]
        for n, place in enumerate(places[name]):
            dirty[place] = fault(*pairs[place], n)
    return dirty, places


def test_every_fault_of_pairs_is_found_where_it_is_and_nowhere_else(pairs, tmp_path, quiet):
    dirty, places = with_faults(pairs)
    diagnosis = diagnosed(dirty, tmp_path)
    for name, planted in places.items():
        assert name in diagnosis.kinds, name
        assert diagnosis.found[name].count == len(planted), name
        assert lines_of(diagnosis, name) == [place + 1 for place in planted[:5]], name
    assert set(diagnosis.kinds) == set(FAULTS)
    assert diagnosis.stopping == []

    # The page and the JSON say the same; the page needs no other file, and shows what cannot be seen.
    page = as_html(diagnosis)
    assert not re.search(r"<(script|link|img)|https?://(?!a\.org|b\.org)", page)
    assert "&lt;U+200B&gt;" in page
    assert [finding["kind"] for finding in diagnosis.as_json()["findings"]] == diagnosis.kinds
    for name in diagnosis.kinds:
        assert KINDS[name].title in page.replace("&amp;", "&")


def test_repeated_pairs_are_found_however_they_are_written(pairs, tmp_path, quiet):
    long = max(pairs, key=lambda pair: min(map(len, pair)))
    again = [pairs[7], (pairs[8][0].upper(), f"{pairs[8][1]} …"), (f"{long[0]} b", f"{long[1]} b")]
    diagnosis = diagnosed([*pairs, *again], tmp_path)
    assert lines_of(diagnosis, "duplicate") == [len(pairs) + 1]
    assert lines_of(diagnosis, "near duplicate") == [len(pairs) + 2]
    assert len(pairs) + 3 in lines_of(diagnosis, "similar")


def test_pairs_that_differ_in_a_symbol_or_are_punctuation_alone_repeat_nothing(pairs, tmp_path, quiet):
    held_out = [("...", "!"), ("Il aime ♥.", "He likes ♥.")]
    training = [
        ("—", "?"),
        ("…", "…"),
        ("Il aime ★.", "He likes ★."),
        ("Il a 5 €.", "He has 5 €."),
        ("Il a 5 $.", "He has $5."),
    ]
    assert {"near duplicate", "held out"}.isdisjoint(diagnosed([*pairs[:50], *training], tmp_path, held_out).found)
    found = diagnosed([*pairs[:50], ("Il aime ♥ !", "He likes ♥!"), ("IL AIME ♥", "He likes ♥")], tmp_path, held_out)
    assert lines_of(found, "near duplicate") == [52]
    assert found.found["held out"].count == 1


RECIPE = """
languages: {source: fr, target: en}
data:
  train: [{source: text.*.fr, target: text.*.en}]
  valid: [{source: valid.fr, target: valid.en}]
"""


def test_held_out_pairs_are_found_with_small_edits_and_stop_training(pairs, tmp_path, quiet, capsys):
    training, held_out = pairs[100:], pairs[:100]
    sound = diagnosed(training, tmp_path, held_out)
    assert sound.kinds == []
    assert as_text(sound).startswith("1,900 pairs: no faults found")

    # The same with settings, from several files; in the second, three pairs are held out, and three nearly.
    long = [pair for pair in held_out if min(map(len, pair)) > 40][:6]
    edited = [(f"X{source[1:]}", target[:-3].rstrip()) for source, target in long[:3]] + [
        (s.lower(), t) for s, t in long[3:]
    ]
    for name, some in {"text.1": training[:1800], "text.2": training[1800:] + edited, "valid": held_out}.items():
        for side, code in enumerate(("fr", "en")):
            write_lines(tmp_path / f"{name}.{code}", [pair[side] for pair in some])
    (tmp_path / "my.yaml").write_text(RECIPE, encoding="utf-8")
    assert _run(["doctor", str(tmp_path / "my.yaml"), f"data.root={tmp_path}", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["pairs"], found["held_out_pairs"]) == (1906, 100)
    assert {finding["kind"]: finding["count"] for finding in found["findings"]} == {"held out": 3, "nearly held out": 3}
    assert found["findings"][0]["examples"][0]["file"] == str(tmp_path / "text.2.fr")
    assert found["findings"][0]["examples"][0]["line"] == 104
    assert "held out" in found["stops"]


def test_pairs_of_one_form_with_other_numbers_or_names_are_not_nearly_held_out(pairs, tmp_path, quiet):
    held_out = [
        ("Voir le chapitre 17 du manuel de Dupont.", "See chapter 17 of the manual by Dupont."),
        ("Comment passer à la version 3.3", "How to change to version 3.3"),
    ]
    same = [("Voyez le chapitre 17 du manuel de Dupont.", "See chapter 17 of a manual by Dupont.")]
    others = [
        ("Voir le chapitre 18 du manuel de Dupont.", "See chapter 18 of the manual by Dupont."),
        ("Voir le chapitre 17 du manuel de Durand.", "See chapter 17 of the manual by Durand."),
        ("Comment passer à la version 3.4", "How to change to version 3.4"),
    ]
    found = diagnosed([*pairs[:50], *others, *same], tmp_path, held_out).found["nearly held out"]
    assert [example.line for example in found.examples] == [54]


def test_hashes_are_told_apart_from_those_before_however_many_they_are():
    seen, known = Seen(), set[int]()
    generator = np.random.default_rng(1)
    for size, bits in ((3000, 12), (50_000, 20), (1, 20), (3000, 12)):
        keys = generator.integers(0, 1 << bits, size, dtype=np.uint32) << np.uint32(12)
        old = seen.add(keys).tolist()
        for key, is_old in zip(keys.tolist(), old, strict=True):
            assert is_old == (key in known)
            known.add(key)


def test_lower_case_and_hashes_do_not_depend_on_what_stands_around_a_line():
    lines = ["ΟΔΟΣ, İstanbul", "Straße №17 — ÉTÉ", "", "a", "été 日本 a"]
    block = Block(lines)
    assert block.lowered().keys().tolist() == Block([line.lower() for line in lines]).keys().tolist()
    for number, line in enumerate(lines):
        alone = Block([line])
        assert block.keys()[number] == alone.keys()[0]
        assert block.content_keys[number] == alone.content_keys[0]
        assert (minima(block)[number] == minima(alone)[0]).all()
        words, starts = block.words()
        assert words[starts[number] : starts[number + 1]].tolist() == alone.words()[0].tolist()
    assert block.words()[0][-1] == block.words()[0][block.words()[1][3]]  # the same word at two places


@pytest.mark.parametrize("lost", [1, 2, 300])
def test_the_line_from_which_the_sides_slip_is_found(pairs, tmp_path, quiet, lost):
    cut = 800
    slipped = list(zip([s for s, _ in pairs[:cut] + pairs[cut + lost :]], [t for _, t in pairs[:-lost]], strict=True))
    (first, *_) = diagnosed(slipped, tmp_path).found["slip"].examples
    assert abs(first.line - cut) <= 20
    assert (f"n+{lost}" if lost < 9 else "do not belong together") in first.text


def test_files_of_unequal_length_and_bytes_that_are_not_utf8_stop_training(pairs, tmp_path, quiet, capsys):
    files = written(pairs[:50], tmp_path)
    files[1].write_bytes(files[1].read_bytes() + b"caf\xe9\n")
    code = _run(["doctor", *map(str, files), "--json", "-o", str(tmp_path / "page.html")])
    found = json.loads(capsys.readouterr().out)
    assert code == 1
    assert found["stops"] == ["unequal lines", "not UTF-8"]
    assert "50 lines, but" in found["findings"][0]["examples"][0]["text"]
    assert "not UTF-8" in (tmp_path / "page.html").read_text("utf-8")
    with pytest.raises(DataError, match="50 lines, but"):
        clean(Examination(parts_of_files(files, None), (), None), tmp_path / "new")
    assert not (tmp_path / "new").exists()


TEXT = "The first line.\nThe second, which is longer.\nThe third.\n"
ODD_FILES = {
    "nothing": (b"", "text.fr and text.en: no pairs found"),
    "UTF-16": (TEXT.encode("utf-16"), "text.en: is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8 FILE"),
    "UTF-16 without a mark": (TEXT.encode("utf-16-be"), "text.en: is UTF-16BE; convert it"),
    "an old Mac": (
        TEXT.replace("\n", "\r").encode(),
        "text.en: found 2 carriage returns within one line, which must",
    ),
    "half a file": (gzip.compress(TEXT.encode())[:-9], "text.en: damaged gzip"),
}


@pytest.mark.parametrize(("raw", "told"), ODD_FILES.values(), ids=ODD_FILES)
@pytest.mark.parametrize("command", ["doctor", "clean"])
def test_a_file_that_cannot_be_read_as_pairs_is_told_in_one_line(tmp_path, capsys, monkeypatch, command, raw, told):
    monkeypatch.chdir(tmp_path)
    Path("text.fr").write_bytes(TEXT.encode() if raw else b"")
    Path("text.en").write_bytes(raw)
    assert _run([command, "text.fr", "text.en", *(["-o", "new"] if command == "clean" else []), "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"mtkit: error: {told}")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.en", "text.fr"]


def test_units_of_a_memory_that_lack_a_language_are_counted(pairs, tmp_path, quiet, capsys):
    file = tmp_path / "memory.tmx"
    sides = [
        [f'<tuv xml:lang="{code}"><seg>{text}</seg></tuv>' for code, text in zip(("fr", "en"), pair, strict=True)]
        for pair in pairs[:40]
    ]
    units = [f"<tu>{source}{'' if number in (8, 9) else target}</tu>" for number, (source, target) in enumerate(sides)]
    write_lines(file, ['<tmx version="1.4"><header srclang="fr"/><body>', *units, "</body></tmx>"])
    assert _run(["doctor", str(file), "--json"]) == 0
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["kind"], finding["count"]) == ("lacking side", 2)
    assert [example["line"] for example in finding["examples"]] == [10, 11]
    assert _run(["clean", str(file), "-o", str(tmp_path / "new")]) == 0
    assert "skipped: 2 units without one of the languages" in capsys.readouterr().out
    record = json.loads((tmp_path / "new" / "cleaned.json").read_text("utf-8"))
    assert (record["pairs_read"], record["units_without_a_side"]) == (38, 2)
    for command in (["doctor"], ["clean", "-o", str(tmp_path / "nothing")]):
        assert _run([*command, str(file), "--languages", "fr-de"]) == 1
        assert "memory.tmx: no pairs found, and 40 units without one of the languages\n" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()


def test_a_page_that_cannot_be_written_is_refused_before_the_text_is_read(tmp_path, capsys):
    (tmp_path / "folder.html").mkdir()
    for output, told in (
        ("page.txt", "wants a file that ends in .html"),
        ("no/page.html", "no such directory"),
        ("folder.html", "is a folder, wants the name of a file"),
    ):
        assert _run(["doctor", str(tmp_path / "no.fr"), str(tmp_path / "no.en"), "-o", str(tmp_path / output)]) == 1
        assert told in capsys.readouterr().err


def test_a_place_without_write_access_is_refused_before_the_text_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    for command, output in (("doctor", "page.html"), ("clean", "new"), ("clean", "new/new")):
        assert _run([command, str(tmp_path / "no.fr"), str(tmp_path / "no.en"), "-o", str(tmp_path / output)]) == 1
        assert f"{tmp_path / output}: {tmp_path} cannot be written; give" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_refused_before_the_text_is_read(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    for output, told in (("file", "found a file, wants a folder"), ("file/new/new", "file is a file, wants a folder")):
        assert _run(["clean", str(tmp_path / "no.fr"), str(tmp_path / "no.en"), "-o", str(tmp_path / output)]) == 1
        assert told in capsys.readouterr().err


def test_cleaned_text_has_no_faults_and_the_record_adds_up(pairs, tmp_path, quiet, capsys):
    dirty, _ = with_faults(pairs)
    files = written(dirty, tmp_path)
    before = [file.read_bytes() for file in files]
    assert _run(["clean", *map(str, files), "-o", str(tmp_path / "new"), "--keep", "addresses differ"]) == 0
    assert [file.read_bytes() for file in files] == before
    new = [tmp_path / "new" / file.name for file in files]
    assert examine(parts_of_files(new, None)).kinds == ["addresses differ"]
    record = json.loads((tmp_path / "new" / "cleaned.json").read_text("utf-8"))
    dropped = sum(kind["count"] for kind in record["dropped"].values())
    assert record["pairs_read"] - record["pairs_written"] == dropped
    assert record["pairs_written"] == len(new[0].read_text("utf-8").split("\n")) - 1
    assert record["mended"]["swapped"]["count"] == 12
    capsys.readouterr()
    assert _run(["clean", *map(str, files), "-o", str(tmp_path / "new")]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err


def looks_like(source: str, target: str, spread: float = 1.0) -> set[str]:
    """The faults of a pair in a corpus whose statistics play no part, or only its length ratios of such a spread."""
    learned = Learned((("LATIN", "HIRAGANA", "KATAKANA", "CJK"),) * 2, None, Lengths(0.0, spread))
    return {name for name, chosen in judge(Sides([source], [target]), learned).items() if chosen.any()}


SOUND = {
    "a name in angle brackets stands for a value": ("Write <file> or <a file> here.", "Hier <file> oder <a file>."),
    "tags and entities in code": ("Use ``<b>x</b>`` or `&lt;` here.", "Hier ``<b>y</b>`` oder `&lt;`."),
    "an ampersand that begins no entity": ("R&D; see AT&T; x&y;", "Forschung; siehe AT&T; x&y;"),
    "digits of other scripts": ("Born in 1984, he paid 1,000.", "１９８４ 年、 १,००० oder ١٠٠٠."),
    "words among figures": ("1.3 à 1.5.2, +0100, -0400", "1.3 to 1.5.2, +0100, -0400"),
    "a site in two languages": ("See https://en.a.org/wiki/Bread (1).", "Vois http://fr.a.org/wiki/Pain, là."),
    "a path in two languages": ("See https://a.org/en-us/start today.", "Vois https://www.a.org/fr/debut ici."),
    "an address with and without www": ("See http://www.a.org/x/ today.", "Vois <https://a.org/x> ici."),
}


@pytest.mark.parametrize("pair", SOUND.values(), ids=SOUND)
def test_what_only_looks_like_a_fault_is_none(pair):
    assert looks_like(*pair) == set()


def test_what_such_rules_are_made_for_is_still_a_fault():
    faults = (
        "<b>Bold.",
        'He <x a="1">said.',
        "One<br/>two.",
        "An <x>end</x>.",
        "No <!-- comment -->.",
        "Tea &amp; milk.",
        "A `<b>` in <b>bold</b>.",
    )
    for text in faults:
        assert looks_like(text, "Etwas anderes.") == {"markup"}, text
    assert MENDS["markup"]("<b>?a=1&copy=2</b> &amp; <x>") == "?a=1&copy=2 & <x>"
    assert looks_like("1.3 à 1.5.2, +0100, -0400", "=====") == {"no words"}
    assert looks_like("Born in 1984.", "１９４８ 年 に 生まれ た。") == {"numbers differ"}
    assert looks_like("See https://a.org/x now.", "Vois https://b.org/y ici.") == {"addresses differ"}
    assert looks_like("See https://en.a.org/x now.", "Vois https://fr.b.org/x ici.") == {"addresses differ"}
    assert looks_like("See a@b.org, please.", "Vois b@b.org ici.") == {"addresses differ"}


def test_a_short_sentence_may_be_a_free_translation_but_not_one_that_is_cut_off():
    longer = "That is no more than we had expected of them."
    for target, faults in (("On le savait.", set()), ("On le savait bi", {"length ratio"}), ("Oui.", {"length ratio"})):
        assert looks_like(longer, target, spread=0.1) == faults, target
        assert looks_like(target, longer, spread=0.1) == faults, target


def test_a_line_of_junk_does_not_change_what_is_said_of_all_others(pairs, tmp_path, quiet):
    german = [(text, pairs[place][1]) for place, text in enumerate(GERMAN)]
    found = diagnosed([*pairs[:600], *german, ("x" * 300_000, "x" * 300_000)], tmp_path)
    assert found.found["wrong language"].count == len(german)


def test_names_in_other_letters_and_rare_scripts_of_a_language_are_no_wrong_script(tmp_path, quiet):
    sentences = ["私は毎朝ご飯を食べます。", "雨が降っていたので、家にいました。", "駅の前に新しい店ができました。"]
    pairs = [
        (f"{text}{number}", f"Sentence number {number}, in English.") for number in range(90) for text in sentences
    ]
    odd = [("Wilsonは医者です。", "Wilson is a physician."), ("キャッチボール！", "Playing catch!")]
    wrong = [("Ceci n'est pas du japonais.", "This is not Japanese.")]
    assert lines_of(diagnosed([*pairs, *odd, *wrong], tmp_path), "wrong script") == [len(pairs) + 3]


def test_a_text_of_names_and_code_is_in_no_wrong_language(pairs, tmp_path, quiet):
    names = [("Wolfgang Schüßler et Ingrid Böhme", "Wolfgang Schüßler and Ingrid Böhme")] * 9
    code = [("Change schlüssel_wert(größe) en wert.", "Changes schlüssel_wert(größe) to wert.")] * 9
    german = [(text, pairs[place][1]) for place, text in enumerate(GERMAN)]
    diagnosis = diagnosed([*german, *pairs, *names, *code], tmp_path)
    assert diagnosis.found["wrong language"].count == len(german)


@pytest.mark.parametrize(
    "text", ["déjà vu — “naïve” Ærø", "œuvre, sœur, Œil", "Привет, как дела?", "日本語", "Straße, MENÜ“ und „Ä“"]
)
def test_mending_undoes_damage_once_or_twice_and_leaves_sound_text_alone(text):
    assert mend_mojibake(text) == text
    once = text.encode().decode("latin-1")
    twice = once.encode().decode("latin-1")
    broken = [sign for sign in (once, twice) if "Ü" not in text]
    assert [mend_mojibake(sign) for sign in broken] == [text] * len(broken)
    assert {"swapped", *MENDS} == {name for name, kind in KINDS.items() if kind.cleaned == MENDED}
    for mend in MENDS.values():
        assert mend(mend(text)) == mend(text) == text
