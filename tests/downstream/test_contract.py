import inspect
import sys

import pytest

from ssl3d import evaluate, tasks
from ssl3d.downstream import contract
from ssl3d.errors import UserError

FUNCTIONS = {
    name: inspect.signature(member)
    for name, member in inspect.getmembers(contract.Downstream, inspect.isfunction)
    if not name.startswith("_")
}


@pytest.mark.parametrize("name", ["segment3d", "classify2d"])
def test_the_shipped_tasks_define_everything_with_the_same_parameters(tiny, name):
    module = contract.module_of(tiny(name))
    assert isinstance(module.WITHOUT_NETWORK, str)
    assert set(FUNCTIONS) == {"choose_truth", "evaluate", "headline", "write_predictions", "probe"}
    for function, signature in FUNCTIONS.items():
        parameters = list(inspect.signature(getattr(module, function)).parameters)
        assert parameters == list(signature.parameters)[1:]  # without self


def test_a_proxy_task_has_nothing_to_evaluate(tiny):
    with pytest.raises(UserError, match="rpl has no labels to predict; choose a downstream task"):
        contract.module_of(tiny("rpl3d"))


def test_a_task_outside_the_repository_brings_its_own_module(
    save_model, pictures, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "our_grades"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "grading.py").write_text(
        "from ssl3d.tasks.classification import NEEDS, build\nDOWNSTREAM = 'our_grades.grades'\n"
    )
    (folder / "grades.py").write_text(
        "from ssl3d.downstream.classification import *\n"
        "def headline(summary):\n"
        "    return 'kappa {value:.3f}, my own line'.format(**summary['scores']['kappa'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = save_model(tmp_path / "run", pictures, "classify2d", task__name="our_grades.grading")
    evaluate.main([f"--workdir={run}", "--no-pictures"])
    assert capsys.readouterr().out.endswith(", my own line\n")
    assert tasks.TASKS.keys().isdisjoint(["our_grades.grading"])
    for name in [name for name in sys.modules if name.startswith("our_grades")]:
        monkeypatch.delitem(sys.modules, name)
