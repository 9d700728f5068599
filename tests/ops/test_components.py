"""Principal components against scikit-learn's."""

import numpy as np
import torch
from sklearn.decomposition import PCA
from small_models import generator

from mim.ops.components import PrincipalComponents


def vectors():
    mixing = torch.randn(6, 6, generator=generator(1))
    return torch.randn(200, 6, generator=generator(2)) @ mixing + 3


def test_components_are_scikit_learns_but_for_their_signs():
    found, theirs = PrincipalComponents.fit(vectors(), 3), PCA(3).fit(vectors().double().numpy())
    np.testing.assert_allclose(found.share_K, theirs.explained_variance_ratio_, rtol=1e-9)
    ours_M3, theirs_M3 = found(vectors()).numpy(), theirs.transform(vectors().double().numpy())
    signs = np.sign((ours_M3 * theirs_M3).sum(axis=0))
    np.testing.assert_allclose(ours_M3, signs * theirs_M3, atol=1e-8)
    assert (found.axes_CK.abs().amax(dim=0) == found.axes_CK.amax(dim=0)).all()  # the largest entry is positive


def test_vectors_that_are_all_alike_have_coordinates_of_zero():
    found = PrincipalComponents.fit(torch.ones(5, 4), 3)
    assert found(torch.ones(2, 4)).abs().max() == 0
    assert found.share_K.tolist() == [0, 0, 0]
