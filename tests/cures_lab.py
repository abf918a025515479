"""The cures of the command line, of loggers, and of places that cannot be written."""

from sites import Case

SMALL = (
    "from innerloop.lab.cli import main\n"
    "small = ('train sinusoid --steps 2 --batch 2 --validate-every 2 --validation-tasks 2 '\n"
    "    '--test-tasks 2 --per-call 2 --test-steps 1 --width 5').split()\n"
)
RUN = SMALL + "main([*small, '--run', 'run'])\n"
FILE = "(tmp_path / 'file').write_text('mine')\n"
NO_FOLDER = "place = tmp_path / 'place'\nplace.write_text('a file where the folder should be')\n"
PIPES = "import os, subprocess\nfrom pathlib import Path\n"
FOLDER = (
    "from PIL import Image\n"
    "from innerloop.lab.experiments.own_images import OwnImages\n"
    "folder = tmp_path / 'photographs'\n"
    "for i in range(6):\n"
    "    (folder / str(i)).mkdir(parents=True)\n"
    "    Image.fromarray(np.full((8, 8), i, np.uint8)).save(folder / str(i) / '0.png')\n"
)

CASES = [
    Case(
        "lab/experiments/own_images.py: the folder of the images",
        "OwnImages().splits()",
        (("--data FOLDER", "OwnImages(data=folder, size=8).splits()"),),
        given=FOLDER,
    ),
    Case(
        "checks.py: … needs the package",
        "optional_package('not_installed', 'this logger', extra='tensorboard')",
        (
            (
                "pip install 'innerloop[tensorboard]'",
                "from extras import REQUIREMENTS, packages\n"
                "assert 'tensorboardX' in packages('tensorboard')",
            ),
        ),
        given="from innerloop.checks import optional_package",
    ),
    Case(
        "arguments/requirement.py: … must be …",
        "GradientDescent(optax.sgd(0.1), steps=-1)",
        ("GradientDescent(..., steps=5)",),
    ),
    Case(
        "logging/json_lines.py: the log",
        "train(estimator, checkpoints=checkpoints, report=JsonLines(place / 'log.jsonl'))",
        (
            (
                "the same run with resume=True (--resume), once there is",
                "place.unlink()\ntrain(estimator, checkpoints=checkpoints, resume=True, "
                "report=JsonLines(place / 'log.jsonl'))",
            ),
            (
                ", or JsonLines(another_path)",
                "train(estimator, report=JsonLines(tmp_path / 'another' / 'log.jsonl'))",
            ),
        ),
        given=NO_FOLDER + "from innerloop.logging import JsonLines\n"
        "checkpoints = Checkpoints(tmp_path / 'run', every=1)",
        full=True,
    ),
    Case(
        "logging/json_lines.py: the log cannot be read",
        "JsonLines(Path('log.jsonl')).__enter__()",
        (
            (
                "rm -r log.jsonl",
                "subprocess.run(error.write.split(), check=True)\n"
                "with JsonLines(Path('log.jsonl')):\n    pass",
            ),
        ),
        given=PIPES + "from innerloop.logging import JsonLines\nos.mkfifo('log.jsonl')",
    ),
    Case(
        "storage/lock.py: the lock",
        "Lock(Path())",
        (("rm -r lock", "subprocess.run(error.write.split(), check=True)\nLock(Path()).close()"),),
        given=PIPES + "from innerloop.storage.lock import Lock\nos.mkfifo('lock')",
    ),
    Case(
        "storage/checkpoint.py: the checkpoints have a file",
        "train(estimator, checkpoints=checkpoints, resume=True)",
        (
            (
                "rm THAT_FILE, and the same run with resume=True (--resume)",
                "subprocess.run(['rm', strange], check=True)\n"
                "train(estimator, checkpoints=checkpoints, resume=True)",
            ),
        ),
        given=PIPES + "checkpoints = Checkpoints(tmp_path / 'run', every=1)\n"
        "train(estimator, checkpoints=checkpoints)\n"
        "strange = tmp_path / 'run' / 'pipe'\nos.mkfifo(strange)",
        full=True,
    ),
    Case(
        "logging/tensorboard.py: the events",
        "train(estimator, report=TensorBoard(place / 'events'))",
        (
            (
                "TensorBoard(another_folder)",
                "with TensorBoard(tmp_path / 'another') as logger:\n"
                "    train(estimator, report=logger)",
            ),
        ),
        given=NO_FOLDER + "from innerloop.logging import TensorBoard",
        full=True,
    ),
    Case(
        "storage/checkpoint.py: the checkpoints",
        "train(estimator, checkpoints=Checkpoints(place / 'run', every=1))",
        (
            (
                "the same run with resume=True (--resume), once there is: it goes on from the last "
                "checkpoint",
                "place.unlink()\n"
                "train(estimator, checkpoints=Checkpoints(place / 'run', every=1), resume=True)",
            ),
            (
                ". Or Checkpoints(another_folder)",
                "train(estimator, checkpoints=Checkpoints(tmp_path / 'another', every=1))",
            ),
        ),
        given=NO_FOLDER,
        full=True,
    ),
    Case(
        "lab/run_folder.py: the run folder",
        "RunFolder.begin(place / 'run', settings)",
        (
            (
                "the same command again, once there is (innerloop train goes on with --resume)",
                "place.unlink()\nRunFolder.begin(place / 'run', settings).close()",
            ),
            (
                ", or --run ANOTHER/FOLDER",
                "RunFolder.begin(tmp_path / 'another' / 'run', settings).close()",
            ),
        ),
        given=NO_FOLDER + "from innerloop.lab.run_folder import RunFolder\n"
        "settings = {'experiment': 'digits', 'config': {}}",
    ),
    Case(
        "lab/run_folder.py: this folder already holds",
        "RunFolder.begin(path, settings)",
        (
            ("--resume", "RunFolder.begin(path, settings, may_change=()).close()"),
            (", or --run run-2", "RunFolder.begin(Path('run-2'), settings).close()"),
        ),
        given="from innerloop.lab.run_folder import RunFolder\nfrom pathlib import Path\n"
        "path, settings = Path('run'), {'experiment': 'digits', 'config': {}}\n"
        "RunFolder.begin(path, settings).close()",
    ),
    Case(
        "lab/_own_run.py: there is a run",
        "own_run(Path('run')).__enter__()",
        (
            ("own_run(..., resume=True)", "with own_run(Path('run'), resume=True):\n    pass"),
            (", or own_run(another_folder, ...)", "with own_run(Path('another')):\n    pass"),
        ),
        given="from pathlib import Path\nfrom innerloop.lab import own_run\n"
        "with own_run(Path('run')):\n    pass",
    ),
    Case(
        "lab/run_folder.py: the run cannot be read",
        "RunFolder.open(Path('run')).read_config()",
        (
            (
                "innerloop train with this run's flags and --resume, which makes the file anew "
                "once config.json is deleted",
                "Path('run/config.json').unlink()\n"
                "with pytest.warns(UserWarning, match='without its config.json'):\n"
                "    main([*small, '--run', 'run', '--resume'])\n"
                "RunFolder.open(Path('run')).read_config()",
            ),
        ),
        given=RUN + "from pathlib import Path\nfrom innerloop.lab.run_folder import RunFolder\n"
        "import pytest\n"
        "Path('run/config.json').write_text('damaged')",
        full=True,
    ),
    Case(
        "lab/report/page.py: the report",
        "write_report(['run'], out=place / 'report.html')",
        (
            (
                "--out ANOTHER/FOLDER/report.html",
                "write_report(['run'], out='ANOTHER/FOLDER/report.html')",
            ),
        ),
        given=NO_FOLDER + RUN + "from innerloop.lab.report import write_report",
        full=True,
    ),
    Case(
        "lab/experiments/ranges.py: … is out of range",
        "refuse_out_of_range('inner_steps', -1, at_least(0, such_as=5))",
        (("--inner-steps 5", "refuse_out_of_range('inner_steps', 5, at_least(0, such_as=5))"),),
        given="from innerloop.arguments import at_least\n"
        "from innerloop.lab.experiments.ranges import refuse_out_of_range",
    ),
    Case(
        "lab/experiments/learned_optimizer.py: … holds a task",
        "OptimizerTraining(families=named, batch=1).parts()",
        (("--batch 2", "OptimizerTraining(families=named, batch=2).parts()"),),
        given="from innerloop.lab.experiments.learned_optimizer import OptimizerTraining\n"
        "from innerloop.tasks.optimization.suite import training_families\n"
        "named = tuple(family.name for family in training_families()[:2])",
        full=True,
    ),
    Case(
        "lab/experiments/learned_optimizer.py: families are",
        "named_families(('nothing',))",
        (
            (
                "--families quadratic noisy-quadratic",
                "named_families(tuple(error.write.split()[1:]))",
            ),
        ),
        given="from innerloop.lab.experiments.learned_optimizer import named_families",
        full=True,
    ),
]
