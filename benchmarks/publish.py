"""Keep a finished run's numbers: `python benchmarks/publish.py RUN NAME`.

Writes `benchmarks/results/NAME.json`: the run's result and its validation curve against wall-clock.
The run folder's own path stays out, so that the file is the same wherever it was made.
"""

import json
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def publish(run: Path, name: str) -> Path:
    """Collect result.json, evaluation-…-shuffled.json and the validations in log.jsonl."""
    result = json.loads((run / "result.json").read_text())
    result["config"].pop("run", None)
    lines = [
        json.loads(line, parse_constant=str)
        for line in (run / "log.jsonl").read_text().splitlines()
    ]
    result["validation_curve"] = [
        {
            "outer_step": line["step"],
            "seconds": line["seconds"],
            **{metric: values[-1] for metric, values in line["validation"]["mean"].items()},
        }
        for line in lines
        if "validation" in line
    ]
    config = result["config"]
    steps = len(result["test"]["mean"]["loss"]) - 1
    test_set = f"seed{config['seed']}-steps{steps}-tasks{config['test_tasks']}"
    shuffled = run / f"evaluation-{test_set}-shuffled.json"
    if shuffled.exists():
        result["test_with_shuffled_support_labels"] = json.loads(shuffled.read_text())["test"]
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return path


if __name__ == "__main__":
    print(publish(Path(sys.argv[1]), sys.argv[2]))
