"""Shared by all tests: one thread per worker, a seed of its own for each test, and the list of the slow tests."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; read where they are defined

torch.set_num_threads(1)

# Hypothesis draws the same few examples each time; --hypothesis-profile thorough draws many others.
settings.register_profile(
    "few", max_examples=60, stateful_step_count=12, deadline=None, database=None, derandomize=True
)
settings.register_profile("thorough", max_examples=2000, stateful_step_count=20, deadline=None, database=None)
settings.load_profile("few")


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# Regular expressions for the beginning of a test's name. `pytest` leaves these tests out, `pytest -m slow` runs them.
# Each repeats, on more networks or settings, what a test of the default run shows.
SLOW = (
    r"tests/surgery/test_invariants\.py::.*\[(timm|torchvision):(?!resnet18\]|test_convnext\])",
    r"tests/surgery/test_survival\.py::test_compile_.*\[(?!own:concat_net\])",
    r"tests/surgery/test_survival\.py::test_(pickle_into|onnx)_.*\[(?!own:conv_mixer)",
    r"tests/surgery/test_survival\.py::test_an_exported_.*\[(?!own:concat_net|own:conv_mixer).*-True\]",
    r"tests/surgery/test_survival\.py::test_inductor_",
    r"tests/surgery/test_faults\.py::.*\[(own:concat_net|timm:resnet18)\]",
    r"tests/training/test_distributed\.py::test_a_killed_process_",
    r"tests/training/test_monitor\.py::test_a_compiled_model_.*\[aot_eager\]",
    r"tests/training/test_distributed\.py::test_two_ranks_.*\[fsdp\]",
    r"tests/ops/test_masks\.py::test_the_mask_is_the_same_in_every_memory_layout\[kernels-shape[12]-",
    r"tests/ops/test_drop_block\.py::test_a_thousand_scheduled_steps_.*\[(inductor|aot_eager-0|.*'per_channel')",
    r"tests/ops/test_reference\.py::test_injected_resnet_.*\[(timm:resnet18|torchvision:resnet50)-",
    r"tests/anatomy/test_stages\.py::test_stages_of_every_network\[torchvision:(resnet101|vgg16_bn|wide_resnet50_2)\]",
    r"tests/anatomy/test_stages\.py::test_stages_do_not_depend_on_the_size_of_the_image\[.*-pixels[02]\]",
    # All but the families that are the only one of their kind, and two refused transformers.
    r"tests/test_zoo\.py::test_one_of_each_family\[(?!timm:(botnet26t|csatv2|dpn48b|edgenext|focalnet|ghostnetv2|hgnetv2"
    r"|lcnetv2|levit_|nextvit|swin_s3|tiny_vit|vit_srelpos)|torchvision:(raft|ssdlite))",
    r"tests/integrations/test_transformers\.py::test_an_interrupted_.*\[2\]",
    r"tests/plot/test_plot\.py::test_the_plan_of_every_block\[.*hrnet",
    r"tests/examples/test_examples\.py::test_distributed_in_one_process\[fsdp\]",
    r"tests/examples/test_examples\.py::test_it_trains_.*\[(detection-fasterrcnn|segmentation-(fcn|lraspp))_",
    r"tests/examples/test_finetune\.py::test_(bad_checkpoint_at_the|classifiers_of_torchvision|default_run|learns)",
    r"tests/examples/test_notebook\.py::test_it_runs",
    r"tests/examples/test_pages\.py::test_pictures",
    r"tests/examples/test_peers\.py::test_a_claim_holds\[.*is compiled again",
    r"tests/examples/test_regularizers\.py::test_all_settings_",
    r"tests/examples/test_resume\.py::.*\[(cifar100|detection|finetune with|segmentation|with_transformers)",
)

ROOT = Path(__file__).parents[1]
UNMATCHED = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)  # before -m and -k leave tests out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unmatched = set(SLOW)
    for item in items:
        matching = {expression for expression in SLOW if re.match(expression, item.nodeid)}
        unmatched -= matching
        if matching and "exhaustive" not in item.keywords:
            item.add_marker("slow")
    files = {item.nodeid.partition("::")[0] for item in items}
    whole = not any("::" in argument for argument in config.args) and not config.getoption("lf", False)
    config.stash[UNMATCHED] = [
        expression
        for expression in sorted(unmatched)
        if not (file := ROOT / expression.partition("::")[0].replace("\\", "")).is_file()
        or (whole and str(file.relative_to(ROOT)) in files)
    ]


@pytest.fixture
def unmatched(pytestconfig: pytest.Config) -> list[str]:
    """The expressions in SLOW without a file, or without a test in a file that was collected as a whole."""
    return pytestconfig.stash[UNMATCHED]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
