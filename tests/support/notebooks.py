"""Notebooks as scripts: their code cells in order, with `!` lines as commands of the shell."""

import json


def as_script(file, torch):
    """The cells with the tag "torch", or those without it.

    The two halves of a notebook may run in environments of their own, as files are all they share.
    """
    cells = json.loads(file.read_text())["cells"]
    chosen = [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and torch == ("torch" in cell["metadata"].get("tags", ()))
    ]
    lines = [
        f"subprocess.run({line[1:]!r}, shell=True, check=True)" if line.startswith("!") else line
        for cell in chosen
        for line in cell.splitlines()
    ]
    return "\n".join(["import subprocess", *lines, ""])
