"""The accuracy of a logistic regression on frozen features.

Shapes: M training samples, N held-out ones, D feature width.
"""

import warnings

from torch import Tensor

ITERATIONS = 2000


def logistic_accuracy(
    features_MD: Tensor, labels_M: Tensor, held_out_ND: Tensor, labels_N: Tensor, c: float = 1.0
) -> float:
    """Share of held-out samples that scikit-learn's LogisticRegression gets right; all tensors on the CPU.

    Features are standardised by the training samples; c is the inverse strength of the L2 penalty. Raises ValueError
    where it has not converged after 2,000 iterations.
    """
    from sklearn.exceptions import ConvergenceWarning  # a second to import, and only this needs it
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=ITERATIONS))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(features_MD.double().numpy(), labels_M.numpy())
        except ConvergenceWarning as error:
            raise ValueError(
                f"--c {c:g}: the logistic regression has not converged after {ITERATIONS:,} iterations; use a smaller c"
            ) from error
    return float(model.score(held_out_ND.double().numpy(), labels_N.numpy()))
