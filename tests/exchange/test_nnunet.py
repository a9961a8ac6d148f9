"""The export for nnU-Net against nnU-Net's own network, and its checkpoints read by us."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

import ssl3d.exchange
from ssl3d.errors import UserError
from ssl3d.exchange import folders
from ssl3d.models import decoders, encoders, export, torch_layout
from ssl3d.models.encoders import Features
from tests.support import exported, torch_python

SCRIPTS = ssl3d.exchange.__path__[0]
DNA = ["dynamic_network_architectures"]
# As nnU-Net plans for thick slices, whose axis is its first.
FLAT = exported.RESENC | {
    "strides": ((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    "kernels": ((3, 3, 1), (3, 3, 3), (3, 3, 3)),
}

# nnU-Net's network with our weights: levels, logits, and the gradients of one step, for an input
# of any size. Its mean pools refuse sizes that the stride does not divide, but for `ceil_mode`.
ORACLE = """
import importlib.util, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))
import torch
from safetensors.torch import load_file, save_file
import nnunet_checkpoint as script
plan = json.loads((folder / "adaptation_plan.json").read_text())
theirs = script.original(plan)
weights = script.nnunet_weights(script.network().state_dict())
print(theirs.load_state_dict(weights, strict=False))
for module in theirs.modules():
    if "AvgPool" in type(module).__name__:
        module.ceil_mode = True
given = {k: script.reversed_axes(v) for k, v in load_file(folder / "given.safetensors").items()}
levels = theirs.encoder(given["x"])
score = sum((level * given[f"direction_{i}"]).sum() for i, level in enumerate(levels))
score.backward()
found = {f"level_{i}": level.detach() for i, level in enumerate(levels)}
for name, parameter in theirs.encoder.named_parameters():
    found["gradient/" + name] = parameter.grad
if "whole" in sys.argv:
    skips = [level.detach() for level in levels]
    decoder = theirs.decoder
    below = skips[-1]
    for up, stage, skip in zip(decoder.transpconvs, decoder.stages, skips[-2::-1]):
        below = stage(torch.cat((up(below), skip), 1))
    found["decoded"] = below.detach()
found = {k: script.reversed_axes(v).contiguous() for k, v in found.items()}
save_file(found, folder / "found.safetensors")
"""


def close(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        pytest.param(exported.RESENC, (12, 8), id="2d", marks=pytest.mark.slow),
        pytest.param(exported.RESENC, (11, 9), id="2d-odd", marks=pytest.mark.slow),
        pytest.param(exported.RESENC, (8, 12, 4), id="3d", marks=pytest.mark.slow),
        pytest.param(FLAT, (7, 9, 11), id="3d-anisotropic-odd"),
    ],
)
def test_levels_and_gradients_are_those_of_nnunet(settings, size, tmp_path):
    torch_python.required(*DNA)
    rank = len(size)
    run = exported.write_encoder(tmp_path / "run" / "encoder", settings, rank).parent
    module, variables = export.load_encoder(run)
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(2, *size, 2)), jnp.float32)
    features = jax.jit(module.apply)(variables, x)
    directions = [rng.normal(size=level.shape).astype(np.float32) for level in features.levels]
    decoder = decoders.build(module, 3)
    own = exported.random_leaves(decoder, features, seed=2)
    about = export.describe_encoder(run)
    export.save_decoder(run / "decoder", own, {"encoder": about["encoder"]})
    folders.export(run, tmp_path / "out", "nnunet")

    def channels_first(array):
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))

    given = {f"direction_{i}": channels_first(array) for i, array in enumerate(directions)}
    save_file(given | {"x": channels_first(np.asarray(x))}, tmp_path / "out" / "given.safetensors")
    (tmp_path / "oracle.py").write_text(ORACLE)
    even = all(side % 4 == 0 for side in size)
    torch_python.succeeds(tmp_path / "oracle.py", tmp_path / "out", *["whole"] * even)
    found = load_file(tmp_path / "out" / "found.safetensors")

    def score(variables):
        levels = module.apply(variables, x).levels
        return sum((a * b).sum() for a, b in zip(levels, directions, strict=True)), levels

    gradients, levels = jax.jit(jax.grad(score, has_aux=True))(variables)
    for i, level in enumerate(levels):
        close(channels_first(np.asarray(level)), found[f"level_{i}"])
    flat = traverse_util.flatten_dict(jax.device_get(gradients), sep="/")
    ours = torch_layout.to_torch(flat, rank)
    largest = max(np.abs(gradient).max() for gradient in ours.values())
    for name, gradient in ours.items():
        theirs = found[f"gradient/{name}"]
        # A bias before an instance norm has no influence: rounding alone.
        assert np.abs(gradient - theirs).max() <= 1e-4 * max(
            np.abs(theirs).max(), 1e-2 * largest
        ), name
    if even:
        logits = jax.jit(decoder.apply)(own, Features(tuple(map(jnp.asarray, levels))))[0]
        head = own["params"]["logits_0"]
        decoded = np.moveaxis(found["decoded"], 1, -1)
        close(np.asarray(logits), decoded @ head["kernel"] + head["bias"])


def test_the_checkpoint_is_one_of_nnunets(tmp_path):
    """Keys and shapes of nnU-Net's whole network, and of what nnssl's fine-tuning takes of it."""
    torch_python.required(*DNA)
    run = exported.write_encoder(tmp_path / "run", FLAT, 3)
    folders.export(run, tmp_path / "out", "nnunet")
    printed = torch_python.succeeds(tmp_path / "out" / "nnunet_checkpoint.py")
    assert "nnU-Net's own network has all weights" in printed
    finetune = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import json, torch, nnunet_checkpoint as script\n"
        "found = torch.load(sys.argv[1] + '/checkpoint_final.pth', weights_only=True)\n"
        "plan, weights = found['nnssl_adaptation_plan'], found['network_weights']\n"
        "config = list(plan['pretrain_plan']['configurations'].values())[0]\n"
        "assert {'spacing', 'patch_size'} <= set(config)\n"
        "kwargs = plan['architecture_plans']['arch_kwargs']\n"
        "net = script.original({'architecture': kwargs, 'nnssl_adaptation_plan': plan})\n"
        "for key in (plan['key_to_encoder'], plan['key_to_stem']):\n"
        "    part = {k[len(key) + 1:]: v for k, v in weights.items() if k.startswith(key + '.')}\n"
        "    net.get_submodule(key).load_state_dict(part)\n"
        "for key in plan['keys_to_in_proj']: assert key + '.weight' in weights\n"
        "missing = [k for k in net.state_dict() if k not in weights and 'seg_layers' not in k]\n"
        "print(missing)\n"
    )
    assert torch_python.succeeds("-c", finetune, tmp_path / "out").strip() == "[]"


@pytest.fixture
def with_decoder(tmp_path):
    """A pretraining run with a decoder."""
    run = exported.write_encoder(tmp_path / "run" / "encoder", FLAT, 3).parent
    module, variables = export.load_encoder(run)
    features = jax.eval_shape(module.apply, variables, np.zeros((1, 8, 8, 8, 2), np.float32))
    variables = exported.random_leaves(decoders.build(module, 3), features, seed=2)
    export.save_decoder(run / "decoder", variables, export.describe_encoder(run))
    return run


def test_an_export_keeps_the_decoder_for_transfer_and_the_next_export(with_decoder, tmp_path):
    wanted = export.without_projections(export.load_decoder(with_decoder))
    source = with_decoder
    for name in ("first", "second"):
        folders.export(source, tmp_path / name, "nnunet")
        source = tmp_path / name
        found = traverse_util.flatten_dict(export.load_decoder(source), sep="/")
        assert found.keys() == wanted.keys()
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
    names = [path.name for path in source.iterdir()]
    assert {"decoder.json", "decoder.safetensors"} <= set(names)
    for name in names:
        before, after = (tmp_path / name for name in ("first", "second"))
        assert (before / name).read_bytes() == (after / name).read_bytes()


def test_a_decoder_in_torchs_layout_must_fit(with_decoder, tmp_path):
    folders.export(with_decoder, tmp_path / "out", "nnunet")
    file = tmp_path / "out" / "decoder.safetensors"
    arrays = load_file(file)
    del arrays["transpconvs.0.weight"]
    save_file(arrays, file)
    about = json.loads(file.with_suffix(".json").read_text())
    del about["sha256"]
    file.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"decoder\.safetensors: transpconvs\.0\.weight is missing"):
        export.load_decoder(tmp_path / "out")
    folders.export(with_decoder, tmp_path / "torch", "torch")
    with pytest.raises(UserError, match=r"decoder\.json: missing; give a run .*--format=nnunet"):
        export.load_decoder(tmp_path / "torch")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm": "group"}, ["encoder.norm=group", "norm=instance"]),
        ({"kind": "resunet", "blocks": ()}, ["encoder.kind=resunet", "resenc"]),
    ],
)
def test_what_nnunet_has_not_is_named(change, words, tmp_path):
    run = exported.write_encoder(tmp_path / "run", exported.RESENC | change, 2)
    with pytest.raises(UserError) as error:
        folders.export(run, tmp_path / "out", "nnunet")
    assert all(word in str(error.value) for word in words)
    assert not (tmp_path / "out").exists()


MAKE = """
import sys, torch
from torch import nn
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
torch.manual_seed(0)
strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
kwargs = dict(
    n_stages=3, features_per_stage=[4, 8, 12], kernel_sizes=[[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    strides=strides, n_blocks_per_stage=[1, 2, 1], n_conv_per_stage_decoder=[1, 1],
)
network = ResidualEncoderUNet(
    input_channels=2, conv_op=nn.Conv3d, num_classes=2, conv_bias=True, norm_op=nn.InstanceNorm3d,
    norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
    nonlin_kwargs={"inplace": True}, **kwargs,
)
for p in network.parameters():
    nn.init.normal_(p, std=0.3)
prefix = sys.argv[2]
weights = {prefix + k: v for k, v in network.state_dict().items()}
nnssl = {"architecture_plans": {"arch_class_name": "ResidualEncoderUNet", "arch_kwargs": kwargs},
         "key_to_encoder": "encoder.stages", "key_to_stem": "encoder.stem"}
nnunet = {"plans": {"configurations": {"3d_fullres": {"architecture": {"arch_kwargs": kwargs}}}}}
extra = {"nnssl_adaptation_plan": nnssl} if sys.argv[3] == "nnssl" else {"init_args": nnunet}
torch.save({"network_weights": weights} | extra, sys.argv[1])
"""

# All weights of the first checkpoint are in the second; segmentation layers are the task's own.
SAME = """
import sys, torch
before, after = (torch.load(f, weights_only=True)["network_weights"] for f in sys.argv[1:3])
for name, value in before.items():
    if "seg_layers" not in name:
        assert torch.equal(value, after[name.removeprefix(sys.argv[3])]), name
"""


@pytest.mark.parametrize(
    ("prefix", "plan"),
    [("", "nnssl"), pytest.param("module._orig_mod.", "nnunet", marks=pytest.mark.slow)],
)
def test_a_checkpoint_of_theirs_is_converted_and_read_without_torch(prefix, plan, tmp_path):
    """What JAX computes of it is what the converter recorded."""
    torch_python.required(*DNA)
    checkpoint, folder = tmp_path / "checkpoint.pth", tmp_path / "converted"
    (tmp_path / "make.py").write_text(MAKE)
    torch_python.succeeds(tmp_path / "make.py", checkpoint, prefix, plan)
    script = f"{SCRIPTS}/convert_checkpoint.py"
    assert "decoder of 12 arrays" in torch_python.succeeds(script, checkpoint, folder)
    module, variables = export.load_encoder(folder)
    assert encoders.every_setting(export.describe_encoder(folder)["encoder"])["max_width"] == 12
    reference = load_file(folder / "reference.safetensors")
    levels = jax.jit(module.apply)(variables, np.moveaxis(reference["input"], 1, -1)).levels
    for i, level in enumerate(levels):
        close(np.moveaxis(np.asarray(level), -1, 1), reference[f"output_{i}"])
    assert "largest difference" in torch_python.succeeds(folder / "encoder.py")
    folders.export(folder, tmp_path / "back", "nnunet")
    torch_python.succeeds(tmp_path / "back" / "nnunet_checkpoint.py")
    back = tmp_path / "back" / "checkpoint_final.pth"
    torch_python.succeeds("-c", SAME, checkpoint, back, prefix)
    done = torch_python.run(script, checkpoint, folder)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "already exists" in done.stderr


@pytest.mark.slow
def test_what_is_no_residual_encoder_is_named(tmp_path):
    make = (
        "import sys, torch; torch.save({'network_weights': {'a': torch.ones(1)}}, sys.argv[1])\n"
        "torch.save({'network_weights': {}, 'more': object}, sys.argv[1] + '2')\n"
        "torch.save({'state_dict': {}}, sys.argv[1] + '3')\n"
    )
    checkpoint = tmp_path / "checkpoint.pth"
    torch_python.succeeds("-c", make, checkpoint)
    for file, message in (
        (checkpoint, "no residual encoder"),
        (f"{checkpoint}2", "--trust"),
        (f"{checkpoint}3", "no network_weights"),
        (tmp_path / "nowhere", "cannot be read"),
    ):
        done = torch_python.run(f"{SCRIPTS}/convert_checkpoint.py", file, tmp_path / "out")
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_plan_tells_how_images_were_prepared_in_nnunets_order(tmp_path):
    run = exported.write_encoder(tmp_path / "run", exported.RESENC, 3)
    about = json.loads((run / "encoder.json").read_text())
    about["preparation"] = {"recipe": {"spacing": [1.0, 1.0, 2.5]}}
    about["crop"] = [32, 32, 16]
    (run / "encoder.json").write_text(json.dumps(about))
    folders.export(run, tmp_path / "out", "nnunet")
    plan = json.loads((tmp_path / "out" / "adaptation_plan.json").read_text())
    (config,) = plan["nnssl_adaptation_plan"]["pretrain_plan"]["configurations"].values()
    assert (config["spacing"], config["patch_size"]) == ([2.5, 1.0, 1.0], [16, 32, 32])


@pytest.mark.slow
def test_the_network_of_the_presets(tmp_path):
    """ResEnc-L in 3D: our outputs in PyTorch, and nnU-Net's own network with these weights."""
    torch_python.required(*DNA)
    settings = {"kind": "resenc", "width": 32, "depth": 6, "norm": "instance"}
    run = exported.write_encoder(tmp_path / "run", settings, 3, channels=1)
    folders.export(run, tmp_path / "out", "nnunet")
    said = torch_python.succeeds(tmp_path / "out" / "encoder.py")
    print(said)
    assert "largest difference" in said
    said = torch_python.succeeds(tmp_path / "out" / "nnunet_checkpoint.py")
    print(said)
    assert "nnU-Net's own network has all weights" in said
