"""Readers of benchmark files in the formats that they are published in: each makes a dict of plain fields of each item.

A reader raises DataError with the number of the line, or the path inside the document, where a file is not what it
should be. An item whose answer is not published has None there.
"""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pangu_ms.core.errors import DataError
from pangu_ms.data import json_texts
from pangu_ms.eval.tasks.needle import needle

_log = logging.getLogger(__name__)

Row = dict[str, Any]
BLANK = "XXXXX"
"""Where the word is missing in CMRC2017, PD and CFT."""
_SEPARATOR = " ||| "
_IDIOM = re.compile(r"#idiom\d*#")
_NUMBERED_BLANK = re.compile(r"\[BLANK(\d+)\]")
_BETWEEN_WORDS = re.compile(r"(?<![A-Za-z0-9.,]) +| +(?![A-Za-z0-9])")


def clue(path: Path, drop_label: str = "-") -> list[Row]:
    """CLUE and FewCLUE: a line of JSON for each item, whose keys are its fields. Items whose label is `drop_label`, on
    which the annotators did not agree, are left out, as the benchmarks do it."""
    return [row for _, row in _objects(path) if row.get("label") != drop_label or not drop_label]


def cluewsc(path: Path) -> list[Row]:
    """CLUEWSC2020: a sentence, a pronoun in it (`pronoun`) and a noun (`noun`) that it may stand for. `before` and
    `after` are the text before and behind the pronoun."""
    rows = []
    for where, row in _objects(path):
        target, text = _value(row, "target", dict, where), _value(row, "text", str, where)
        pronoun = _value(target, "span2_text", str, f"{where}: target")
        begin = _value(target, "span2_index", int, f"{where}: target")
        end = begin + len(pronoun)
        if text[begin:end] != pronoun:
            raise DataError(
                f"{where}: target.span2_index={begin}: there is {text[begin:end]!r} in the text, not {pronoun!r}; the"
                " text was changed; get the file again"
            )
        noun = _value(target, "span1_text", str, f"{where}: target")
        fields = {"noun": noun, "pronoun": pronoun, "before": text[:begin], "after": text[end:]}
        rows.append({"id": row.get("idx"), "text": text, "label": row.get("label")} | fields)
    return rows


def squad(path: Path) -> list[Row]:
    """CMRC2018 and DRCD, in the form of SQuAD or in CMRC2018's own (`context_text`, `query_text`): id, title, context,
    question and `answers`, each text once."""
    tree = _document(path, (dict, list))
    articles = _value(tree, "data", list, str(path)) if isinstance(tree, dict) else tree
    rows: list[Row] = []
    for number, article in enumerate(articles):
        place = f"{path}: data[{number}]"
        whole = _object(article, place)
        paragraphs = _value(whole, "paragraphs", list, place) if "paragraphs" in whole else [whole]
        for at, paragraph in enumerate(paragraphs):
            inner = f"{place}.paragraphs[{at}]" if "paragraphs" in whole else place
            rows += _questions(_object(paragraph, inner), str(whole.get("title", "")), inner)
    return rows


def _questions(paragraph: Row, title: str, place: str) -> Iterator[Row]:
    context = _value(paragraph, "context_text" if "context_text" in paragraph else "context", str, place)
    for number, question in enumerate(_value(paragraph, "qas", list, place)):
        where = f"{place}.qas[{number}]"
        own = "query_text" in _object(question, where)
        answers = [_answer(one, where) for one in _value(question, "answers", list, where, [])]
        yield {
            "id": question.get("query_id" if own else "id"),
            "title": title,
            "context": context,
            "question": _value(question, "query_text" if own else "question", str, where),
            "answers": list(dict.fromkeys(answers)) or None,
        }


def _answer(answer: Any, where: str) -> str:
    """The text of an answer; CMRC2018's own form has a few numbers among them."""
    if isinstance(answer, str | int | float) and not isinstance(answer, bool):
        return str(answer)
    return _value(_object(answer, f"{where}.answers"), "text", str, where)


def c3(path: Path) -> list[Row]:
    """C3: [[lines of the document], [questions], id]: id, context, question, `choices` and `label`, the index of the
    right choice."""
    rows = []
    for number, entry in enumerate(_document(path, list)):
        place = f"{path}: entry {number}"
        if not isinstance(entry, list) or len(entry) != 3 or not all(isinstance(part, list) for part in entry[:2]):
            raise DataError(f"{place}: must be a list of a document, its questions and an id; get the file again")
        lines, questions, name = entry
        for at, question in enumerate(questions):
            where = f"{place}: question {at}"
            choices = _value(_object(question, where), "choice", list, where)
            answer = question.get("answer") or None
            if answer is not None and answer not in choices:
                raise DataError(f"{where}: the answer {str(answer)[:40]!r} is none of the choices; get the file again")
            rows.append(
                {
                    "id": f"{name}-{at}" if "id" not in question else question["id"],
                    "context": "\n".join(map(str, lines)),
                    "question": _value(question, "question", str, where),
                    "choices": choices,
                    "label": None if answer is None else choices.index(answer),
                }
            )
    return rows


def dureader(path: Path) -> list[Row]:
    """DuReader: id, question, `answers`, and `context`: the first paragraph of each document that the annotators chose
    (of the first document if they chose none)."""
    rows = []
    for where, row in _objects(path):
        documents = [_object(one, f"{where}: documents") for one in _value(row, "documents", list, where, [])]
        chosen = [one for one in documents if one.get("is_selected")] or documents[:1]
        paragraphs = [_texts(one, "paragraphs", where)[:1] for one in chosen]
        rows.append(
            {
                "id": row.get("question_id"),
                "question": _value(row, "question", str, where),
                "context": "\n".join(text for first in paragraphs for text in first),
                "answers": [answer for answer in _texts(row, "answers", where) if answer.strip()] or None,
            }
        )
    return rows


def webqa(path: Path) -> list[Row]:
    """WebQA: id, question, `evidence` (the first that answers it) and `answers`."""
    rows = []
    for name, entry in _document(path, dict).items():
        where = f"{path}: {name}"
        evidences = _value(_object(entry, where), "evidences", dict, where, {}).values()
        evidences = [_object(one, f"{where}: evidences") for one in evidences]
        found = [one for one in evidences if _texts(one, "answer", where) not in ([], ["no_answer"])]
        answers = dict.fromkeys(answer for one in found for answer in one["answer"])
        evidence = (found or evidences or [{}])[0].get("evidence", "")
        question = _value(entry, "question", str, where)
        rows.append({"id": name, "question": question, "evidence": evidence, "answers": list(answers) or None})
    return rows


def chid(path: Path) -> list[Row]:
    """ChID: an item for each missing idiom: id, `before` and `after` it, `candidates`, and `label`, the index of the
    right one. Other idioms that are missing in the same passage are left out.

    Three forms are read: FewCLUE's (`answer`), the paper's (`groundTruth`, candidates for each blank) and CLUE's
    (several passages for ten candidates; the answers stand in the file beside it, dev_answer.json for dev.json).
    """
    answers, rows = _answers_of_chid(path), list[Row]()
    for where, row in _objects(path):
        content, candidates = row.get("content"), _value(row, "candidates", list, where)
        for passage in content if isinstance(content, list) else [_value(row, "content", str, where)]:
            blanks = list(_IDIOM.finditer(passage))
            if not blanks and not isinstance(content, list):
                raise DataError(f"{where}: the passage has no #idiom#; get the file again")
            several = bool(candidates) and isinstance(candidates[0], list)
            if several and len(candidates) != len(blanks):
                raise DataError(
                    f"{where}: candidates for {len(candidates)} of {len(blanks)} blanks; get the file again"
                )
            for number, blank in enumerate(blanks):
                of_blank = candidates[number] if several else candidates
                rows.append(
                    {
                        "id": _id_of_blank(row, blank[0], number, len(blanks), len(rows)),
                        "before": _IDIOM.sub("", passage[: blank.start()]),
                        "after": _IDIOM.sub("", passage[blank.end() :]),
                        "candidates": of_blank,
                        "label": _label_of_blank(row, blank[0], number, of_blank, answers, where),
                    }
                )
    return rows


def _id_of_blank(row: Row, blank: str, number: int, blanks: int, count: int) -> Any:
    if blank != "#idiom#":
        return blank
    return row.get("id", count) if blanks == 1 else f"{row.get('id', count - number)}-{number}"


def _label_of_blank(row: Row, blank: str, number: int, candidates: list[str], answers: Row, where: str) -> int | None:
    label = row.get("answer", answers.get(blank))
    if "groundTruth" in row:
        right = [*_texts(row, "groundTruth", where), ""][: number + 1][-1]
        label = candidates.index(right) if right in candidates else -1
    if label is None:
        return None
    if not isinstance(label, int) or not 0 <= label < len(candidates):
        raise DataError(f"{where}: the answer of blank {number + 1} is none of the candidates; get the file again")
    return label


def _answers_of_chid(path: Path) -> Row:
    beside = path.with_name(f"{path.stem}_answer{path.suffix}")
    return _document(beside, dict) if beside.exists() else {}


def cmrc2017(path: Path) -> list[Row]:
    """CMRC2017: cloze.valid.doc_query, with the answers in cloze.valid.answer beside it. See `cloze`."""
    beside = path.with_suffix(".answer")
    answers = {}
    if beside.exists():
        for where, line in _lines(beside):
            name, _, answer = line.partition(_SEPARATOR)
            if not answer:
                raise DataError(f"{where}: must be <qid_N> ||| answer; get the file again")
            answers[name.strip()] = answer.strip()
    return _stories(path, answers)


def cloze(path: Path) -> list[Row]:
    """PD and CFT: lines "number ||| sentence"; that which ends a story is "number ||| query ||| answer".

    Fields: id, `story` (all sentences), `rest` (the sentences without the query), `before` and `after` (the query,
    cut where the word is missing), and `answer`. Spaces between Chinese words are removed.
    """
    return _stories(path, {})


def _stories(path: Path, answers: dict[str, str]) -> list[Row]:
    rows: list[Row] = []
    sentences: list[str] = []
    without = 0
    for where, line in _lines(path):
        number, *parts = (part.strip() for part in line.split(_SEPARATOR.strip()))
        if len(parts) not in (1, 2) or not number:
            raise DataError(f"{where}: must be number ||| sentence [||| answer]; get the file again")
        if len(parts) == 1 and not number.startswith("<qid"):
            sentences.append(parts[0])
            continue
        name = number if number.startswith("<qid") else len(rows) + without
        answer = parts[1] if len(parts) == 2 else answers.get(number)
        if parts[0].count(BLANK) == 1:
            rows.append({"id": name} | _cloze_fields(sentences, parts[0], answer))
        else:
            without += 1
        sentences = []
    if sentences:
        raise DataError(f"{path}: the last story has no query; the file is cut off; get it again")
    if without:
        _log.warning("%s: %d queries have no %s, or several; they are left out", path, without, BLANK)
    return rows


def _cloze_fields(sentences: list[str], query: str, answer: str | None) -> Row:
    before, after = (joined_words(part) for part in query.split(BLANK))
    return {
        "story": joined_words(" ".join(sentences)),
        "rest": joined_words(" ".join(sentence for sentence in sentences if BLANK not in sentence)),
        "before": before,
        "after": after,
        "answer": None if answer is None else joined_words(answer),
    }


def joined_words(text: str) -> str:
    """A text without the spaces that separate Chinese words; those between Latin words and numbers stay."""
    return _BETWEEN_WORDS.sub("", text.strip())


def cmrc2019(path: Path, left_chars: int = 300, right_chars: int = 200) -> list[Row]:
    """CMRC2019: id, context, `choices`, `answers` (for each blank the index of a choice), and `blanks`: so many
    characters to the `left` and to the `right` of each, with the other blanks deleted."""
    rows = []
    for number, entry in enumerate(_value(_document(path, dict), "data", list, str(path))):
        where = f"{path}: data[{number}]"
        context = _value(_object(entry, where), "context", str, where)
        choices, answers = _value(entry, "choices", list, where), entry.get("answers") or None
        found = list(_NUMBERED_BLANK.finditer(context))
        if answers is not None and len(answers) != len(found):
            raise DataError(f"{where}: {len(answers)} answers for {len(found)} blanks; get the file again")
        blanks = []
        for blank in found:
            left, right = (_NUMBERED_BLANK.sub("", part) for part in (context[: blank.start()], context[blank.end() :]))
            blanks.append({"left": left[max(0, len(left) - left_chars) :], "right": right[:right_chars]})
        name = entry.get("context_id", number)
        rows.append({"id": name, "context": context, "choices": choices, "blanks": blanks, "answers": answers})
    return rows


def wplc(path: Path) -> list[Row]:
    """Chinese WPLC: `context`, and `word`, which is the last one: lines or an array of objects with masked_text, whose
    last word is <mask>, and correct_word."""
    rows = []
    for where, row in _objects(path):
        text = _value(row, "masked_text", str, where)
        before, mask, after = text.partition("<mask>")
        if not mask or after.strip():
            raise DataError(f"{where}: masked_text must end with <mask>; get the file again")
        rows.append({"id": row.get("id"), "context": before, "word": row.get("correct_word")})
    return rows


READERS: dict[str, Callable[..., list[Row]]] = {
    "c3": c3,
    "chid": chid,
    "cloze": cloze,
    "clue": clue,
    "cluewsc": cluewsc,
    "cmrc2017": cmrc2017,
    "cmrc2019": cmrc2019,
    "dureader": dureader,
    "needle": needle,
    "squad": squad,
    "webqa": webqa,
    "wplc": wplc,
}
"""All readers, by the names that task files call them by; each takes a path, and the options of the task file."""


# --- files ------------------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of each line of a text file that has more than white space."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.removeprefix(json_texts.BOM).decode().strip()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8; convert the file, or get it"
                        " again"
                    ) from None
                if text:
                    yield f"{path}:{number}", text
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file that can be read") from None


def _objects(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, object) of a file of JSON lines, or of a JSON array of objects."""
    try:
        with open(path, "rb") as file:
            first = file.read(64).removeprefix(json_texts.BOM).lstrip()[:1]
            file.seek(0)
            if first == b"[":
                for number, value in enumerate(_document(path, list)):
                    yield f"{path}: entry {number}", _object(value, f"{path}: entry {number}")
                return
            for number, line in enumerate(file, 1):
                if line.removeprefix(json_texts.BOM).strip():
                    where = f"{path}:{number}"
                    try:
                        yield where, _object(json_texts.parse(line.rstrip()), where)
                    except DataError:
                        raise
                    except ValueError as error:
                        cut = "" if line.endswith(b"\n") else "; the file seems to be cut off there"
                        raise DataError(f"{where}: {error}{cut}; each line must be an object; get it again") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file that can be read") from None


def _document(path: Path, kind: type | tuple[type, ...]) -> Any:
    """The JSON value of a whole file."""
    try:
        tree = json_texts.parse(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file that can be read") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; the file may be cut off; get it again") from None
    if not isinstance(tree, kind):
        raise DataError(
            f"{path}: found {type(tree).__name__}; the published file is another; see where it is published"
        )
    return tree


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: found {type(value).__name__}; must be an object; get the file again")
    return value


_NONE = object()


def _value(row: Row, key: str, kind: type, where: str, default: Any = _NONE) -> Any:
    """A value of an object that must have this type."""
    found = row.get(key, default)
    if found is _NONE:
        raise DataError(f"{where}: no {key}; there are {', '.join(row) or 'no keys'}; is it a file of this benchmark?")
    if not isinstance(found, kind) or isinstance(found, bool):
        raise DataError(f"{where}: {key} is {str(found)[:40]!r}; must be {_CALLED[kind]}; get the file again")
    return found


def _texts(row: Row, key: str, where: str) -> list[str]:
    """A list of texts; an empty one if it is missing."""
    found = _value(row, key, list, where, [])
    if not all(isinstance(text, str) for text in found):
        raise DataError(f"{where}: {key} holds {str(found)[:40]}; must be texts; get the file again")
    return found


_CALLED = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}
