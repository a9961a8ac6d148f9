"""The examples of docs/configs.md, as a reader would run them."""

import re

import pytest

from ssl3d import main
from ssl3d.configs import datasets


@pytest.fixture
def page(request):
    return (request.config.rootpath / "docs" / "configs.md").read_text()


def test_every_preset_is_in_the_table(page):
    rows = dict(re.findall(r"^\| `([a-z]\w*)` \| (.+?) \|", page, re.MULTILINE))
    assert rows == {name: preset.about for name, preset in datasets.PRESETS.items()}


def test_the_printed_config_is_what_the_command_prints(page, as_typed):
    session = re.search(r"^\$ python -m (\S+) (.*)\n((?:.*\n)*?)```", page, re.MULTILINE)
    done = as_typed(session[1], *session[2].split())
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    shown = [line for line in session[3].splitlines() if line != "..."]
    assert shown == [line for line in printed if line in shown]


def test_a_preset_of_ones_own(page, call_command, tmp_path, tiny_options, volumes):
    source = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    file = tmp_path / "my_rpl.py"
    file.write_text(source)
    status, said, error = call_command(main.main, f"--config={file}", "--print_config")
    assert status == 0, error
    for line in (
        "config.name = 'rpl3d_knee'",
        "config.data.crop = (192, 192, 64)",
        "config.data.path = '/projects/knee/prepared'",
        "config.batch_size = 4",
        "config.steps = 20000",
        "config.task.queries = 12",
        "config.task.jitter = 5",  # follows from the crop
    ):
        assert line in said.splitlines()

    _, *overrides = tiny_options("rpl3d", volumes.path)
    arguments = [f"--config={file}", *overrides, f"--workdir={tmp_path / 'run'}"]
    status, said, error = call_command(main.main, *arguments)
    assert status == 0, error
    assert said.splitlines()[-1].startswith("rpl3d_knee: 3 steps")
