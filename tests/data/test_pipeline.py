import dataclasses
import itertools
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl3d.data import pipeline, store
from ssl3d.errors import RunError, UserError


def record(rng, example, train):
    """What a task might cut: a random crop, and the numbers that it drew."""
    crop, start = pipeline.crop(rng, example.image, (5,) * (example.image.ndim - 1), train)
    return {"crop": crop, "start": start, "draw": rng.random()}


@pytest.fixture
def batches(volumes):
    """Training batches of the shared data set, with options replaced."""

    def function(count, dataset=volumes, **overrides):
        options = {"rank": dataset.rank, "slice_axis": 2, "margin": 0, "batch_size": 4}
        options |= {"seed": 0, "threads": 1} | overrides
        stream = pipeline.train_batches(dataset, dataset.split("train"), record, **options)
        return list(itertools.islice(stream, count))

    return function


@pytest.fixture
def validation(volumes):
    def function(dataset=volumes, cases=None, **overrides):
        options = {"rank": dataset.rank, "slice_axis": 2, "margin": 0, "batch_size": 4}
        options |= {"seed": 0, "repeats": 2, "threads": 1} | overrides
        cases = dataset.split("val") if cases is None else cases
        return list(pipeline.validation_batches(dataset, cases, record, **options))

    return function


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_batch_holds_records_and_whose_they_are(batches, volumes):
    (batch,) = batches(1)
    assert batch["record"]["crop"].shape == (4, 5, 5, 5, 2)
    assert batch["record"]["crop"].dtype == np.float16
    subjects = volumes.subjects()
    for row in range(4):
        case = volumes.cases[batch["case"][row]]
        assert case.split == "train"
        assert batch["subject"][row] == subjects[case.subject]
        assert batch["case_key"][row] == pipeline.case_key(case)
        here = tuple(slice(a, a + 5) for a in batch["record"]["start"][row])
        image = store.load_image(volumes, case)
        np.testing.assert_array_equal(batch["record"]["crop"][row], image[here])


def test_every_case_comes_once_an_epoch_in_another_order_each_time(batches):
    stream = np.concatenate([batch["case"] for batch in batches(8)]).reshape(4, 8)
    assert all(set(epoch) == set(range(8)) for epoch in stream)
    assert len({tuple(epoch) for epoch in stream}) == 4


def test_no_two_examples_are_sampled_alike(batches):
    draws = np.concatenate([batch["record"]["draw"] for batch in batches(8)])
    assert len(np.unique(draws)) == 32


def test_the_order_is_a_function_of_the_seed(batches):
    assert_equal(batches(3), batches(3))
    other = batches(3, seed=1)
    assert any((a["case"] != b["case"]).any() for a, b in zip(batches(3), other, strict=True))


def test_the_samples_belong_to_the_draw_version(batches):
    # An intended change of the samples increments the version: results of two versions differ.
    assert pipeline.DRAW_VERSION == 3
    stream = batches(2)
    assert [batch["case"].tolist() for batch in stream] == [[2, 4, 3, 6], [5, 0, 1, 7]]
    assert stream[1]["record"]["start"][0].tolist() == [19, 8, 6]


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(batches, threads):
    assert_equal(batches(6), batches(6, threads=threads))
    assert_equal(batches(6), batches(6, threads=threads, buffer=1))


@pytest.mark.parametrize("options", [{"threads": 3}, {"threads": 3, "buffer": 1}])
def test_validation_does_not_depend_on_the_threads(validation, options):
    one, other = validation(), validation(**options)
    assert len(one) == len(other) == 2
    for alone, together in zip(one, other, strict=True):
        assert_equal(alone, together)


@pytest.mark.parametrize("first", [1, 3, 7])
def test_a_later_start_skips_batches(batches, first):
    assert_equal(batches(9)[first:], batches(9 - first, first_batch=first))
    assert_equal(batches(9)[first:], batches(9 - first, first_batch=first, threads=3))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_every_global_batch(batches, count):
    alone = batches(5)
    shares = [batches(5, process=(index, count)) for index in range(count)]
    together = [
        jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
        for parts in zip(*shares, strict=True)
    ]
    assert_equal(alone, together)
    assert len(shares[0][0]["case"]) == 4 // count


def test_a_batch_may_hold_one_example(batches):
    one_by_one = np.concatenate([batch["case"] for batch in batches(8, batch_size=1)])
    np.testing.assert_array_equal(one_by_one, batches(1, batch_size=8)[0]["case"])


def test_processes_resume_together(batches):
    for index in range(2):
        options = {"process": (index, 2)}
        assert_equal(batches(6, **options)[4:], batches(2, first_batch=4, **options))


# Validation.


def by_example(rows):
    """(case, repeat) -> its record, real examples only."""
    found = {}
    for batch in rows:
        for row in np.flatnonzero(batch["valid"]):
            key = int(batch["case"][row]), int(batch["repeat"][row])
            assert key not in found
            found[key] = {name: leaf[row] for name, leaf in batch["record"].items()}
    return found


def test_validation_holds_every_case_as_often_as_asked(validation, volumes):
    found = by_example(validation())
    assert set(found) == set(itertools.product(range(8, 12), range(2)))


@pytest.mark.parametrize("batch_size", [1, 3, 5, 16])
def test_validation_samples_do_not_depend_on_the_batch_size(validation, batch_size):
    rows = validation(batch_size=batch_size)
    assert all(len(batch["case"]) == batch_size for batch in rows)
    assert sum(batch["valid"].sum() for batch in rows) == 8
    assert_equal(by_example(validation()), by_example(rows))


def test_validation_samples_depend_on_seed_case_and_repeat_alone(validation, volumes):
    found = by_example(validation())
    cases = volumes.split("val")
    fewer = by_example(validation(cases=cases[2:], repeats=1))
    assert_equal({key: found[key] for key in fewer}, fewer)
    draws = {float(values["draw"]) for values in found.values()}
    assert len(draws) == 8
    assert float(by_example(validation(seed=1))[8, 0]["draw"]) not in draws
    # Crops are central, whatever the generator.
    assert {tuple(values["start"]) for values in found.values()} == {(9, 9, 9)}


def test_processes_share_the_validation_too(validation):
    alone = validation(batch_size=6)
    shares = [validation(batch_size=6, process=(index, 2)) for index in range(2)]
    together = [
        jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
        for parts in zip(*shares, strict=True)
    ]
    assert_equal(alone, together)


# Crops.


@given(
    st.integers(2, 3).flatmap(
        lambda rank: st.tuples(
            st.tuples(*[st.integers(1, 12)] * rank), st.tuples(*[st.integers(1, 16)] * rank)
        )
    ),
    st.integers(0, 99),
    st.booleans(),
)
def test_crops_are_inside_or_padded_by_reflection(shapes, seed, train):
    shape, size = shapes
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(*shape, 1)
    rng = np.random.default_rng(seed)
    part, start = pipeline.crop(rng, image, size, train, beyond=True)
    assert part.shape == (*size, 1)
    assert start.dtype == np.int32
    index = np.indices(size).reshape(len(size), -1) + start[:, None]
    for axis, (whole, side) in enumerate(zip(shape, size, strict=True)):
        period = index[axis] % (2 * whole)  # voxel -1 mirrors to 0, as does `whole` to the last
        index[axis] = np.minimum(period, 2 * whole - 1 - period)
        if side <= whole:
            assert 0 <= start[axis] <= whole - side
        else:
            assert start[axis] == (whole - side) // 2
    np.testing.assert_array_equal(part, image[tuple(index)].reshape(part.shape))
    if all(side <= whole for whole, side in zip(shape, size, strict=True)):
        inside, _ = pipeline.crop(np.random.default_rng(seed), image, size, train)
        np.testing.assert_array_equal(inside, part)
    else:
        with pytest.raises(ValueError, match="smaller than the crop"):
            pipeline.crop(rng, image, size, train)


def test_training_crops_reach_every_place_and_validation_ones_the_middle():
    image = np.zeros((9, 6, 1), np.float16)

    def starts(train):
        rngs = [np.random.default_rng(seed) for seed in range(80)]
        return {tuple(pipeline.crop(rng, image, (6, 6), train)[1]) for rng in rngs}

    assert starts(train=True) == {(0, 0), (1, 0), (2, 0), (3, 0)}
    assert starts(train=False) == {(1, 0)}


# What is copied once, into the batch.


def test_pieces_are_crops_wherever_they_are_copied():
    image = np.random.default_rng(0).normal(size=(9, 8, 2)).astype(np.float16)
    starts = np.array([[0, 1], [5, 4], [2, 2]])
    pieces = pipeline.Pieces(image, starts, (4, 3))
    expected = np.stack([image[a : a + 4, b : b + 3] for a, b in starts])
    np.testing.assert_array_equal(np.asarray(pieces), expected, strict=True)
    assert (pieces.shape, pieces.dtype) == (expected.shape, expected.dtype)
    assert pieces.nbytes == expected.nbytes
    out = np.zeros((2, *expected.shape), np.float16)
    pieces.write(out[1])
    np.testing.assert_array_equal(out[1], expected)
    assert not out[0].any()


@pytest.mark.parametrize("start", [(-4, 0), (0, 7), (6, 5)])
def test_pieces_are_inside_the_image(start):
    with pytest.raises(ValueError, match=r"pieces of \(4, 3\) voxels beyond"):
        pipeline.Pieces(np.zeros((9, 8, 1)), np.array([(0, 0), start]), (4, 3))


def test_batches_are_what_single_examples_stack_to(volumes):
    """Pieces and views of any kind, for any number of threads, as if each had been copied."""

    def pieces(rng, example, train):
        region, start = pipeline.crop(rng, example.image, (9, 9, 9), train)
        starts = rng.integers(0, 5, (3, 3))
        return {"pieces": pipeline.Pieces(region, starts, (4, 5, 3)), "crop": region, "at": start}

    def copied(rng, example, train):
        return pipeline.arrays(pieces(rng, example, train))

    options = {"rank": 3, "slice_axis": 2, "margin": 1, "batch_size": 4, "seed": 5}
    streams = [
        pipeline.train_batches(volumes, volumes.cases, record, threads=threads, **options, **more)
        for record in (pieces, copied)
        for threads, more in ((1, {}), (4, {}), (4, {"buffer": 1}))
    ]
    for _ in range(3):
        first, *others = [next(stream) for stream in streams]
        assert first["record"]["pieces"].shape == (4, 3, 4, 5, 3, 2)
        for other in others:
            assert_equal(first, other)


@pytest.mark.parametrize(
    ("usual", "odd"),
    [
        (np.zeros(1), np.zeros(2)),
        (np.zeros(1, np.float32), np.zeros(1)),
        (
            pipeline.Pieces(np.zeros((4, 1), np.float16), np.array([[1]]), (2,)),
            pipeline.Pieces(np.zeros((4, 1), np.float64), np.array([[1]]), (2,)),
        ),
    ],
)
def test_examples_of_different_shapes_or_wider_types_are_refused(volumes, usual, odd):
    def uneven(rng, example, train):
        return {"crop": odd if example.case.id == "case_03" else usual}

    options = {"rank": 3, "slice_axis": 2, "margin": 0, "batch_size": 8, "seed": 0, "threads": 2}
    stream = pipeline.train_batches(volumes, volumes.split("train"), uneven, **options)
    with pytest.raises(ValueError, match=r"crop: float\d\d .* of case case_03\b"):
        next(stream)


# Slices of volumes.


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_whole_and_of_the_foreground(volumes, axis):
    case = volumes.cases[3]
    image = store.load_image(volumes, case)
    planes = np.moveaxis(image, axis, 0)
    seen = set()
    for seed in range(60):
        example = pipeline.open_example(volumes, case, 2, axis, 0, np.random.default_rng(seed))
        (at,) = [i for i, plane in enumerate(planes) if np.array_equal(plane, example.image)]
        seen.add(at)
        assert example.case is case
    first, end = case.foreground[axis]
    outer = (end - first) // 10
    assert seen == set(range(first + outer, end - outer))


def test_slices_of_a_case_without_a_foreground_are_of_the_whole(volumes):
    case = dataclasses.replace(volumes.cases[3], foreground=None)
    example = pipeline.open_example(volumes, case, 2, 0, 0, np.random.default_rng(0))
    assert example.image.shape == (24, 24, 2)


def test_slices_change_from_sample_to_sample(batches, volumes):
    (batch,) = batches(1, rank=2, batch_size=8)
    assert batch["record"]["crop"].shape == (8, 5, 5, 2)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_margin_is_removed_on_every_side(volumes, rank):
    case = volumes.cases[3]
    options = (case, rank, 2)
    whole = pipeline.open_example(volumes, *options, 0, np.random.default_rng(0))
    inner = pipeline.open_example(volumes, *options, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(inner.image, whole.image[(slice(3, -3),) * rank])


def test_images_are_opened_and_not_read(volumes):
    example = pipeline.open_example(volumes, volumes.cases[0], 3, 2, 0, np.random.default_rng(0))
    assert isinstance(example.image, np.memmap)


def test_a_missing_image_is_named_from_the_reader_threads(volumes, batches, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(volumes.path, folder)
    store.image_path(folder, "case_05").unlink()
    with pytest.raises(UserError, match=r"case_05\.npy: missing"):
        batches(2, dataset=dataclasses.replace(volumes, path=folder), threads=2)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_task_that_fails_names_the_case_and_keeps_its_exception(volumes, threads):
    """A case among those in training, from a reader thread and in validation."""

    def fails(rng, example, train):
        if example.case.id in ("case_03", "case_09"):
            raise ZeroDivisionError("of the task")
        return record(rng, example, train)

    options = {"rank": 3, "slice_axis": 2, "margin": 0, "batch_size": 4, "seed": 0}
    options["threads"] = threads
    for split, make, more in (
        ("train", pipeline.train_batches, {}),
        ("val", pipeline.validation_batches, {"repeats": 1}),
    ):
        stream = make(volumes, volumes.split(split), fails, **options, **more)
        with pytest.raises(ZeroDivisionError) as caught:
            list(itertools.islice(stream, 3))
        (note,) = [note for note in caught.value.__notes__ if "case_0" in note]
        assert note.startswith(f"in case case_0{3 if split == 'train' else 9}, ")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_a_disk_that_fails_is_one_line_with_the_case(volumes, error):
    def fails(rng, example, train):
        raise error

    options = {"rank": 3, "slice_axis": 2, "margin": 0, "batch_size": 4, "seed": 0, "threads": 2}
    stream = pipeline.train_batches(volumes, volumes.split("train"), fails, **options)
    words = r"case case_0\d: .*images/case_0\d\.npy cannot be read \((Input/output|MemoryError)"
    with pytest.raises(RunError, match=words):
        next(stream)
