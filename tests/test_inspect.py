import pytest

from ssl3d import inspect


def test_as_typed(tiny_options, pictures, as_typed, tmp_path):
    file = tmp_path / "new" / "shown.png"
    options = tiny_options("rotation2d", pictures.path)
    done = as_typed("ssl3d.inspect", *options, f"--output={file}", "--cases=1")
    assert (done.returncode, done.stderr) == (0, "")
    *notes, last = done.stdout.splitlines()
    assert last == str(file)
    assert [note for note in notes if not note.startswith("axes differ in sharpness")] == []
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--cases=0", "--cases=0: must be 1 or more"),
        ("--split=tset", "invalid choice: 'tset'"),
        ("--split=unlabelled", "no cases in the split unlabelled"),
        ("--output=.", "--output=.: is a folder; give a file, --output=FILE.png"),
        ("--output=/dev/null/x/y.png", "/dev/null/x: Not a directory; fix this and run again"),
    ],
)
def test_errors_are_one_line(call_command, tiny_options, pictures, option, message):
    arguments = tiny_options("rotation2d", pictures.path)
    status, _, err = call_command(inspect.main, *arguments, option)
    assert status == 2
    assert err.count("\n") == 1
    assert message in err
