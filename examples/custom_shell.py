"""A shell of your own in about forty lines: does the model's confidence survive a trailing space?

Run: python examples/custom_shell.py
With a run folder and a report: residue shell custom examples/custom_shell.py:TrailingSpaceShell "The mill stands where the"
"""

from dataclasses import dataclass

import polars as pl
import torch

from symbolic_residue import build_prompt, open_model, ShellBase
from symbolic_residue.instrument import collate
from symbolic_residue.shells import judge, Progress, quiet, Verdict, verdict_frame
from symbolic_residue.stats import bootstrap_mean


@dataclass(frozen=True)
class Findings:
    verdict: Verdict

    def tables(self) -> dict[str, pl.DataFrame]:
        return {"verdicts": verdict_frame([self.verdict])}


class TrailingSpaceShell(ShellBase[list[float], Findings]):
    """Stress: a space after the prompt. Control: the prompt as it is. Failure: the top probability falls."""

    name = "trailing-space"
    operations = ("READ", "SPACE", "COMPARE")

    def _top(self, text: str) -> float:
        prompt = build_prompt(self.tokenizer, text)
        logits = self.instrument.run(collate([prompt]))["logits"][0, -1]
        return float(torch.softmax(logits.double(), -1).max())

    def run(self, input_text: str, *, seed: int = 0, progress: Progress = quiet) -> list[float]:
        starts = ["", "Well, ", "Note: ", "Listen: ", "Again: ", "So: ", "Now: ", "Look: "]
        return [self._top(f"{s}{input_text} ") - self._top(f"{s}{input_text}") for s in starts]

    def analyze_residue(self, residue: list[float], *, progress: Progress = quiet) -> Findings:
        value = bootstrap_mean(residue, seed=0)
        same = bootstrap_mean([0.0] * len(residue), seed=0)
        return Findings(
            judge(
                self.name, "loss of confidence", quantity="change of the top probability", unit="probability", value=value,
                control="the prompt without the space", control_value=same, criterion=-0.2, direction="below", criterion_source="this example",
            )
        )  # fmt: skip


if __name__ == "__main__":
    shell = TrailingSpaceShell(loaded=open_model("demo"))
    found = shell.analyze_residue(shell.run("The mill stands where the river turns. The mill stands where the"))
    print(found.verdict.outcome, found.verdict.value)
