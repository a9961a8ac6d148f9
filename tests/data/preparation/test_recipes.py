"""The built-in recipes."""

from __future__ import annotations

from ssl3d.data.preparation.recipes import RECIPES


def test_recipes_are_consistent():
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert recipe.rank == (2 if name in ("retina", "picture") else 3)
        assert recipe.size is None or len(recipe.size) == recipe.rank
        assert recipe.spacing is None or recipe.size is None


def test_the_papers_cube_is_a_recipe():
    assert RECIPES["brats"].size == RECIPES["ukb"].size == RECIPES["pancreas"].size == (128,) * 3
    assert RECIPES["retina"].size == (224, 224)
