"""Keep a finished run's numbers: `python benchmarks/publish.py RUN NAME`.

Writes `benchmarks/results/NAME.json`: the run's result and its validation curve against wall-clock.
"""

import json
import sys
from pathlib import Path

from runs import finished_run, write_json


def publish(run: Path, name: str) -> Path:
    """Collect result.json, evaluation-…-shuffled.json and the validations in log.jsonl."""
    result = finished_run(run)
    config = result["config"]
    steps = len(result["test"]["mean"]["loss"]) - 1
    test_set = f"seed{config['seed']}-steps{steps}-tasks{config['test_tasks']}"
    shuffled = run / f"evaluation-{test_set}-shuffled.json"
    if shuffled.exists():
        result["test_with_shuffled_support_labels"] = json.loads(shuffled.read_text())["test"]
    return write_json(f"{name}.json", result)


if __name__ == "__main__":
    print(publish(Path(sys.argv[1]), sys.argv[2]))
