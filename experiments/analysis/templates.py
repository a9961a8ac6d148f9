"""Pages and sentences from the jinja2 templates of this folder."""

from pathlib import Path
from typing import Any

import jinja2

from ssl3d.data import store
from ssl3d.experiments.analysis.findings import LEAST_KAPPA, LEAST_SCORE, LITTLE, PLATEAU, in_words
from ssl3d.experiments.engine.study import DOUBLES, METHODS

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=lambda name: str(name).endswith(".html.j2"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["labels"] = in_words
_TEMPLATES.globals |= {"DOUBLES": DOUBLES, "METHODS": METHODS}
_TEMPLATES.globals |= {"PLATEAU": PLATEAU, "SPLITS": store.SPLITS}
_TEMPLATES.globals |= {"LEAST_SCORE": LEAST_SCORE, "LEAST_KAPPA": LEAST_KAPPA, "LITTLE": LITTLE}


def render(name: str, **values: Any) -> str:
    """The text of the template NAME.j2."""
    return _TEMPLATES.get_template(f"{name}.j2").render(values)


def sentences(name: str, *values: Any) -> list[str]:
    """The sentences of a macro of words.j2, which are separated by blank lines."""
    text = getattr(_TEMPLATES.get_template("words.j2").module, name)(*values)
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
