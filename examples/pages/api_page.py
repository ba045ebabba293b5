"""Makes the API page from the docstrings, with pdoc.

    pip install "dropblock-inject[docs,lightning,plot,transformers]"
    python examples/pages/api_page.py

The HTML goes to build/api/, or to the folder that is given. A warning of pdoc is an error.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, DictLoader, pass_context

import dropblock_inject

MODULES = (
    "dropblock_inject",
    *(f"dropblock_inject.{name}" for name in ("presets", "plot", "errors")),
    *(f"dropblock_inject.integrations.{name}" for name in ("lightning", "transformers")),
)
TEMPLATES = {
    "module.html.jinja2": """
{% extends "default/module.html.jinja2" %}
{% macro is_public(doc) %}{% if doc is shown %}true{% endif %}{% endmacro %}
{% macro docstring(doc) %}{% if doc.name != "__init__" %}{{ default_docstring(doc) }}{% endif %}{% endmacro %}
{% macro inherited(cls) %}
    {% for base, members in cls.inherited_members.items() if base[0].startswith("dropblock_inject") %}
        {% for m in members if m is shown %}
            <div id="{{ m.qualname }}" class="classattr">{{ member(m) }}</div>
        {% endfor %}
    {% endfor %}
{% endmacro %}
""",
    "custom.css": ".pdoc .signature.multiline .param { white-space: pre-wrap; }",  # a long one is wrapped
}


def is_shown(doc: Any) -> bool:
    """Whether the page has a name: a public one with a docstring of its own, not one of a base class.

    A constructor is shown where the docstring of its class has its arguments or attributes.
    """
    if doc.name == "__init__":
        owner = sys.modules[doc.modulename]
        for name in doc.qualname.split(".")[:-1]:
            owner = getattr(owner, name)
        return re.search("^(Args|Attributes):", inspect.getdoc(owner) or "", re.MULTILINE) is not None
    own_docstring = doc.obj.__doc__ if doc.kind in ("class", "function") else doc.docstring
    return bool(own_docstring) and not doc.name.startswith("_")


@pass_context
def to_markdown(context: Any, docstring: str) -> str:
    """As pdoc does it; and examples are blocks of code, whose lines of dashes are no rules."""
    from pdoc.render_helpers import to_markdown_with_context

    text = re.sub(r"^May import: .*$", "", docstring, flags=re.MULTILINE)
    text = to_markdown_with_context(context, text)
    return re.sub(r"(^>>> .*(?:\n.*\S.*)*)", _as_code, text, flags=re.MULTILINE)


def _as_code(example: re.Match[str]) -> str:
    return f"```pycon\n{example[0].replace('<BLANKLINE>', '')}\n```"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the API page from the docstrings.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/api"), help="(%(default)s)")
    folder = parser.parse_args(argv).folder
    import pdoc

    for module in MODULES:
        import_module(module)  # what other libraries warn of is not of this page
    version = f"dropblock-inject {dropblock_inject.__version__}"
    pdoc.render.configure(docformat="google", show_source=False, footer_text=version)
    env: Any = pdoc.render.env
    env.loader = ChoiceLoader([DictLoader(TEMPLATES), env.loader])
    env.tests["shown"] = is_shown
    env.filters["to_markdown"] = to_markdown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*MODULES, output_directory=folder)
    print(f"wrote {folder / 'dropblock_inject.html'}")


if __name__ == "__main__":
    main()
