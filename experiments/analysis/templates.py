"""Pages and sentences from the jinja2 templates of this folder."""

import functools
from pathlib import Path
from typing import Any

import jinja2

from experiments.analysis.findings import PLATEAU
from experiments.engine.study import DOUBLES
from ssl3d.data import store


def render(name: str, **values: Any) -> str:
    """The text of the template NAME.j2."""
    return _template(name).render(values)


def sentences(name: str, *values: Any) -> list[str]:
    """The sentences of a macro of words.j2, which are separated by blank lines."""
    text = getattr(_template("words").module, name)(*values)
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


@functools.cache
def _template(name: str) -> jinja2.Template:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals |= {"DOUBLES": DOUBLES, "PLATEAU": PLATEAU, "SPLITS": store.SPLITS}
    return templates.get_template(f"{name}.j2")
