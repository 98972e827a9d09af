"""Made items in the form of each published file: `make(lot, number)` makes (items, what is right), and `write(path,
items, golds)` the file. Texts are random characters, so that each occurs once."""

import json
from collections.abc import Callable
from dataclasses import dataclass


def chars(lot, number):
    return "".join(chr(0x4E00 + lot.randrange(400)) for _ in range(number))


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path, tree):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")


@dataclass(frozen=True)
class Form:
    """A published form.

    Attributes:
        file: its name below the directory of the data.
        make: the items and what is right.
        write: the file.
        chance: score of a guess.
    """

    file: str
    make: Callable
    write: Callable
    chance: float = 0.0


def labelled(names, labels):
    """Rows of texts with one of some labels."""

    def make(lot, number):
        return [{name: chars(lot, 12) for name in names} for _ in range(number)], [
            labels[i % len(labels)] for i in range(number)
        ]

    def write(path, items, golds):
        write_lines(path, [{"id": i, **item, "label": gold} for i, (item, gold) in enumerate(zip(items, golds))])

    return make, write


def make_csl(lot, number):
    return [{"abst": chars(lot, 20), "keyword": [chars(lot, 3) for _ in range(3)]} for _ in range(number)], [
        str(i % 2) for i in range(number)
    ]


def make_wsc(lot, number):
    items = []
    for _ in range(number):
        noun, pronoun, before, after = chars(lot, 2), "他", chars(lot, 8), chars(lot, 10)
        text = before + noun + "，" + before[:3] + pronoun + after
        target = {"span1_index": 8, "span1_text": noun, "span2_index": 14, "span2_text": pronoun}
        items.append({"target": target, "text": text})
    return items, [("true", "false")[i % 2] for i in range(number)]


def write_wsc(path, items, golds):
    write_lines(path, [item | {"idx": i, "label": gold} for i, (item, gold) in enumerate(zip(items, golds))])


def make_chid(lot, number):
    items = []
    for _ in range(number):
        content = f"{chars(lot, 10)}#idiom#{chars(lot, 10)}"
        items.append({"candidates": [chars(lot, 4) for _ in range(7)], "content": content})
    return items, [i % 7 for i in range(number)]


def write_chid(path, items, golds):
    write_lines(path, [item | {"id": i, "answer": gold} for i, (item, gold) in enumerate(zip(items, golds))])


def make_c3(lot, number):
    items = []
    for _ in range(number):
        question = {"question": chars(lot, 8) + "？", "choice": [chars(lot, 4) for _ in range(4)]}
        items.append(([chars(lot, 15), chars(lot, 5)], question))
    return items, [i % 4 for i in range(number)]


def write_c3(path, items, golds):
    entries = []
    for i, ((lines, question), gold) in enumerate(zip(items, golds)):
        entries.append([lines, [question | {"answer": question["choice"][gold]}], f"11-{i}"])
    write_json(path, entries)


BLANKS = 4


def make_cmrc2019(lot, number):
    items, golds = [], []
    for i in range(number):
        context = "".join(f"{chars(lot, 8)}，[BLANK{n}]。" for n in range(1, BLANKS + 1))
        items.append({"context": context, "choices": [chars(lot, 5) for _ in range(BLANKS + 1)], "context_id": f"C{i}"})
        golds.append(lot.sample(range(BLANKS + 1), BLANKS))
    return items, golds


def write_cmrc2019(path, items, golds):
    write_json(path, {"data": [item | {"answers": gold} for item, gold in zip(items, golds)]})


def make_squad(lot, number):
    return [(chars(lot, 30), chars(lot, 14) + "？") for _ in range(number)], [chars(lot, 4) for _ in range(number)]


def write_squad(path, items, golds):
    paragraphs = []
    for i, ((context, question), gold) in enumerate(zip(items, golds)):
        answers = [{"text": gold, "answer_start": 0}, {"text": gold, "answer_start": 0}]
        questions = [{"id": f"DEV_{i}", "question": question, "answers": answers}]
        paragraphs.append({"id": f"DEV_{i}", "context": context, "qas": questions})
    write_json(path, {"version": "v1.0", "data": [{"title": "", "paragraphs": paragraphs}]})


def write_webqa(path, items, golds):
    tree = {}
    for i, ((context, question), gold) in enumerate(zip(items, golds)):
        evidences = {f"Q{i}#0": {"answer": ["no_answer"], "evidence": context[::-1]}}
        evidences[f"Q{i}#1"] = {"answer": [gold], "evidence": context}
        tree[f"Q{i}"] = {"question": question, "evidences": evidences}
    write_json(path, tree)


def write_dureader(path, items, golds):
    rows = []
    for i, ((context, question), gold) in enumerate(zip(items, golds)):
        documents = [
            {"paragraphs": ["other"], "title": "", "is_selected": False},
            {"paragraphs": [context, "more"], "title": "", "is_selected": True},
        ]
        rows.append({"question_id": i, "question": question, "documents": documents, "answers": [gold]})
    write_lines(path, rows)


def make_cloze(lot, number):
    items = []
    for _ in range(number):
        sentences = [" ".join([chars(lot, 2), chars(lot, 3), "。"]) for _ in range(3)]
        items.append((sentences, f"{chars(lot, 8)} {chars(lot, 8)} XXXXX {chars(lot, 4)} 。"))
    return items, [chars(lot, 2) for _ in range(number)]


def write_cloze(path, items, golds):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for (sentences, query), gold in zip(items, golds):
        lines += [f"{number} ||| {sentence}" for number, sentence in enumerate([*sentences, query], 1)]
        lines.append(f"{len(sentences) + 2} ||| {query} ||| {gold}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_cmrc2017(path, items, golds):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines, answers = [], []
    for i, ((sentences, query), gold) in enumerate(zip(items, golds)):
        lines += [f"{number} ||| {sentence}" for number, sentence in enumerate([*sentences, query], 1)]
        lines.append(f"<qid_{i}> ||| {query}")
        answers.append(f"<qid_{i}> ||| {gold}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    path.with_suffix(".answer").write_text("\n".join(answers) + "\n", encoding="utf-8")


def make_wplc(lot, number):
    return [chars(lot, 30) for _ in range(number)], [chars(lot, 2) for _ in range(number)]


def write_wplc(path, items, golds):
    write_lines(path, [{"masked_text": item + "<mask>", "correct_word": gold} for item, gold in zip(items, golds)])


TNEWS = [str(100 + i) for i in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16)]
FORMS = {
    "tnews": Form("tnews/dev.json", *labelled(["sentence"], TNEWS), 1 / 4),
    "iflytek": Form("iflytek/dev.json", *labelled(["sentence"], [str(i) for i in range(119)]), 1 / 4),
    "ocnli": Form(
        "ocnli/dev.json", *labelled(["sentence1", "sentence2"], ["entailment", "neutral", "contradiction"]), 1 / 3
    ),
    "afqmc": Form("afqmc/dev.json", *labelled(["sentence1", "sentence2"], ["0", "1"]), 1 / 2),
    "eprstmt": Form("fewclue/eprstmt/dev_0.json", *labelled(["sentence"], ["Negative", "Positive"]), 1 / 2),
    "csl": Form("csl/dev.json", make_csl, labelled([], [])[1], 1 / 2),
    "cluewsc": Form("cluewsc/dev.json", make_wsc, write_wsc, 1 / 2),
    "chid@fewclue": Form("fewclue/chid/dev_0.json", make_chid, write_chid, 1 / 7),
    "c3": Form("c3/c3-d-dev.json", make_c3, write_c3, 1 / 4),
    "cmrc2019": Form("cmrc2019/cmrc2019_dev.json", make_cmrc2019, write_cmrc2019, 1 / (BLANKS + 1)),
    "cmrc2018": Form("cmrc2018/cmrc2018_dev.json", make_squad, write_squad),
    "webqa": Form("webqa/me_test.ann.json", make_squad, write_webqa),
    "dureader": Form("dureader/zhidao.dev.json", make_squad, write_dureader),
    "cft": Form("cft/cft.test.auto", make_cloze, write_cloze),
    "cmrc2017": Form("cmrc2017/cloze.test.doc_query", make_cloze, write_cmrc2017),
    "wplc": Form("wplc/test.json", make_wplc, write_wplc),
}
"""By the name of a task that reads it."""
