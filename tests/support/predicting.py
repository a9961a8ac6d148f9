"""The command `ssl3d.predict` in this process, and networks with prescribed predictions."""

import numpy as np

from ssl3d import predict
from ssl3d.downstream import predictor

# Beside the label maps of every segmentation.
TABLES = ("dataset.json", "volumes.csv")


def run(workdir, place, output, *options):
    """Predicts without pictures; the names of all files in the output but the `TABLES`."""
    arguments = [f"--workdir={workdir}", f"--input={place}", f"--output={output}"]
    predict.main([*arguments, "--no-pictures", *options])
    found = (path.relative_to(output).as_posix() for path in output.rglob("*.*"))
    return sorted(name for name in found if name not in TABLES)


def use_thresholds(monkeypatch, *limits):
    """Networks then predict class k where the first channel is between the limits k - 1 and k.

    Prepared intensities have mean 0 and deviation 1, or lie in [-1, 1].
    """
    real = predictor.load

    def load(*arguments):
        def forward(images):
            found = np.searchsorted(limits, images[..., 0])
            return np.eye(len(limits) + 1, dtype=np.float32)[found]

        return real(*arguments)._replace(forward=forward)

    monkeypatch.setattr(predictor, "load", load)
