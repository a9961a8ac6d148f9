"""Tasks and encoders are known by name in their registries alone; elsewhere, code asks these."""

import ast
from pathlib import Path

import pytest

from ssl3d import tasks
from ssl3d.models import encoders

NAMES = {*tasks.TASKS, *encoders.KINDS}
SEARCHED = ("ssl3d", "configs", "experiments")


def constants(node):
    """The strings that a comparison's side holds: one, or those of a tuple, list or set."""
    elements = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else [node]
    return {element.value for element in elements if isinstance(element, ast.Constant)}


def is_name(node):
    """Whether an expression ends in `task.name` or `encoder.kind`."""
    text = ast.unparse(node)
    return text.endswith(("task.name", "encoder.kind"))


def decisions_by_name(code):
    """Line numbers at which a program decides by the name of a task or an encoder."""
    lines = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = any(constants(side) & NAMES for side in sides)
            looked_up = isinstance(node.ops[0], (ast.In, ast.NotIn)) and is_name(node.left)
            found = named or looked_up or any(is_name(side) for side in sides)
        elif isinstance(node, ast.Subscript):
            found = is_name(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found = node.func.attr in ("get", "startswith", "endswith") and (
                any(is_name(argument) for argument in node.args) or is_name(node.func.value)
            )
        elif isinstance(node, ast.MatchValue):
            found = bool(constants(node.value) & NAMES)
        else:
            continue
        if found:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    "code",
    [
        "if config.task.name == 'rpl': pass",
        "x = name in ('unet', 'resunet')",
        "x = 1 if 'segmentation' != name else 2",
        "x = {'cpc': 1}.get(config.task.name, 2)",
        "x = steps[config.task.name]",
        "x = config.task.name in PATCH_TASKS",
        "if config.encoder.kind != other: pass",
        "x = config.task.name.startswith('c')",
        "match name:\n    case 'jigsaw': pass",
    ],
)
def test_decisions_by_name_are_found(code):
    assert decisions_by_name(code)


def test_other_uses_of_names_are_not(request):
    assert not decisions_by_name("config.task.name = 'rpl'; print(task.name); x = kind == 'group'")


@pytest.mark.parametrize("folder", SEARCHED)
def test_no_name_is_compared_outside_the_registries(request, folder):
    files = sorted((request.config.rootpath / folder).rglob("*.py"))
    assert files
    found = [
        f"{file.relative_to(request.config.rootpath)}:{line}"
        for file in map(Path, files)
        for line in decisions_by_name(file.read_text())
    ]
    assert not found
