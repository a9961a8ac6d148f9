from ssl3d import evaluate


def test_an_error_of_the_command_is_one_line(call_command, tmp_path):
    status, _, err = call_command(evaluate.main, f"--workdir={tmp_path}")
    assert status == 2
    assert err.count("\n") == 1


def test_help(call_command):
    status, out, _ = call_command(evaluate.main, "--help")
    assert status == 0
    assert "--workdir=DIR" in out
