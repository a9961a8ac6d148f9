import pytest

from ssl3d import export
from ssl3d.errors import UserError
from tests.support import exported


def test_it_says_what_was_written_and_what_comes_next(tmp_path, capsys):
    run = exported.write_encoder(tmp_path / "run", {"kind": "unet", "width": 4, "depth": 2}, 2)
    output = tmp_path / "out"
    export.main([f"--workdir={run}", "--format=torch", f"--output={output}"])
    said = capsys.readouterr().out
    assert f"{output}: encoder of {run}" in said
    assert f"check it: python {output}/encoder.py" in said
    assert sorted(path.name for path in output.iterdir()) == [
        "encoder.json",
        "encoder.py",
        "encoder.safetensors",
        "reference.safetensors",
    ]


def test_the_current_folder_is_filled_if_it_is_empty(tmp_path, monkeypatch):
    run = exported.write_encoder(tmp_path / "run", {"kind": "unet", "width": 4, "depth": 2}, 2)
    output = tmp_path / "out"
    output.mkdir()
    before = output.stat().st_ino
    monkeypatch.chdir(output)
    export.main([f"--workdir={run}", "--format=torch", "--output=."])
    assert output.stat().st_ino == before  # a shell is in it
    assert len(list(output.iterdir())) == 4
    with pytest.raises(UserError, match=r"^\.: already exists; give a new folder"):
        export.main([f"--workdir={run}", "--format=torch", "--output=."])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format=onnx"], "onnx"),
        (["--format=torch", "--upload=lab/encoder"], "are for --format=hub"),
        (["--format=torch", "--workdir=nowhere"], "nowhere"),
    ],
)
def test_a_wrong_call_is_one_line(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        export.main([f"--output={tmp_path / 'out'}", "--workdir=run", *arguments])
