import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl3d.tasks import retrieval

other_view = jax.jit(retrieval.other_view)


def other_view_by_hand(similarity, subject, valid):
    losses, hits, chances = [], [], []
    for i in range(len(similarity)):
        other = i + 1 if i % 2 == 0 else i - 1
        rivals = [
            j
            for j in range(len(similarity))
            if subject[j // 2] != subject[i // 2] and valid[j // 2]
        ]
        row = similarity[i].astype(float)
        losses.append(-row[other] + np.log(np.exp(row[[other, *rivals]]).sum()))
        hits.append(all(row[other] > row[j] for j in rivals))
        chances.append(1 / (1 + len(rivals)))
    return np.reshape(losses, (-1, 2)), np.reshape(hits, (-1, 2)), np.reshape(chances, (-1, 2))


@pytest.fixture
def batch():
    """Similarities of six volumes, two of one subject, one of them padding."""
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(12, 12)).astype(np.float32)
    similarity[np.arange(12), np.arange(12) ^ 1] += 1.5
    return similarity, {"subject": np.array([4, 2, 4, 9, 5, 5]), "valid": np.arange(6) != 5}


def test_the_other_view_is_sought_among_the_views_of_other_subjects(batch):
    similarity, targets = batch
    loss, metrics = other_view(similarity, targets)
    losses, hits, chances = other_view_by_hand(similarity, **targets)
    np.testing.assert_allclose(loss, losses.mean(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(metrics["accuracy"][0], hits.sum(axis=1))
    np.testing.assert_allclose(metrics["chance"][0], chances.sum(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"][1], 2)
    assert 0 < hits.sum() < 12


def test_own_subject_and_padding_have_no_say(batch):
    similarity, targets = batch
    before, _ = other_view(similarity, targets)
    moved = similarity.copy()
    moved[0:2, 4:6] += 3  # the subject of volumes 0 and 2
    moved[:, 10:] += 3  # padding
    moved[np.arange(12), np.arange(12)] += 3  # a view with itself
    moved[10:] = similarity[10:]
    after, _ = other_view(moved, targets)
    np.testing.assert_array_equal(before[:5], after[:5])


def test_equal_similarities_find_nothing(batch):
    _, targets = batch
    loss, metrics = other_view(jnp.ones((12, 12)), targets)
    assert metrics["accuracy"][0].sum() == 0
    np.testing.assert_allclose(loss[0], np.log(1 + 2 * 3), rtol=1e-5)


def collected(count, size=5, seed=0):
    rng = np.random.default_rng(seed)
    near = rng.normal(size=(count, 1, size)) + 0.4 * rng.normal(size=(count, 2, size))
    return {"embeddings": near, "histogram": rng.normal(size=(count, 2, 7))}


def test_score_asks_for_the_own_original_among_the_whole_pool():
    data, subjects = collected(20), np.arange(20)
    result = retrieval.score(data, subjects, np.zeros(20, int), pool=32)
    for name, key in (("accuracy", "embeddings"), ("accuracy_histogram", "histogram")):
        originals, transformed = data[key][:, 0], data[key][:, 1]
        distance = ((transformed[:, None] - originals) ** 2).sum(-1)
        hits, count = result[name]
        np.testing.assert_array_equal(hits, distance.argmin(axis=1) == np.arange(20))
        np.testing.assert_array_equal(count, 1)
    assert 0 < result["accuracy"][0].sum() < 20
    np.testing.assert_allclose(result["chance"][0], 1 / 20)


def test_score_does_not_depend_on_the_order_of_the_cases():
    data, subjects = collected(20), np.arange(20)
    order = np.random.default_rng(1).permutation(20)
    plain = retrieval.score(data, subjects, np.zeros(20, int), pool=20)
    shuffled = retrieval.score(
        {name: values[order] for name, values in data.items()},
        subjects[order],
        np.zeros(20, int),
        pool=20,
    )
    for name in plain:
        np.testing.assert_array_equal(plain[name][0][order], shuffled[name][0])


def line(places):
    """Embeddings on a line: originals at `places`, the transformed ones a quarter further on."""
    places = np.asarray(places, float)[:, None, None]
    return {
        name: np.concatenate([places, places + 0.25], 1) for name in ("embeddings", "histogram")
    }


def test_a_pool_holds_one_case_of_each_of_so_many_subjects():
    subjects, repeats = np.array([0, 0, 1, 2, 3, 4] * 2), np.repeat([0, 1], 6)
    for pool, size in ((4, 4), (32, 5)):
        result = retrieval.score(line(range(12)), subjects, repeats, pool)
        np.testing.assert_array_equal(result["accuracy"][0], 1)
        np.testing.assert_allclose(result["chance"][0], 1 / size)


def test_fellow_eyes_and_other_repeats_are_no_rivals():
    subjects, repeats = np.array([0, 0, 1, 2, 3, 4] * 2), np.repeat([0, 1], 6)
    # Nearest to case 0 is its fellow eye, to the others somebody else's original of repeat 1.
    places = [0, 0.25, 1, 2, 3, 4, 9, 8, 2.25, 3.25, 4.25, 1.25]
    result = retrieval.score(line(places), subjects, repeats, pool=32)
    np.testing.assert_array_equal(result["accuracy"][0][:6], 1)
    nearer = retrieval.score(line(places), subjects, np.zeros(12, int), pool=32)
    assert nearer["accuracy"][0][3:6].sum() == 0  # as they would be in the same repeat


def test_constant_embeddings_score_nothing():
    data = {"embeddings": np.ones((10, 2, 4)), "histogram": np.ones((10, 2, 4))}
    result = retrieval.score(data, np.arange(10), np.zeros(10, int), pool=8)
    assert result["accuracy"][0].sum() == 0
    assert result["accuracy_histogram"][0].sum() == 0
    np.testing.assert_allclose(result["chance"][0], 1 / 8)


def test_a_validation_set_of_one_subject_has_no_rivals_and_no_hits():
    result = retrieval.score(collected(3), np.zeros(3, int), np.zeros(3, int), pool=32)
    assert result["accuracy"][0].sum() == 0
    np.testing.assert_array_equal(result["chance"][0], 1)
