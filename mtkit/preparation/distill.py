"""Sequence-level knowledge distillation (Kim & Rush 2016): a teacher's translations become a student's training text.

Translates the source side of the training corpora, a chunk of lines at a time. After each chunk, a record of the
progress is saved, from which the command goes on if it was killed. Chunks always begin and end at the same lines, so
an interrupted run gives the same result as an uninterrupted one, in every precision.
"""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, Self

from mtkit import __version__
from mtkit.bundle.opening import noted_start, open_model
from mtkit.config.data_and_model_settings import CorpusConfig
from mtkit.config.settings import Config, config_text
from mtkit.config.training_settings import DecodingConfig
from mtkit.errors import CheckpointError, ConfigError, DataError, Meter, counted, duration, inform, say
from mtkit.files import counted_when_ended, json_text, only_writer, remove, require_folder, without_usr1, write_file
from mtkit.preparation.sources import setting_changes, training_corpora
from mtkit.text.lines import fingerprint
from mtkit.text.parallel import files_of, read_source, tagged, with_patterns_expanded
from mtkit.translation.translator import WINDOW_CHARACTERS, WINDOW_LINES, TranslatedLine, Translator, load

RECORD = "distilled.json"  # how far the work is, and what it was made from
STUDENT = "student.yaml"  # the settings that train the student
FORMAT = 1  # of RECORD

OURS = re.compile(r"corpus-\d+\.(source|target)|student\.yaml")  # names of files, besides RECORD

# The settings of decoding that may differ between calls. They change translations only by rounding errors, and users
# must be able to adapt them to the memory of their machine.
FREE = {"batch_tokens", "refill"}


@dataclass(frozen=True)
class Teacher:
    """The model that translates the training text, and how it translates.

    `overrides` are changed settings, such as "decoding.beam_size=1". `ensemble` holds the paths of further models; the
    predictions of all models are then combined.
    """

    path: Path
    overrides: Sequence[str] = ()
    precision: str = "fp32"
    ensemble: Sequence[Path] = ()


def distill(
    config: Config, teacher: Teacher, folder: Path | None = None, keep_original: bool = False, fresh: bool = False
) -> str:
    """`mtkit distill`: translates the training text of `config`, and writes settings that train a student on it.

    `folder`, by default runs/NAME-distilled-text, receives both sides of each corpus, the settings that train the
    student on them (STUDENT), and the record of how far the work is (RECORD). A pair of which a side is blank is left
    out. With `keep_original`, the student trains on the original pairs, too.

    Goes on after the lines that an earlier call has translated; with `fresh`, deletes the files of that call and begins
    anew. Returns a report of several lines.

    Raises ConfigError if `config` is for a language model, or if the teacher translates between other languages. Raises
    CheckpointError if the earlier call had another teacher, other text or other decoding settings. Raises DataError if
    the files of the earlier call have changed since. Raises StoppedError if a signal ends the work.
    """
    if config.task == "language_model":
        raise ConfigError(
            "mtkit distill makes translations for a student; task is language_model, which reads no source"
        )
    corpora = training_corpora(with_patterns_expanded(config))
    made_from = _made_from(config, corpora, teacher)
    folder = folder or config.run_path.with_name(f"{config.run_path.name}-distilled-text")
    require_folder(folder, replaced=False)
    with only_writer(folder), without_usr1():
        translator = None
        if fresh:
            translator = _load(teacher, corpora)  # if that fails, nothing is deleted
            _clear(folder)
        record = _open_record(folder, corpora, made_from)
        was_finished = record.is_finished
        if not was_finished:
            _translate_all(folder, corpora, record, translator or _load(teacher, corpora))
        _write_student(config, folder, keep_original)
    return _report(folder, record, was_finished)


# What the translations are made from. If any of this changes, earlier work cannot be continued.

MADE_FROM = {"teacher", "precision", "decoding", "text", "tags"}  # the keys of what _made_from returns


def _made_from(config: Config, corpora: Sequence[CorpusConfig], teacher: Teacher) -> dict[str, Any]:
    """Returns what determines the translations: teacher, precision, decoding settings, source text and tags.

    The text is represented by checksums.

    Raises ConfigError if the teacher does not translate between the languages of `config`.
    """
    bundles = [open_model(path) for path in (teacher.path, *teacher.ensemble)]
    _require_languages(config, bundles[0].config, teacher.path)
    config_of_teacher = bundles[0].with_length_limit(bundles[0].config_with(teacher.overrides))
    decoding = config_of_teacher.decoding.model_dump(mode="json", exclude=FREE)
    return {
        "teacher": [noted_start(bundle) for bundle in bundles],
        "precision": teacher.precision,
        "decoding": decoding,
        "text": [[_source_fingerprint(part) for part in corpus.parts] for corpus in corpora],
        "tags": [corpus.tag for corpus in corpora],
    }


def _source_fingerprint(part: CorpusConfig) -> str:
    """The checksum of the source side of one part of a corpus.

    For a tab-separated file, it is the checksum of the whole file, followed by the number of the source column.
    """
    found = fingerprint(files_of(part)[0])
    return found if part.tsv is None else f"{found}, column {part.columns[0]}"


def _require_languages(config: Config, teacher: Config, path: Path) -> None:
    """Raises ConfigError if the teacher translates between other languages than those of `config`.

    Regions and scripts are not compared. A side is not checked if its language is not stated. Neither side is checked
    if the text is multilingual, that is, if every corpus has a tag. `path` is the teacher's path, for the message.
    """
    if all(corpus.tag is not None for corpus in config.data.train):
        return
    for side in ("source", "target"):
        ours, theirs = getattr(config.languages, side), getattr(teacher.languages, side)
        if side not in (ours, theirs) and _language(ours) != _language(theirs):
            raise ConfigError(
                f"{path}: translates {teacher.languages.source} to {teacher.languages.target}, and languages.{side} is "
                f"{ours}; wants a teacher that translates {config.languages.source} to {config.languages.target}"
            )


def _language(code: str) -> str:
    return re.split("[-_]", code)[0].lower()


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Returns a line of text for each change in what determines the translations, such as another teacher.

    `before` and `now` are dicts with the teacher, the precision, the decoding settings, the checksums of the source
    text and the tags.
    """
    changes = ["the teacher has other weights"] if before["teacher"] != now["teacher"] else []
    defaults = DecodingConfig().model_dump(mode="json", exclude=FREE)  # of settings that an earlier version lacked
    changes += setting_changes("decoding", {**defaults, **before["decoding"]}, now["decoding"])
    if before["precision"] != now["precision"]:
        changes.append(f"--precision was {before['precision']}, is {now['precision']}")
    if len(before["text"]) != len(now["text"]):
        changes.append(f"data.train listed {len(before['text']):,} corpora, lists {len(now['text']):,}")
        return changes
    for place, (was, is_now) in enumerate(zip(before["text"], now["text"], strict=True)):
        if was != is_now:
            changes.append(f"the source of data.train[{place}] is other text")
    return changes + setting_changes("data.train", {"tags": before["tags"]}, {"tags": now["tags"]})


# The record of how far the work is.


@dataclass
class _Written:
    """The complete part of a file: its number of bytes, and the SHA-256 of these bytes in hexadecimal digits."""

    num_bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


@dataclass
class _Done:
    """How many lines of a corpus have been translated, and how much of its two files has been written."""

    num_lines: int  # the number of lines of the corpus
    done: int = 0  # the number of lines that have been read and translated
    pairs: int = 0  # the number of pairs that have been written
    source: _Written = field(default_factory=_Written)
    target: _Written = field(default_factory=_Written)


@dataclass
class _Record:
    """How far the work is, and what the translations are made from: the content of the file RECORD."""

    made_from: dict[str, Any]
    corpora: list[_Done]
    tokens: int = 0  # of the translations, counted with the teacher's vocabulary
    seconds: float = 0.0  # spent on translating, in all sessions
    blank: int = 0  # source lines that are blank
    noted: dict[str, int] = field(default_factory=dict)  # how many lines have each problem; see _problems
    mtkit: str = __version__
    format: int = FORMAT

    @property
    def num_lines(self) -> int:
        """The number of lines of all corpora."""
        return sum(corpus.num_lines for corpus in self.corpora)

    @property
    def num_done(self) -> int:
        """The number of lines that have been translated."""
        return sum(corpus.done for corpus in self.corpora)

    @property
    def is_finished(self) -> bool:
        """Whether all lines are translated."""
        return self.num_done == self.num_lines

    def note(self, problem: str, where: str) -> None:
        """Counts a line with a problem; warns of the first line with each problem. `where` names the line."""
        self.noted[problem] = count = self.noted.get(problem, 0) + 1
        if count == 1:
            say(f"mtkit: warning: {where} {problem}; further ones are counted")

    def save(self, folder: Path) -> None:
        """Writes RECORD to `folder`, replacing an earlier one."""
        write_file(folder / RECORD, f"{json_text(asdict(self), indent=2)}\n".encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a record from the file `path`. Raises CheckpointError if it is damaged or of another format."""
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != FORMAT:
                raise CheckpointError(
                    f"{path}: has format {content['format']}, wants {FORMAT}; begin anew with --fresh"
                )
            if missing := MADE_FROM - content["made_from"].keys():
                raise KeyError(*missing)
            for corpus in content["corpora"]:
                corpus.update(source=_Written(**corpus["source"]), target=_Written(**corpus["target"]))
            return cls(**{**content, "corpora": [_Done(**corpus) for corpus in content["corpora"]]})
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CheckpointError(f"{path}: damaged; begin anew with --fresh") from None


def _open_record(folder: Path, corpora: Sequence[CorpusConfig], made_from: dict[str, Any]) -> _Record:
    """Returns the record of an earlier call or, if no line has been translated yet, a new record, which is saved.

    `made_from` is what determines the translations, such as the teacher. Raises CheckpointError if the earlier call
    recorded a different `made_from`. Also raises CheckpointError if `folder` has no record, but has files named like
    those that `distill` writes. Raises DataError if the files of the earlier call have changed, or if the corpora have
    no lines.
    """
    path = folder / RECORD
    record = _Record.read(path) if path.exists() else None
    if record is None or not record.num_done:
        if record is None and (strange := sorted(file.name for file in folder.iterdir() if OURS.fullmatch(file.name))):
            raise CheckpointError(
                f"{folder}: holds {strange[0]} but no {RECORD}, which would tell what it is; move the file away, or "
                "name another folder (-o)"
            )
        record = _Record(made_from, [_Done(sum(1 for _ in read_source(corpus))) for corpus in corpora])
        if not record.num_lines:
            raise DataError("data.train: its files hold no lines; there is nothing to translate")
        record.save(folder)
        return record
    if changes := _changes(record.made_from, made_from):
        raise CheckpointError(
            f"{folder}: was made otherwise: {'; '.join(changes)}. Change that back, name another folder (-o), or begin "
            "anew with --fresh"
        )
    for number, corpus in enumerate(record.corpora):
        for side in ("source", "target"):
            _check(_file(folder, number, side), getattr(corpus, side), record.is_finished)
    return record


def _file(folder: Path, number: int, side: str) -> Path:
    """The path of the file for one side ("source" or "target") of the distilled corpus of data.train[number]."""
    return folder / f"corpus-{number + 1}.{side}"


def _check(path: Path, written: _Written, is_finished: bool) -> None:
    """Raises DataError if the file `path` does not begin with the bytes that `written` describes.

    With `is_finished`, also raises DataError if more bytes follow. A missing file counts as empty.
    """
    try:
        with path.open("rb") as stream:
            digest = _digest(stream, written.num_bytes)
            has_more = is_finished and bool(stream.read(1))
    except FileNotFoundError:
        digest, has_more = hashlib.sha256(), False
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if has_more or digest.hexdigest() != written.sha256:
        raise DataError(f"{path}: not as mtkit distill wrote it; bring it back, or begin anew with --fresh")


def _digest(stream: Any, num_bytes: int) -> Any:
    """Reads up to `num_bytes` bytes of a stream; returns a hash object of hashlib with their SHA-256."""
    digest = hashlib.sha256()
    while num_bytes > 0 and (data := stream.read(min(num_bytes, 1 << 20))):
        digest.update(data)
        num_bytes -= len(data)
    return digest


def _clear(folder: Path) -> None:
    """Deletes the files that earlier calls have written, the record last; deletes nothing if there is no record."""
    if (folder / RECORD).exists():
        for file in folder.iterdir():
            if OURS.fullmatch(file.name):
                remove(file)
        remove(folder / RECORD)


# Translating.


class _GrowingFile:
    """An output file of a resumable run: `append` writes lines at its end, and updates `written`.

    `written` describes the complete part of the file. When the file is opened, all bytes after this part are cut off: a
    killed process may have left them.
    """

    def __init__(self, path: Path, written: _Written) -> None:
        self._written = written
        self._stream = path.open("r+b" if path.exists() else "w+b")
        self._digest = _digest(self._stream, written.num_bytes)
        self._stream.truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def append(self, lines: Iterable[str]) -> None:
        """Append lines, and flush them to disk."""
        data = "".join(f"{line}\n" for line in lines).encode()
        self._stream.write(data)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._digest.update(data)
        self._written.num_bytes += len(data)
        self._written.sha256 = self._digest.hexdigest()


def _load(teacher: Teacher, corpora: Sequence[CorpusConfig]) -> Translator:
    """Returns the teacher's Translator. Raises MtkitError if the teacher does not know the tag of a corpus."""
    translator = load(teacher.path, teacher.overrides, teacher.precision, teacher.ensemble)
    for corpus in corpora:
        if corpus.tag is not None:
            translator.require_tag(corpus.tag)
    return translator


def _translate_all(folder: Path, corpora: Sequence[CorpusConfig], record: _Record, translator: Translator) -> None:
    """Translates all lines that `record` does not count as translated, and appends the pairs to the files in `folder`.

    Updates and saves `record` after each chunk of lines.
    """
    if record.num_done:
        inform(f"going on after {record.num_done:,} of {counted(record.num_lines, 'line')}")
    with (
        counted_when_ended("translated; the same command, without --fresh, goes on from there") as written,
        Meter("translating", "lines", record.num_lines - record.num_done, announced=True) as meter,
    ):
        written.number = record.num_done
        for number, (corpus, done) in enumerate(zip(corpora, record.corpora, strict=True)):
            with (
                _GrowingFile(_file(folder, number, "source"), done.source) as source,
                _GrowingFile(_file(folder, number, "target"), done.target) as target,
            ):
                for lines in _chunks(islice(read_source(corpus), done.done, None)):
                    begun = monotonic()
                    pairs = _translated(lines, corpus, f"data.train[{number}]", done, record, translator, meter)
                    source.append(line for line, _ in pairs)
                    target.append(text for _, text in pairs)
                    done.done += len(lines)
                    done.pairs += len(pairs)
                    record.seconds += monotonic() - begun
                    record.save(folder)
                    written.number = record.num_done


def _translated(
    lines: Sequence[str],
    corpus: CorpusConfig,
    where: str,
    done: _Done,
    record: _Record,
    translator: Translator,
    meter: Meter,
) -> list[tuple[str, str]]:
    """Translates the next lines of a corpus; returns pairs (line, translation), without those with a blank side.

    Counts blank lines, tokens and problems in `record`; `where` names the corpus in warnings. `done` tells how many
    lines of the corpus come before `lines`.
    """
    given = [tagged(line, corpus.tag) for line in lines]
    translations = list(translator.translate_lines(given, done=meter.add))
    for place, (line, translation) in enumerate(zip(given, translations, strict=True), done.done + 1):
        for problem in _problems(line, translation, translator):
            record.note(problem, f"{where}, line {place:,}")
    pairs = [(line, translation.text) for line, translation in zip(lines, translations, strict=True)]
    pairs = [(line, text) for line, text in pairs if line.strip() and text.strip()]
    record.blank += sum(not line.strip() for line in lines)
    record.tokens += sum(map(len, translator.tokenizer.encode_target([text for _, text in pairs])))
    return pairs


def _chunks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yields lists of consecutive lines, each as large as the window in which a Translator sorts lines by length.

    Only the last list may be smaller.
    """
    chunk: list[str] = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line)
        if len(chunk) >= WINDOW_LINES or size >= WINDOW_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _problems(line: str, translation: TranslatedLine, translator: Translator) -> Iterator[str]:
    """Yields the problems of a line, worded to follow "line N", such as "is too long for the teacher, and ..."."""
    yield from translation.notes
    if translation.num_parts > 1:
        yield "is too long for the teacher, and is translated in parts"
    if fault := translator.tag_fault(line):
        yield fault


# The student's settings, and the report.


def _write_student(config: Config, folder: Path, keep_original: bool) -> None:
    """Writes STUDENT: the settings of `config` with another name, and with the teacher's translations in data.train.

    With `keep_original`, data.train lists the original corpora, too. The student trains without guided alignment.
    Relative paths in data.train start from `data.root`, so if that is given, the path of `folder` is made absolute.
    """
    place = folder if config.data.root is None else folder.absolute()
    corpora = [
        corpus.model_copy(
            update={
                "source": _file(place, number, "source"),
                "target": _file(place, number, "target"),
                "tsv": None,
                "columns": (1, 2),
            }
        )
        for number, corpus in enumerate(config.data.train)
    ]
    train = (*corpora, *(config.data.train if keep_original else ()))
    update: dict[str, Any] = {
        "name": f"{config.name}-distilled",
        "data": config.data.model_copy(update={"train": train}),
    }
    if config.training.guided_alignment is not None:
        fields = type(config.training).model_fields
        unguided = {name: fields[name].default for name in fields if name.startswith("guided_alignment")}
        update["training"] = config.training.model_copy(update=unguided)
        say("the student trains without training.guided_alignment, whose alignments are not those of the new text")
    if config.run_dir is not None:
        update["run_dir"] = config.run_dir.with_name(f"{config.run_dir.name}-distilled")
    comment = "# Trains a student on the translations of a teacher. Written anew by each call of mtkit distill."
    text = f"{comment}\n{config_text(config.model_copy(update=update))}".encode()
    path = folder / STUDENT
    if not path.exists() or path.read_bytes() != text:
        write_file(path, text)


def _report(folder: Path, record: _Record, was_finished: bool) -> str:
    """Returns a few lines that say what was done, and the command that trains the student.

    `was_finished` is whether an earlier call had translated everything already.
    """
    num_pairs = sum(corpus.pairs for corpus in record.corpora)
    speed = record.tokens / record.seconds if record.seconds else 0.0
    what = f"{counted(record.num_lines, 'line')} translated in {duration(record.seconds)}, {speed:,.0f} tokens a second"
    lines = [
        f"{folder} is finished already: {what}" if was_finished else what,
        f"{counted(num_pairs, 'pair')} in {folder}",
    ]
    if left_out := record.num_lines - num_pairs:
        lines.append(
            f"{counted(left_out, 'line')} left out: {record.blank:,} blank, "
            f"{left_out - record.blank:,} with a blank translation"
        )
    lines += [f"{counted(count, 'line')}, each of which {problem}" for problem, count in record.noted.items()]
    return "\n".join([*lines, f"to train the student: mtkit run {shlex.quote(str(folder / STUDENT))}"])
