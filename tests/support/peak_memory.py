"""Prints the peak memory, in bytes, of the preparation of ct.nii.gz in a folder by a recipe."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from ssl3d.data.layouts.listing import SourceCase
from ssl3d.data.preparation.case import PreparationSettings, prepare_case
from ssl3d.data.preparation.recipes import RECIPES

if __name__ == "__main__":
    folder, recipe = Path(sys.argv[1]), RECIPES[sys.argv[2]]
    case = SourceCase("ct", "ct", ((folder / "ct.nii.gz",),), folder / "label.nii.gz")
    settings = PreparationSettings(folder, folder / "out", recipe, ("CT",), {0: 0, 1: 1}, 2)
    settings.output.mkdir(exist_ok=True)
    prepare_case(case, settings)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
