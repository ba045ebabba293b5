"""One model of every family of timm and torchvision through all checks of the zoo; all models: python tests/sweep.py"""

from __future__ import annotations

import pytest
from zoo.catalog import Model, one_of_each_family
from zoo.checks import check


@pytest.mark.filterwarnings("ignore")  # what the libraries warn of is theirs
@pytest.mark.parametrize("model", one_of_each_family(), ids=str)
def test_one_of_each_family(model: Model) -> None:
    record = check(model)
    assert ("refused" in record) == model.is_transformer
