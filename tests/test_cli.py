import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ssl3d import bounds, cli, plan, verify
from ssl3d.configs import rpl3d
from ssl3d.errors import RunError, UserError
from ssl3d.experiments import equal_cost

CONFIG = "--config=configs/rpl3d.py"


@pytest.fixture
def parse(in_repository):
    def function(*arguments):
        parser = cli.Parser(prog="python -m ssl3d.main")
        parser.add_argument("--workdir")
        return cli.parse_with_config(parser, arguments)

    return function


def test_options_and_config_are_told_apart(parse):
    options, config = parse("--workdir=here", CONFIG, "--config.steps=7", "--config.task.jitter=2")
    assert options.workdir == "here"
    assert config.steps == 7
    assert config.task.jitter == 2
    assert config.data.preset == "phantom"
    assert config.name == "rpl3d_phantom"


def test_data_set_and_variant_follow_the_colon(parse):
    _, config = parse(f"{CONFIG}:hippocampus,paper")
    assert config.data.preset == "hippocampus"
    assert config.task.queries == 1
    assert config.name == "rpl3d_hippocampus_paper"


def test_a_shipped_config_goes_by_its_name(parse, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert parse("--config=rpl3d")[1].name == "rpl3d_phantom"
    assert parse("--config=rpl3d:hippocampus,paper")[1].name == "rpl3d_hippocampus_paper"
    (tmp_path / "mine.py").write_text("from ssl3d.configs.rpl3d import get_config\n")
    assert parse("--config=mine.py:ukb")[1].name == "rpl3d_ukb"
    with pytest.raises(UserError, match=r"no shipped config 'mine'; choose --config=mine\.py$"):
        parse("--config=mine")
    assert set(cli.shipped_configs()) >= {"rpl3d", "joint2d", "segment3d", "classify2d"}
    assert not {"default", "datasets"} & set(cli.shipped_configs())


def test_values_are_of_the_keys_type(parse):
    _, config = parse(
        CONFIG,
        "--config.data.crop=(24, 20, 16)",
        "--config.optimizer.learning_rate=1",
        "--config.head.batch_norm=true",
        "--config.data.path=a folder=with signs",
    )
    assert config.data.crop == (24, 20, 16)
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.head.batch_norm is True
    assert config.data.path == "a folder=with signs"


def test_of_two_values_for_a_key_the_last_counts(parse):
    crops = ["--config.data.crop=(8, 8, 8)", "--config.data.crop=(9, 9, 9)"]
    assert parse(CONFIG, *crops, "--config.steps=3", "--config.steps=4")[1].data.crop == (9, 9, 9)


def test_an_automatic_batch_is_the_presets_until_the_devices_are_known(parse, capsys):
    _, config = parse(CONFIG, "--config.batch_size=auto")
    assert config.batch_size == rpl3d.get_config().batch_size
    for copy in (config, config.copy_and_resolve_references(), pickle.loads(pickle.dumps(config))):
        assert bounds.is_automatic(copy, "batch_size")
    _, config = parse(CONFIG, "--config.batch_size=auto", "--config.batch_size=3")
    assert config.batch_size == 3
    assert not bounds.is_automatic(config, "batch_size")
    with pytest.raises(SystemExit):
        parse(CONFIG, "--config.batch_size=auto", "--print_config")
    assert "batch_size = 8  # or the next multiple of the devices" in capsys.readouterr().out
    with pytest.raises(UserError, match="steps=auto"):
        parse(CONFIG, "--config.steps=auto")


def test_what_is_parsed_is_the_arguments_and_not_the_command_line(parse, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", CONFIG, "--config.steps=5"])
    assert parse(CONFIG, "--config.steps=9")[1].steps == 9
    assert parse(CONFIG)[1].steps != 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CONFIG, "--config.stepz=5"], r"--config\.stepz: no such key; .*--config\.steps$"),
        ([CONFIG, "--config.optimizer.learning_rte=1"], r"--config\.optimizer\.learning_rate$"),
        ([CONFIG, "--config.crop=(1,)"], r"no such key; .*--config\.data\.crop$"),
        ([CONFIG, "--config.task={}"], r"--config\.task: no such key"),
        ([CONFIG, "--config.steps=many"], r"--config\.steps=many: "),
        ([CONFIG, "--config.steps=2.5"], r"--config\.steps=2\.5: "),
        ([CONFIG, "--config.data.crop=(1,"], r"--config\.data\.crop=\(1,: "),
        ([CONFIG, "--config.head.batch_norm=perhaps"], r"--config\.head\.batch_norm=perhaps: "),
        ([CONFIG, "--config.steps"], r"--config\.steps: write --config\.KEY=VALUE"),
        ([CONFIG, "--workdri=x"], r"--workdri=x; the nearest is --workdir \(see .*main --help\)"),
        (["--confg=x"], r"--confg=x; the nearest is --config "),
        ([CONFIG, "--xyz"], r"unrecognized argument --xyz \(see"),
        ([CONFIG, "--work=x"], r"--work=x"),  # options are not abbreviated
        ([CONFIG, "somewhere"], r"somewhere"),
        ([], r"give one --config=FILE"),
        ([CONFIG, CONFIG], r"give one --config=FILE"),
        (["--config=configs/rpl4d.py"], r"no file 'configs/rpl4d\.py'; choose --config=rpl3d or "),
        (["--config=/nowhere.py"], r"no file '/nowhere\.py'; choose --config=classify2d or "),
        (["--config=rlp3d:brats"], r"no shipped config 'rlp3d'; choose --config=rpl3d or rpl2d"),
        (["--config=default"], r"no shipped config 'default'"),
        (["--config="], r"no shipped config ''"),
        ([f"{CONFIG}:brain"], r"no such data set; choose phantom, .*brats"),
        ([f"{CONFIG}:phantom,papr"], r"variant 'papr'; choose paper or original"),
    ],
)
def test_mistakes_are_named_in_one_line(parse, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "arguments", "nearest"),
    [
        (plan, [CONFIG, "--tarket=cpu:8"], "--tarket=cpu:8; the nearest is --target "),
        (verify, ["--hepl"], "--hepl; the nearest is --help "),
        (equal_cost, ["--dada=x", "--output=y"], "--dada=x; the nearest is --data "),
        (equal_cost, ["--dada", "x"], "--dada; the nearest is --data "),
    ],
)
def test_a_misspelt_option_is_named_before_a_missing_one(module, arguments, nearest):
    with pytest.raises(UserError, match=f"unrecognized argument {nearest}"):
        module.main(arguments)


@pytest.mark.parametrize(
    "text",
    ["def get_config(:\n", "import no_such_module\n", "x = 1\n"],
    ids=["syntax", "import", "no get_config"],
)
def test_a_config_file_that_is_no_config_is_named(parse, tmp_path, monkeypatch, text):
    # ml_collections loads every file into the same module, which keeps what an earlier one had.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=r"mine\.py"):
        parse(f"--config={file}")


def test_a_config_of_ones_own_may_lie_anywhere(parse, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ssl3d.configs import rpl3d\n\n\n"
        "def get_config(arg='phantom'):\n"
        "    config = rpl3d.get_config(arg)\n"
        "    config.steps = 11\n"
        "    return config\n"
    )
    assert parse(f"--config={file}")[1].steps == 11


COUSIN = """
from ssl3d.configs import rpl3d
from neighbour import STEPS


def get_config(arg="phantom"):
    config = rpl3d.get_config(arg)
    config.steps = STEPS
    return config
"""


def as_typed_in(folder, *arguments):
    """`python -m ssl3d.main ARGUMENT...` called from `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "ssl3d.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )


def test_the_checkouts_configs_are_the_packages_own(in_repository):
    code = "import configs, ssl3d.configs; from configs import datasets as ours; "
    code += "from ssl3d.configs import datasets; assert ours is datasets; "
    code += "assert configs is ssl3d.configs"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("call_from", ["beside", "above"])
def test_a_config_elsewhere_imports_ours_and_its_neighbours(tmp_path, call_from):
    folder = tmp_path / "configs"  # as the repository's own
    folder.mkdir()
    (folder / "mine.py").write_text(COUSIN)
    (folder / "neighbour.py").write_text("STEPS = 13\n")
    at = folder if call_from == "beside" else tmp_path
    done = as_typed_in(at, f"--config={folder / 'mine.py'}", "--print_config")
    assert done.stderr == ""
    assert "config.steps = 13\n" in done.stdout


def test_shipped_configs_load_from_any_folder(tmp_path, in_repository):
    file = in_repository / "configs" / "rpl2d.py"
    done = as_typed_in(tmp_path, f"--config={file}", "--print_config")
    assert done.returncode == 0, done.stderr
    assert "config.task.name = 'rpl'\n" in done.stdout


# Printing the config.


@pytest.mark.parametrize("module", ["ssl3d.main", "ssl3d.inspect", "ssl3d.probe"])
def test_print_config_as_typed(as_typed, module):
    done = as_typed(
        module,
        CONFIG,
        "--config.steps=7",
        "--config.batch_size=8",
        "--config.data.crop=(48, 48, 40)",
        "--config.encoder.norm=batch",
        "--print_config",
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "config.steps = 7  # overridden, was 200" in lines
    assert "config.data.crop = (48, 48, 40)  # overridden, was (54, 54, 54)" in lines
    assert "config.encoder.norm = 'batch'  # overridden, was 'group'" in lines
    assert "config.batch_size = 8" in lines  # its value all the same
    assert sum("overridden" in line for line in lines) == 3
    keys = [line.partition(" = ")[0].removeprefix("config.") for line in lines]
    assert keys == sorted(keys)
    assert keys == sorted(flat_keys(rpl3d.get_config().to_dict()))


def flat_keys(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize("module", ["ssl3d.main", "ssl3d.inspect", "ssl3d.probe"])
def test_print_config_needs_neither_jax_nor_data(as_typed, monkeypatch, module):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    done = as_typed(module, f"{CONFIG}:brats", "--print_config")
    assert done.returncode == 0
    assert "config.data.path = ''\n" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "ssl3d.cli" in imported
    assert "jax" not in imported


def test_print_config_refuses_unknown_keys(as_typed):
    done = as_typed("ssl3d.main", CONFIG, "--config.stepz=7", "--print_config")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "the nearest is --config.steps" in done.stderr


# Exit status and messages.


def status(main, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ssl3d", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code


def failing(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(("returned", "expected"), [(None, 0), (0, 0), (1, 1)])
def test_status_is_what_the_command_returns(monkeypatch, capsys, returned, expected):
    assert status(lambda arguments: returned, monkeypatch) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "expected"),
    [(UserError("file.nii:\n  not an image"), 2), (RunError("file.nii: not an image"), 1)],
)
def test_errors_are_one_plain_line_on_stderr(monkeypatch, capsys, error, expected):
    assert status(failing(error), monkeypatch) == expected
    captured = capsys.readouterr()
    assert captured.err == "error: file.nii: not an image\n"
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "place", "expected"),
    [
        (FileNotFoundError(2, "No such file", "a/b"), "out", "a/b: No such file"),
        (OSError(28, "No space left on device"), "out", "out: No space left on device"),
        (OSError(28, "No space left on device"), "", "No space left on device"),
        # NumPy's, which is no error of the system.
        (
            OSError("9 requested and 0 written"),
            "out",
            "out: 9 requested and 0 written, is the disk",
        ),
    ],
)
def test_errors_of_the_disk_name_the_file_or_the_place(error, place, expected):
    with pytest.raises(UserError) as caught, cli.disk_errors(place):
        raise error
    assert str(caught.value).startswith(expected)
    assert str(caught.value).endswith("; fix this and run again")


def test_errors_of_the_disk_are_usage_errors(monkeypatch, capsys):
    error = PermissionError(13, "Permission denied", "runs/x")
    assert status(failing(error), monkeypatch) == 2
    line = "error: runs/x: Permission denied; fix this and run again\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("letters", [1, 1_000_000])
def test_a_reader_that_leaves_early_is_no_error(letters):
    """As in `--print_config | head`: short output fails at the end, long output at once."""
    code = f"from ssl3d import cli; cli.run(lambda arguments: print('x' * {letters}))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_control_c_is_no_traceback(monkeypatch, capsys):
    assert status(failing(KeyboardInterrupt()), monkeypatch) == 1
    assert capsys.readouterr().err == "interrupted\n"


def test_the_arguments_reach_the_command(monkeypatch):
    seen = []
    assert status(seen.extend, monkeypatch, "--a", "b") == 0
    assert seen == ["--a", "b"]


def test_help_is_no_error(monkeypatch, capsys, in_repository):
    def main(arguments):
        parser = cli.Parser(prog="it", description="What it does.", epilog=cli.CONFIG_HELP)
        cli.parse_with_config(parser, arguments)

    assert status(main, monkeypatch, "--help") == 0
    captured = capsys.readouterr().out
    assert "What it does." in captured
    assert "--config.KEY=VALUE" in captured
    # In the checkout and where the package is installed.
    file = Path(captured.splitlines()[-1])
    assert "learning_rate" in file.read_text()


# Places.


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_tilde_is_the_home_folder_in_every_key_that_names_a_place(parse, home):
    file = home / "mine.py"
    file.write_text(
        "from ssl3d.configs import segment3d\n"
        "def get_config(arg='phantom'):\n"
        "    config = segment3d.get_config(arg)\n    config.init.encoder = '~/run'\n"
        "    return config\n"
    )
    _, config = parse("--config=~/mine.py", "--config.data.path=~/data/x")
    assert config.data.path == str(home / "data/x")
    assert config.init.encoder == str(home / "run")
    _, config = parse(CONFIG, "--config.probe.data=~/labelled", "--config.data.path=a~b")
    assert config.probe.data == str(home / "labelled")
    assert config.data.path == "a~b"
    assert cli.path("~/x") == home / "x"
    assert cli.path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_every_option_that_names_a_place_expands_a_tilde():
    root = Path(cli.__file__).parents[1]
    sources = [*(root / "ssl3d").rglob("*.py"), *(root / "experiments").rglob("*.py")]
    assert not [file for file in sources if "type=Path" in file.read_text()]
