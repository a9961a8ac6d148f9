"""Training steps of CPC in 3D against the original's arrangement of the network.

python -m tests.support.cpc_arrangement [ROUNDS]

The original encodes every patch wherever it occurs: for each anchor its context patches, the true
patches that it predicts, and as many false ones. Ours encodes each of the N patches once and
gathers the codes. Loss, recurrence and predictions are the same here, by the preset's settings.
"""

import sys

import jax.numpy as jnp
import numpy as np

from ssl3d import tasks, xla
from ssl3d.configs import cpc3d
from ssl3d.models import heads
from ssl3d.tasks import cpc
from ssl3d.tasks.grid import patch_grid
from tests.support.steps_timed import in_turns, load, step_of

PRESETS = ("phantom", "phantom,original")


class Anew(cpc.Network):
    """`cpc.Network` that encodes contexts, true and false targets of each anchor anew."""

    goals: np.ndarray = None

    def __call__(self, patches, train=False):
        false = np.roll(self.goals, 1, axis=0)  # of the next anchor
        used = np.concatenate([self.terms, self.goals, false], axis=1)
        flat = patches[:, used.reshape(-1)]
        codes = self.code(heads.encode_patches(self.encoder, flat, self.pool, train))
        codes = codes.reshape(*codes.shape[:1], *used.shape, -1)
        count, reach = self.terms.shape[1], self.goals.shape[1]
        sequences = codes[:, :, :count].reshape(-1, count, codes.shape[-1])
        summary = self.recurrence(sequences)[:, -1].reshape(len(patches), len(used), -1)
        predictions = jnp.stack([predict(summary) for predict in self.predictors], axis=2)
        targets = codes[:, :, count : count + reach] + 0 * codes[:, :, count + reach :]
        # As the loss wants them: by patch. Those that nobody predicts stay zero.
        by_patch = jnp.zeros((len(patches), patches.shape[1], codes.shape[-1]), codes.dtype)
        by_patch = by_patch.at[:, self.goals.reshape(-1)].set(
            targets.reshape(len(patches), -1, codes.shape[-1])
        )
        return {"codes": by_patch, "predictions": predictions}


def main(rounds=3):
    xla.keep_memory()
    for preset in PRESETS:
        config = cpc3d.get_config(preset)
        once, own = tasks.build(config), config.task
        grid = patch_grid(config.data.crop, own.per_side, own.jitter, own.overlap)
        goals = cpc.predicted(grid, own.anchor_row, own.skip)
        fields = ("encoder", "code", "recurrence", "predictors", "pool", "terms")
        network = Anew(**{name: getattr(once.network, name) for name in fields}, goals=goals)
        anew = once._replace(network=network)
        encodings = len(goals) * (once.network.terms.shape[1] + 2 * goals.shape[1])
        functions = {"once": step_of(config, once)[0], "anew": step_of(config, anew)[0]}
        seconds = in_turns(functions, rounds)
        rates = {name: config.batch_size / value for name, value in seconds.items()}
        print(
            f"{load()}: {config.name}: {rates['once']:.2f} volumes/s with {grid.count} encodings "
            f"each, {rates['anew']:.2f} with {encodings} anew; ratio "
            f"{rates['once'] / rates['anew']:.2f} (goal >= 4)",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
