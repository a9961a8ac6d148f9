import gzip

from ssl3d import predict
from tests.support import source_files as files


def test_the_command_ends_with_status_2_and_one_line(save_model, as_typed, tmp_path):
    source = files.write_msd(tmp_path / "source")
    workdir = save_model(tmp_path / "run", files.prepared(source, tmp_path / "data", "msd"))
    place = tmp_path / "in"
    place.mkdir()
    (place / "scan.nii.gz").write_bytes(gzip.compress(b"no scan"))
    arguments = [f"--workdir={workdir}", f"--input={place}", f"--output={tmp_path / 'out'}"]
    result = as_typed("ssl3d.predict", *arguments)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("\r")]
    assert line.startswith(f"error: {place / 'scan.nii.gz'}: not a NIfTI file")


def test_a_missing_option_is_named(call_command):
    status, _, err = call_command(predict.main)
    assert status == 2
    assert "--workdir" in err
