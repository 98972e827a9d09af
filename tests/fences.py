"""Blocks between the fences of a Markdown file."""


def fenced(text):
    """(number of its first line, language, content) of each block between fences."""
    blocks, lines = [], text.splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
        else:
            language = lines[start].strip("` ")
            blocks.append((start + 2, language, "\n".join(lines[start + 1 : number])))
            start = None
    return blocks
