"""All checks of the zoo on one model of each family of timm and torchvision. All models: python tests/sweep.py"""

from __future__ import annotations

import pytest
from zoo.catalog import Model, one_of_each_family
from zoo.checks import check


@pytest.mark.filterwarnings("ignore")  # the libraries warn about themselves
@pytest.mark.parametrize("model", one_of_each_family(), ids=str)
def test_one_of_each_family(model: Model) -> None:
    record = check(model)
    assert ("refused" in record) == model.is_transformer
