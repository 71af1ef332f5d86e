"""What is easily overlooked in parallel text: a header that would be read as a pair, and sides that are the same."""

import re
from collections.abc import Iterable, Iterator

from mtkit.config.data_settings import LanguagesConfig
from mtkit.text.parallel import Pair

NUM_NAMED = 3  # texts that are named for each oversight; the rest are counted
LARGE_SHARE = 0.1  # of copies; Khayrallah & Koehn (2018) measured that so many already harm a model

# Words of which the names of columns are made.
COLUMN_WORDS = (
    "source sources src target targets tgt trg text texts sentence sentences segment line lines string translation "
    "translations translated original input output reference references hypothesis column col lang language"
)
# ISO 639-1, which names columns as often.
LANGUAGE_CODES = (
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en "
    "eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv "
    "ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne "
    "ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st "
    "su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
LANGUAGE_NAMES = (
    "afrikaans albanian amharic arabic armenian basque belarusian bengali bosnian bulgarian burmese catalan chinese "
    "croatian czech danish dutch english esperanto estonian finnish french galician georgian german greek gujarati "
    "hausa hebrew hindi hungarian icelandic igbo indonesian irish italian japanese kannada kazakh khmer korean kurdish "
    "lao latin latvian lithuanian macedonian malay malayalam maltese marathi mongolian nepali norwegian pashto persian "
    "polish portuguese punjabi romanian russian serbian sinhala slovak slovenian somali spanish swahili swedish tamil "
    "telugu thai tibetan turkish ukrainian urdu uzbek vietnamese welsh xhosa yoruba zulu"
)


class Oversights:
    """Watches pairs of text as they are read."""

    def __init__(self, languages: LanguagesConfig, is_copying_dropped: bool) -> None:
        """Nothing is seen yet; copies need not be told where they are left out of training anyway."""
        self._codes = {languages.source.lower(), languages.target.lower()} | set(LANGUAGE_CODES.split())
        self._is_copying_dropped = is_copying_dropped
        self._headers: list[str] = []
        self._copies: list[str] = []
        self._csv: dict[str, str] = {}  # files, and what to say of them

    def watched(self, name: str, files: Iterable[object], pairs: Iterable[Pair], trains: bool) -> Iterator[Pair]:
        """The same pairs; name and files are those of the text, and trains says whether a model learns from it."""
        named = list(map(str, files))
        where = " and ".join(dict.fromkeys(named))
        for file in named:
            if len(named) > 1 and re.search(r"\.csv(\.\w+)?$", file, re.IGNORECASE):
                self._csv[file] = (
                    f"{name}: {file} is read as plain text, a line a sentence, with all quotes, commas and headers in "
                    "it; CSV is not read, so make text or columns with tabs of it"
                )
        num_equal = num_pairs = 0
        for source, target in pairs:
            if not num_pairs and self._is_header(source, target):
                self._headers.append(
                    f"{name}: line 1 of {where}, {source.strip()} / {target.strip()}, looks like the names of columns, "
                    "and is read as a pair; delete it, such as by sed -i 1d FILE"
                )
            num_pairs += 1
            num_equal += source.strip().casefold() == target.strip().casefold() != ""
            yield source, target
        if num_equal > LARGE_SHARE * num_pairs and num_pairs > 1 and not (trains and self._is_copying_dropped):
            then = "the model learns to copy" if trains else "copying is measured"
            self._copies.append(
                f"{name}: {where}: source and target are the same in {num_equal:,} of {num_pairs:,} pairs "
                f"({num_equal / num_pairs:.1%}), so {then}; name the file of the translation"
                + (", or leave such pairs out with data.drop_identical: true" if trains else "")
            )

    def warnings(self) -> Iterator[str]:
        """A line for each of the first oversights of each kind, and one for the rest."""
        for found in (list(self._csv.values()), self._headers, self._copies):
            yield from (f"warning: {text}" for text in found[:NUM_NAMED])
            if len(found) > NUM_NAMED:
                yield f"warning: and so with {len(found) - NUM_NAMED:,} more"

    def _is_header(self, source: str, target: str) -> bool:
        return source != target and self._names_column(source) and self._names_column(target)

    def _names_column(self, text: str) -> bool:
        """Whether a text is made of nothing but words that name columns, such as sentence1, text_en or eng_Latn."""
        text = text.strip().strip("\"'").lower()
        if text in self._codes or re.fullmatch(r"[a-z]{3}[_-](arab|cyrl|deva|ethi|grek|hans|hant|hebr|latn)", text):
            return True
        words = re.findall(r"[^\W\d_]+", text)
        known = {*COLUMN_WORDS.split(), *LANGUAGE_NAMES.split()}
        return bool(words) and any(word in known for word in words) and set(words) <= known | self._codes
