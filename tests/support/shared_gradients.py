"""A program for a process with two devices and as many cores as given: the native weight gradient.

python -m tests.support.shared_gradients CORES

Prints a digest of the bits on one device. Then, for two devices that share the batch, the planes
and the columns: how far they are from it, in many runs, and whether they gather each other's share.
"""

import hashlib
import os
import sys

if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):  # before jax counts the cores for its threads
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[: int(sys.argv[1])])
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from ssl3d.models import weight_gradient
    from tests.support.oracles import normal

    jax.config.update("jax_num_cpu_devices", 2)
    assert weight_gradient.available()
    arrays = normal(0, 4, 8, 9, 10, 20), normal(1, 4, 8, 9, 10, 17)
    alone = np.asarray(jax.jit(weight_gradient.weight_gradient)(*arrays))
    print(hashlib.sha256(alone.tobytes()).hexdigest())
    mesh = jax.make_mesh((2,), ("two",), (AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())
    for axes in ("two",), (None, "two"), (None, None, None, "two"):
        shares = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes))) for x in arrays]
        jitted = jax.jit(weight_gradient.weight_gradient, out_shardings=whole)
        step = jitted.lower(*shares).compile()
        found = [np.asarray(step(*shares)) for _ in range(50)]
        gathered = "all-gather(" in step.as_text()
        print(max(np.abs(one - alone).max() for one in found) / np.abs(alone).max(), gathered)
