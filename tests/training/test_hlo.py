"""Operations, flops and bytes, read from the text of programs."""

import re

import jax
import jax.numpy as jnp
import pytest

from ssl3d.models import layers
from ssl3d.training import hlo

X = jax.ShapeDtypeStruct((2, 8, 8, 8, 4), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 3, 4, 16), jnp.float32)
MULTIPLICATIONS = 2 * 8**3 * 27 * 4 * 16


def convolve(x, kernel):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), "SAME", dimension_numbers=numbers)


def unoptimised(function, *shapes):
    lowered = jax.jit(function).lower(*shapes)
    return hlo.operations(lowered.compiler_ir("hlo").as_hlo_text())


def test_a_convolution_and_its_gradients_have_the_same_flops():
    assert hlo.flops(unoptimised(convolve, X, KERNEL)) == 2 * MULTIPLICATIONS
    loss = lambda x, kernel: (convolve(x, kernel) ** 2).sum()  # noqa: E731
    both = unoptimised(jax.grad(loss, (0, 1)), X, KERNEL)
    assert hlo.flops(both) == 3 * 2 * MULTIPLICATIONS
    assert {one.kind for one in both if one.flops} == {"convolutions"}


def test_the_compiled_program_has_the_flops_of_the_model():
    loss = lambda x, kernel: (convolve(x, kernel) ** 2).sum()  # noqa: E731
    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(X, KERNEL).compile()
    assert hlo.flops(hlo.operations(compiled.as_text())) == 3 * 2 * MULTIPLICATIONS


def test_the_weight_gradient_in_c_counts_too():
    loss = lambda x, kernel: (layers.convolve(x, kernel) ** 2).sum()  # noqa: E731
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(X, KERNEL)
    for text in (lowered.compiler_ir("hlo").as_hlo_text(), lowered.compile().as_text()):
        found = hlo.operations(text)
        assert hlo.flops(found) == 3 * 2 * MULTIPLICATIONS
        assert {one.kind for one in found if one.flops} == {"convolutions"}


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    def loop(x):
        return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, length=5)[0]

    square = jax.ShapeDtypeStruct((16, 16), jnp.float32)
    compiled = jax.jit(loop).lower(square).compile().as_text()
    for found in (unoptimised(loop, square), hlo.operations(compiled)):
        assert hlo.flops(found) == 5 * 2 * 16**3
    (product,) = (one for one in found if one.flops)
    assert (product.kind, product.times, product.dtype) == ("matrix products", 5, "f32")
    assert product.bytes == 2 * 16 * 16 * 4  # both factors are the same array


# As compilers for accelerators write them: tuples, layouts, scratch memory, fusions, custom calls.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p.0: bf16[64,128], p.1: s32[]) -> bf16[8,128] {
  %p.0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  ROOT %slice = bf16[8,128]{1,0:T(8,128)} dynamic-slice(%p.0, %p.1, %p.1), dynamic_slice_sizes={8,128}
}

ENTRY %main (x: bf16[64,128], i: s32[]) -> (bf16[8,128], f32[100]) {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %i = s32[]{:T(128)S(6)} parameter(1)
  %crop = bf16[8,128]{1,0:T(8,128)} fusion(%x, %i), kind=kLoop, calls=%fused
  %near = bf16[64,128]{1,0:T(8,128)S(1)} copy(%x)
  %volumes = bf16[2,8,8,8,4]{4,3,2,1,0} constant({...})
  %weights = bf16[16,3,3,3,4]{4,3,2,1,0} constant({...})
  %conv = (bf16[2,8,8,8,16]{4,3,2,1,0}, u8[64]{0}) custom-call(%volumes, %weights), window={size=3x3x3 pad=1_1x1_1x1_1}, dim_labels=b012f_o012i->b012f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/encoder/conv"}
  %zeros = f32[100]{0} constant({...})
  %ones = f32[100]{0} constant({...})
  %start = (f32[100]{0}, f32[100]{0}) all-reduce-start(%zeros, /*index=1*/%ones), replica_groups=[2,4]<=[8], to_apply=%add
  %done = (f32[100]{0}, f32[100]{0}) all-reduce-done(%start)
  %gathered = f32[400]{0} all-gather(%zeros), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %halved = f32[100]{0} all-reduce(%zeros), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, to_apply=%add
  %shared = f32[100]{0} all-reduce(%zeros), replica_groups=@mesh['a'=4,'b'=2] {'a':(1)2,'b'}, to_apply=%add
  %grads = f32[100]{0} get-tuple-element(%done), index=0
  ROOT %all = (bf16[8,128]{1,0}, f32[100]{0}) tuple(%crop, %grads)
}
"""  # noqa: E501


def test_what_compilers_for_accelerators_write():
    crop, copy, convolution, reduced, gathered, halved, shared = hlo.operations(PROGRAM)
    assert (crop.kind, crop.bytes) == ("copies", 2 * 8 * 128 * 2 + 4)  # the slice, not the array
    assert (copy.kind, copy.bytes) == ("copies", 64 * 128 * 2)  # its result is on the chip
    assert convolution.kind == "convolutions"
    assert convolution.flops == pytest.approx(2 * MULTIPLICATIONS)
    assert (convolution.dtype, convolution.name) == ("bf16", "jit(step)/encoder/conv")
    assert (reduced.collective, reduced.group, reduced.bytes) == ("all-reduce", 4, 800)
    assert (gathered.collective, gathered.group, gathered.bytes) == ("all-gather", 4, 1600)
    assert (halved.group, shared.group) == (2, 4)
    assert {one.kind for one in (reduced, gathered)} == {"collectives"}
    assert not hlo.unread(hlo.operations(PROGRAM))


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("mesh[a=4,b=2], device_ids=([4,2]<=[2,4]T(1,0)) {b}", 2),
        ("@mesh<a=4,b=2>(devices=[4,2]<=[2,4]T(1,0)) {a:(1)2,b}", 4),
        ("mesh['a'=4,'b'=2] {}", 1),
        ("{}", 8),  # all
    ],
)
def test_the_devices_of_a_collective_in_the_forms_of_other_versions(groups, devices):
    program = PROGRAM.replace("is_scheduled=true", "num_partitions=8").replace(
        "mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", groups
    )
    found = hlo.operations(program)
    assert found[-2].group == devices
    assert not hlo.unread(found)


@pytest.mark.parametrize(
    ("known", "unknown", "named"),
    [
        ("replica_groups=[2,4]<=[8]", "replica_groups=ring(8)", "all-reduce-start of .*ring"),
        ("{'axis_1'}", "{'axis_9'}", "all-reduce of replica_groups=mesh"),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, ", "", "all-gather of no groups"),
        ("all-gather(%zeros)", "all-collect(%zeros)", "all-collect of replica_groups={{0,1,2,3}"),
        ("convForward", "nextForward", "custom-call __cudnn.nextForward"),
        ("__cudnn$convForward", "forward", "custom-call forward"),
        ("window={size=", "window={sides=", "custom-call __cudnn"),
        ("size=3x3x3", "size=3x3", "custom-call __cudnn"),
        ("bf16[64,128]{1,0:T(8,128)S(1)} copy", "e5[64,128]{1,0} copy", "element type e5"),
        ("copy(%x)", "copy(<x>)", "operand <x> of copy"),
        ("calls=%fused", "runs=%fused", "fusion, kind=kLoop, runs="),
        ("calls=%fused", "calls=%other", "fusion, kind=kLoop, calls=%other"),
        ("%near = ", "%near := ", "%near := bf16"),
        ("%near = bf16[64,128]{1,0:T(8,128)S(1)} copy(%x)", "%near = bf16[64]", "%near = bf16"),
        ("ENTRY %main", "MAIN %main", "computation ENTRY"),
    ],
)
def test_a_form_that_is_unknown_is_reported(known, unknown, named):
    assert known in PROGRAM
    (line,) = hlo.unread(hlo.operations(PROGRAM.replace(known, unknown)))
    assert re.search(f"unknown, {named}.* \\(1 operation", line)


CALLS = """\
HloModule jit_step

%body (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8] parameter(0)
  ROOT %square = f32[8,8] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%endless (y: f32[8,8]) -> pred[] {
  ROOT %y = f32[8,8] parameter(0)
}

ENTRY %main (z: f32[8,8]) -> f32[8,8] {
  %z = f32[8,8] parameter(0)
  ROOT %called = f32[8,8] OPERATION
}
"""


@pytest.mark.parametrize(
    ("operation", "products", "named"),
    [
        ("call(%z), to_apply=%body", 1, ""),
        ('while(%z), condition=%endless, body=%body, {"known_trip_count":{"n":"7"}}', 7, ""),
        ("while(%z), condition=%endless, body=%body", 1, "while, condition=%endless"),
        ("while(%z), condition=%endless, does=%body", 0, "while, condition=%endless, does"),
        ("conditional(%z, %z), branch_computations={%body, %body}", 2, ""),
        ("conditional(%z, %z), branches={%body, %body}", 0, "conditional, branches"),
        ("async-start(%z), calls=%body", 1, ""),
        ("async-start(%z), wraps=%body", 0, "async-start, wraps"),
        ("call(%z), to_apply=%other", 0, "computation other"),
        ("scaled-dot(%z, %z)", 0, "scaled-dot"),
        ("convolution(%z, %z), window={size=3}", 0, "convolution , window"),
    ],
)
def test_what_calls_in_an_unknown_form_is_reported(operation, products, named):
    found = hlo.operations(CALLS.replace("OPERATION", operation))
    assert hlo.flops(found) == products * 2 * 8**3
    assert [f"unknown, {named}" in line for line in hlo.unread(found)] == [True] * bool(named)
