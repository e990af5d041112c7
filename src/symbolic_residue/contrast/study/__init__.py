"""A whole study, stage by stage, into a folder of items: what ``residue contrast run`` does.

::

    config = load_config("contrast.yaml")
    with RunFolder.create("run", kind="contrast", …) as run, Models(config) as models:
        run_stages(Study(config, run, models))
"""

from symbolic_residue.contrast._config import AnalysisConfig, Reference, StudyConfig, TUNED
from symbolic_residue.contrast._config_file import load_config, read_config
from symbolic_residue.contrast.study._analyse import judge, Judged
from symbolic_residue.contrast.study._generate import check_prompts, saved_examples
from symbolic_residue.contrast.study._preflight import equivalence
from symbolic_residue.contrast.study._resume import changes, continued_config
from symbolic_residue.contrast.study._run import run_stages
from symbolic_residue.contrast.study._study import Folder, items_row, Models, STAGES, Study
from symbolic_residue.contrast.study._summary import verdict_rows

__all__ = [
    "STAGES",
    "TUNED",
    "AnalysisConfig",
    "Folder",
    "Judged",
    "Models",
    "Reference",
    "Study",
    "StudyConfig",
    "changes",
    "check_prompts",
    "continued_config",
    "equivalence",
    "items_row",
    "judge",
    "load_config",
    "read_config",
    "run_stages",
    "saved_examples",
    "verdict_rows",
]
