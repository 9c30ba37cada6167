"""A setting that the file stores stays, zero included; the architecture fills in the others."""

from bncheck.evaluation.models.architecture import completed
from bncheck.subjects.layer import BatchNormLayer, Known, Setting, stored

ARCHITECTURE = BatchNormLayer(
    "bn", "", stored("BatchNorm2d"), 3, eps=stored(1e-3), momentum=stored(0.1), affine=stored(True)
)


def test_a_stored_zero_is_no_gap() -> None:
    own = BatchNormLayer(
        "bn", "", stored("BatchNorm2d"), 0, eps=stored(0.0), momentum=stored(0.0), affine=stored(False)
    )
    assert completed(own, ARCHITECTURE) == own


def test_what_is_not_stored_comes_from_the_architecture() -> None:
    layer = completed(BatchNormLayer("bn", "", stored("BatchNorm2d"), None), ARCHITECTURE)
    assert layer.num_features == 3
    assert layer.eps == Setting(1e-3, Known.ARCHITECTURE)
    assert layer.momentum == Setting(0.1, Known.ARCHITECTURE)
