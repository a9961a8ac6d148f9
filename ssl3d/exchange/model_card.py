"""The model card of the Hugging Face hub: what was trained on what, how well, at what cost."""

from __future__ import annotations

import itertools
import json
from typing import Any

from ssl3d.exchange import source as sources
from ssl3d.exchange.source import Source
from ssl3d.training import run_log

_JAX = """\
```python
from huggingface_hub import snapshot_download
from ssl3d.models import load_encoder

module, variables = load_encoder(snapshot_download("{repository}"))
levels = module.apply(variables, x).levels  # x [B, *S, C], full resolution first
```
or `--config.init.encoder=FOLDER` in a run of ssl3d.
"""

_TORCH = """\
```python
import sys
from huggingface_hub import snapshot_download

sys.path.insert(0, snapshot_download("{repository}"))
from {part} import load

network = load()  # needs torch and safetensors
```
"""

_NNUNET = """\
`python nnunet_checkpoint.py` in the folder writes `checkpoint_final.pth`, for
`nnUNetv2_train ... -pretrained_weights checkpoint_final.pth` with plans of the architecture in
`adaptation_plan.json`.
"""


def render(source: Source, licence: str, repository: str, nnunet: bool) -> str:
    """The text of README.md.

    Args:
      licence: the hub's name of a licence, e.g. cc-by-4.0.
      repository: OWNER/NAME on the hub; "" if it is not known.
      nnunet: whether the folder holds what nnU-Net needs.

    Raises:
      UserError: the run's files are damaged.
    """
    about, name = source.about, {"repository": repository or "OWNER/NAME"}
    lines = [
        "---",
        "library_name: ssl3d",
        f"license: {licence}",
        "tags: [medical, self-supervised, " + ("3d]" if about["rank"] == 3 else "2d]"),
        "---",
        f"# {source.part.capitalize()} pretrained with ssl3d: {about.get('task', 'unknown task')}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in _facts(source).items()),
        "",
        "Encoder:",
        "```json",
        json.dumps(about["encoder"], sort_keys=True),
        "```",
        "Preparation of the images (`ssl3d.prepare`):",
        "```json",
        json.dumps(about["preparation"], sort_keys=True),
        "```",
        "",
    ]
    if source.part == "encoder":
        lines += ["## JAX", _JAX.format(**name)]
    lines += ["## PyTorch", _TORCH.format(**name, part=source.part)]
    if nnunet:
        lines += ["## nnU-Net", _NNUNET]
    return "\n".join(lines)


def _facts(source: Source) -> dict[str, Any]:
    about = source.about
    config, metrics = sources.run_config(source.workdir), run_log.read_metrics(source.workdir)
    values = sum(leaf.size for leaf in source.leaves.values())
    facts = {
        "data": about.get("dataset", "unknown"),
        "channels": ", ".join(about.get("modalities", ())) or about["channels"],
        "task": about.get("task", "unknown"),
        "steps": _steps(about, config),
        "cost": _cost(config, metrics),
        "parameters": f"{values:,}",
        "code": f"ssl3d {about['version']}",
    }
    for split, title in (("val", "validation"), ("probe", "probe of the frozen encoder")):
        last = next((line for line in reversed(metrics) if line["split"] == split), None)
        if last:
            facts[f"{title}, step {last['step']}"] = _scores(last)
    return facts


def _steps(about: dict[str, Any], config: dict[str, Any]) -> str:
    steps = about.get("step", about.get("steps", "unknown"))
    return f"{steps}, batches of {config['batch_size']}" if "batch_size" in config else f"{steps}"


def _scores(line: dict[str, Any]) -> str:
    scores = {
        key: value
        for key, value in line.items()
        if key not in ("step", "split", "seconds") and value is not None
    }
    return ", ".join(f"{key} {value:.3f}" for key, value in scores.items())


def _cost(config: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """The time of the training steps: of the volumes between log points, at the rate of each."""
    lines = [
        line for line in metrics if line["split"] == "train" and line.get("volumes_per_second")
    ]
    if not lines:
        return "unknown"
    begun = [0, *(line["step"] for line in lines)]
    seconds = sum(
        (end - begin) * config.get("batch_size", 1) / line["volumes_per_second"]
        for (begin, end), line in zip(itertools.pairwise(begun), lines, strict=True)
    )
    return f"{seconds:.0f} s of training steps"
