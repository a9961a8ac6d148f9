"""A program: training steps of the encoders beside PyTorch's, alternated in one run.

python -m tests.support.against_torch --torch-python=PATH [--encoders=resunet,unet] [--rounds=5]
    [--batch=4] [--side=64] [--width=16] [--depth=4] [--threads=2] [--json] [--keep-memory]

A step is forward, backward and a plain gradient descent, in float32. Ours runs with and without
the native weight gradient; PyTorch's eagerly, channels first and last, and compiled. Each runs in a
process of its own, PyTorch's under the Python at PATH, which has torch. Per form: the median of the
rounds, and its ratio to ours of the same round. --keep-memory gives PyTorch the malloc settings
that our commands give themselves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

OURS = {"ssl3d": "1", "ssl3d, XLA's weight gradient": "0"}
LAYOUTS = {
    "torch eager": {},
    "torch eager, channels last": {"last": True},
    "torch.compile, channels last": {"last": True, "compiled": True},
}
STEPS = 2  # in a row, per round


def our_steps(encoder, given):
    """A function per form that makes one step, and the number of parameters."""
    import jax
    import jax.numpy as jnp

    from ssl3d import xla
    from ssl3d.models import unet

    xla.keep_memory()
    plain = {"norm": "instance"} if encoder == "unet" else {}
    kind = {"unet": unet.plain, "resunet": unet.residual}[encoder]
    network = kind(width=given.width, depth=given.depth, **plain)
    x = jax.random.normal(jax.random.key(0), (given.batch, *(given.side,) * 3, 1))
    state = {"params": xla.jit_once(network.init)(jax.random.key(1), x)["params"]}
    count = sum(leaf.size for leaf in jax.tree.leaves(state))

    def loss(params, x):
        return jnp.square(network.apply({"params": params}, x, train=True).levels[-1]).mean()

    def descend(params, x):
        value, grads = jax.value_and_grad(loss)(params, x)
        return value, jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads)

    jitted = xla.jit(descend, donate_argnums=0)

    def step():
        value, state["params"] = jitted(state["params"], x)
        jax.block_until_ready(state["params"])
        return float(value)

    return {"ours": step}, count


def torch_steps(encoder, given):
    """The same of the same network in PyTorch."""
    import torch
    from torch import nn

    torch.set_num_threads(given.threads)

    def conv(i, o, k=3, bias=False, stride=1):
        return nn.Conv3d(i, o, k, stride, (k - 1) // 2 if stride == 1 else 0, bias=bias)

    def groups(channels):
        most = max(1, min(8, channels // 4))
        return next(n for n in range(most, 0, -1) if channels % n == 0)

    class Residual(nn.Module):
        def __init__(self, i, o):
            super().__init__()
            self.first, self.second = conv(i, o), conv(o, o)
            self.norms = nn.ModuleList(nn.GroupNorm(groups(o), o) for _ in range(2))
            self.shortcut = conv(i, o, 1) if i != o else nn.Identity()

        def forward(self, x):
            y = torch.relu(self.norms[0](self.first(x)))
            return torch.relu(self.shortcut(x) + self.norms[1](self.second(y)))

    def plain(i, o):
        pairs = ((i, o), (o, o))
        parts = [
            (conv(a, b, bias=True), nn.InstanceNorm3d(b, affine=True), nn.ReLU()) for a, b in pairs
        ]
        return nn.Sequential(*parts[0], *parts[1])

    def network():
        torch.manual_seed(0)
        levels, before = [], 1
        for n in range(given.depth):
            width = given.width * 2**n
            if encoder == "unet":
                levels += [*([nn.MaxPool3d(2)] if n else []), plain(before, width)]
            else:
                down = [conv(before, width, 2, stride=2)] if n else []
                levels += [*down, Residual(width if n else before, width)]
            before = width
        return nn.Sequential(*levels)

    def make(last=False, compiled=False):
        layout = torch.channels_last_3d if last else torch.contiguous_format
        net = network().to(memory_format=layout)
        x = torch.randn(given.batch, 1, *(given.side,) * 3).to(memory_format=layout)
        run = torch.compile(net) if compiled else net
        optimizer = torch.optim.SGD(net.parameters(), 1e-3)

        def step():
            optimizer.zero_grad()
            loss = run(x).square().mean()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    count = sum(p.numel() for p in network().parameters())
    return {name: make(**layout) for name, layout in LAYOUTS.items()}, count


def work(given):
    """A worker: reads the names of forms, answers with seconds per step."""
    encoder = given.encoders
    steps, count = (torch_steps if given.worker == "torch" else our_steps)(encoder, given)
    for step in steps.values():  # compiles, and fills the caches
        step()
        step()
    print(json.dumps({"parameters": count, "forms": list(steps)}), flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        for _ in range(STEPS):
            steps[line.strip()]()
        print((time.perf_counter() - begun) / STEPS, flush=True)


def compare(encoder, given, arguments):
    """Seconds per step of every form, by round."""
    tuned = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**62)}
    kinds = {name: (sys.executable, "ours", {"SSL3D_NATIVE": on}) for name, on in OURS.items()}
    kinds["torch"] = (given.torch_python, "torch", tuned if given.keep_memory else {})
    workers, answers = {}, {}
    for name, (python, kind, environment) in kinds.items():
        command = [python, __file__, *arguments, f"--worker={kind}", f"--encoders={encoder}"]
        workers[name] = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": os.getcwd()} | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        answers[name] = json.loads(workers[name].stdout.readline())
    assert len({answer["parameters"] for answer in answers.values()}) == 1, answers
    asked = {
        name if form == "ours" else form: (worker, form)
        for name, worker in workers.items()
        for form in answers[name]["forms"]
    }
    seconds = {name: [] for name in asked}
    for _ in range(given.rounds):
        for name, (worker, form) in asked.items():
            print(form, file=worker.stdin, flush=True)
            seconds[name].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return seconds


def table(encoder, seconds):
    ours = seconds["ssl3d"]
    for form, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(ours, times, strict=True))
        yield {
            "encoder": encoder,
            "form": form,
            "ms": 1e3 * statistics.median(times),
            "least_ms": 1e3 * min(times),
            "ours_to_this": ratio,
        }


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-python", required=True)
    parser.add_argument("--encoders", default="resunet,unet")
    for name, number in (("rounds", 5), ("batch", 4), ("side", 64), ("width", 16), ("depth", 4)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep-memory", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.worker:
        return work(given)
    load = os.getloadavg()[0]
    rows = [
        row
        for encoder in given.encoders.split(",")
        for row in table(encoder, compare(encoder, given, arguments))
    ]
    if given.json:
        return print(json.dumps({"load": load, "rows": rows}))
    print(f"load {load:.1f}, {given.threads} threads")
    print("| encoder | form | ms | least | ours / this |")
    print("|---|---|---|---|---|")
    for row in rows:
        values = f"{row['ms']:.0f} | {row['least_ms']:.0f} | {row['ours_to_this']:.2f}"
        print(f"| {row['encoder']} | {row['form']} | {values} |")
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
