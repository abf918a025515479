"""The README's code blocks run, in order, in one namespace, as a reader would run them."""

import re
from pathlib import Path

import jax
import numpy as np

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run():
    """And what they train has learned something."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    namespace: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, str(README), "exec"), namespace)
    assert np.isfinite(namespace["value"])
    assert namespace["outcome"].best_step in (100, 200)


def test_commands_exist():
    """The make targets and the experiments that the README names are there."""
    text = README.read_text()
    makefile = (README.parent / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", text, re.MULTILINE))
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    from innerloop.experiments.train import EXPERIMENTS

    (named,) = re.findall(r"innerloop train ([\w|]+)`", text)[:1]
    assert set(named.split("|")) == set(EXPERIMENTS)
