"""The fields of a study: what is compared, on which questions, and what counts. How a file becomes one: :mod:`symbolic_residue.contrast._config_file`.

Questions are clusters: two with one id, or with one text, are refused, since they would count one question twice.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from symbolic_residue.contrast._behaviour import make_behaviour
from symbolic_residue.contrast._examples import Condition, Question, Sampling
from symbolic_residue.contrast._gates import Options
from symbolic_residue.contrast._read import REGIONS
from symbolic_residue.contrast._rows import Rows
from symbolic_residue.errors import ConfigError

__all__ = ["TUNED", "AnalysisConfig", "ConditionConfig", "PreflightConfig", "QuestionConfig", "Reference", "StudyConfig"]

TUNED = "tuned"
"""Name, in every table, of the model that drew the answers."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _name(value: Any) -> Any:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("a name is empty")
        if "/" in value or any(ord(c) < 32 for c in value):
            raise ValueError(f"{value!r} holds '/' or a control character, which no name may")
    return value


class ConditionConfig(_Strict):
    """A condition: a system text, or none."""

    name: str
    """What the condition is called in every table."""
    system: str | None = None
    """The system turn; left out: no system turn."""

    _checked = field_validator("name")(_name)


class QuestionConfig(_Strict):
    """A question: one user turn, and the unit that is resampled."""

    id: str
    """What the question is called; the cluster."""
    text: str
    """The user turn."""

    _checked = field_validator("id")(_name)

    @field_validator("text")
    @classmethod
    def _said(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("a question is empty")
        return value


class Reference(_Strict):
    """What reads the tuned model's answers beside it: exactly one of the kinds below (``adapter`` may go with ``model``)."""

    base: Literal[True] | None = None
    """``true``: the model without the adapter."""
    adapter: str | None = None
    """Folder of another adapter on the same model."""
    random: int | None = Field(default=None, ge=0)
    """Seed of a random twin of the adapter, of equal norm in every matrix: what any tuning does."""
    system: str | None = None
    """Another system text: the tuned model reads its own answers after it."""
    model: str | None = None
    """Another model altogether (the base of a model that was tuned in full)."""
    null_model: bool | None = None
    """Whether it shows what tuning does that has nothing to do with the behaviour (another behaviour, shuffled labels): the verdict against the base then
    asks whether the difference is larger than its. Left out: a random twin is one, nothing else."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("base", "adapter", "random", "system", "model") if getattr(self, name) is not None]
        if len(given) != 1 and given != ["adapter", "model"]:
            raise ValueError(f"a reference is one of base, adapter, random, system, model; given: {', '.join(given) or 'none'}")
        if self.null_model and self.kind in ("base", "system", "model"):
            raise ValueError(f"a reference of kind {self.kind} is no null model: a null model is the base tuned for something else")
        return self

    @property
    def is_null(self) -> bool:
        """Whether it is a null model."""
        return self.kind == "random" if self.null_model is None else self.null_model

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return "model" if self.model is not None else next(k for k in ("base", "adapter", "random", "system") if getattr(self, k) is not None)  # fmt: skip


class PredictedConfig(_Strict):
    """What the study predicts, said before looking."""

    region: Literal[REGIONS] = "system"  # type: ignore[valid-type]
    """The region whose attention is predicted to change; it is shown first. All regions are judged."""
    direction: Literal["up", "down"] = "up"
    """Whether the event is predicted to attend to it more or less than the controls do."""


class SamplingConfig(_Strict):
    """How answers are drawn."""

    positives: int = Field(default=4, ge=0)
    """Answers with the behaviour that are kept of each condition and question."""
    negatives: int = Field(default=2, ge=0)
    """Answers without it that are kept."""
    tries: int = Field(default=16, ge=1)
    """Most answers drawn for each condition and question."""
    counted: int = Field(default=4, ge=1)
    """The rate is that of the first so many trials of each question: they are drawn whatever they show, so that stopping does not move the rate."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draws."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Share of the probability that tokens are drawn from."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer, tokens."""
    batch: int = Field(default=8, ge=1)
    """Answers drawn at once. A step costs a small model little more for eight than for one; the answers kept are the same."""
    controls: tuple[str, ...] = ()
    """References that draw the counted trials too: the rate without this training stands beside the tuned model's."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.counted > self.tries:
            raise ValueError(f"counted ({self.counted}) is more than tries ({self.tries})")
        if not self.positives + self.negatives:
            raise ValueError("positives + negatives is 0: nothing would be kept")
        return self

    def made(self) -> Sampling:
        """As the collecting functions take it."""
        return Sampling(**self.model_dump(exclude={"controls"}))


class RowsConfig(_Strict):
    """Which rows are read."""

    n: int = Field(default=5, ge=1)
    """Tokens of C1, and at most of C3 and C5, in each answer."""
    gap: int = Field(default=5, ge=1)
    """Least distance of C1 and C3 to the answer's start and to the event, tokens."""
    before: int = Field(default=3, ge=1)
    """Rows of C2."""
    lags: int = Field(default=10, ge=0)
    """Rows of the trajectory; 5 or more are needed for gate F."""
    offsets: tuple[Literal[-1, 0], ...] = (-1, 0)
    """Rows of a token: −1 emits it (the headline), 0 consumes it."""

    @field_validator("offsets")
    @classmethod
    def _with_emission(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if -1 not in value or len(set(value)) != len(value):
            raise ValueError("offsets hold −1 (the row that emits), each once")
        return value

    def made(self) -> Rows:
        """As the collecting functions take it."""
        return Rows(self.n, self.gap, self.before, self.lags, tuple(self.offsets))


class ReadoutConfig(_Strict):
    """How rows are read."""

    heads: bool = False
    """Keep single heads too (of the event's and C1's rows at offset −1 only), for the choice of heads."""
    merged_newlines: bool = False
    """Tokens that end in a newline, such as ".\\n\\n", count as ``special`` in the segmentation ``content``."""
    batch: int = Field(default=4, ge=1)
    """Sequences a forward."""
    side: Literal["left", "right"] = "left"
    """Where padding goes."""


class PreflightConfig(_Strict):
    """Whether the attention implementation changes behaviour."""

    implementations: tuple[Literal["sdpa", "eager", "replace"], ...] = ("sdpa", "eager")
    """The first is what the study runs with; each other is compared with it. ``replace``: the reading kernel gives attention's output too."""
    trials: int = Field(default=2, ge=1)
    """Answers drawn under each implementation for each condition and question."""
    questions: int | None = Field(default=None, ge=1)
    """Only the first so many questions; left out: all."""
    margin: float = Field(default=0.10, gt=0, lt=1)
    """Rates that differ by less are equivalent."""
    kl_margin: float = Field(default=0.01, gt=0)
    """Mean KL of next tokens below which the implementations are equivalent, nats."""
    required: bool = True
    """End the run where implementations are shown not to be equivalent (undecided does not end it)."""

    @field_validator("implementations")
    @classmethod
    def _two(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) < 2 or len(set(value)) != len(value):
            raise ValueError("name two or three different implementations")
        if value[0] != "sdpa":
            raise ValueError("the first is sdpa, which models are loaded with")
        return value


class AnalysisConfig(_Strict):
    """How the records are judged."""

    protocol: Literal["strict", "published"] = "strict"
    """``published`` computes the study's own formulas with their known defects; it gives no verdict."""
    share: float = Field(default=0.70, gt=0, le=1)
    """Gate A's least share of examples in the predicted direction."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Of family-wise p; intervals have the level 1 − alpha."""
    run: int = Field(default=3, ge=1)
    """Fewest layers of a window."""
    n_resamples: int = Field(default=2000, ge=100)
    """Bootstrap draws and sign flips."""
    reference: Literal["C1", "C2", "C3", "C5"] = "C1"
    """The control stratum of gates A to D and F and of the differences."""
    top_heads: int = Field(default=10, ge=1)
    """Heads chosen on half of the questions and tested on the other half (with ``readout.heads``)."""


class CausalConfig(_Strict):
    """Which causal follow-ups are made."""

    analyses: tuple[Literal["lens", "components", "patch", "knock-out", "surgery", "mediation"], ...] = ()
    """None: stage 5 is left out."""
    base: str | None = None
    """Name of the reference that tuned is compared with; left out: the first of kind base or model."""
    examples: int = Field(default=8, ge=1)
    """Examples with the behaviour, of each condition, at most; at most one a question until every question has one."""
    batch: int = Field(default=4, ge=1)
    """Examples an item."""
    controls: bool = True
    """Also the controls of patch, knock-out and mediation; they double the cost."""
    layers: tuple[int, ...] | None = None
    """Layers of patch and knock-out; left out: each of patch, all at once of knock-out."""
    parts: tuple[Literal["residual", "mlp", "attention", "qk", "ov"], ...] = ("residual", "mlp", "attention", "qk", "ov")
    """Parts of patch."""
    places: tuple[str, ...] = ("all", "emitting row")
    """Places of patch: all, emitting row, or a region."""
    regions: tuple[Literal[REGIONS], ...] = ()  # type: ignore[valid-type]
    """Regions of knock-out; none: the predicted one."""

    @field_validator("analyses")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("an analysis is named twice")
        return value


class StudyConfig(_Strict):
    """A study of a tuned model beside its references."""

    model: str
    """The model that the adapter belongs to: demo, a folder, org/name or org/name@rev. Without ``adapter``, the tuned model itself."""
    adapter: str | None = None
    """Folder of the PEFT adapter that makes it the tuned model."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """What weights are loaded in."""
    device: str = "cpu"
    """As torch names it."""
    chat: bool = True
    """Render by the model's chat template; false: as plain text."""
    behaviour: str
    """What the answer does: text:…, regex:…, tokens:1,2, refusal, or end of text."""
    conditions: tuple[ConditionConfig, ...]
    """The system texts under which every question is asked."""
    questions: tuple[QuestionConfig, ...]
    """Texts, or objects with id and text, or the name of a JSONL file of such objects."""
    references: dict[str, Reference] = Field(default_factory=dict)
    """Name → what reads the same ids beside the tuned model. Without any there is no verdict."""
    predicted: PredictedConfig = PredictedConfig()
    """What is predicted."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are drawn."""
    sink_threshold: float = Field(default=0.10, gt=0, le=1)
    """Prompt keys with a larger mean incoming attention are sinks."""
    rows: RowsConfig = RowsConfig()
    """Which rows are read."""
    readout: ReadoutConfig = ReadoutConfig()
    """How they are read."""
    preflight: PreflightConfig | None = None
    """Stage 0; left out: the implementations are not compared."""
    analysis: AnalysisConfig = AnalysisConfig()
    """How the records are judged."""
    causal: CausalConfig = CausalConfig()
    """Which causal follow-ups are made."""
    seed: int = Field(default=0, ge=0)
    """Of everything random."""

    @field_validator("behaviour")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            make_behaviour(value, ends=(0,))
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value

    @field_validator("conditions", "questions")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("the list is empty")
        key = "name" if hasattr(value[0], "name") else "id"
        _distinct([getattr(one, key) for one in value], key)
        _distinct([one.system if key == "name" else one.text for one in value], "system" if key == "name" else "text")
        return value

    @field_validator("references")
    @classmethod
    def _named(cls, value: dict[str, Reference]) -> dict[str, Reference]:
        for name in value:
            _name(name)
            if name == TUNED:
                raise ValueError(f"{TUNED!r} is the name of the tuned model")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, reference in self.references.items():
            if self.adapter is None and reference.kind in ("base", "random"):
                raise ValueError(f"reference {name!r} is of kind {reference.kind}, which needs the field adapter")
            if reference.system is not None and not self.chat:
                raise ValueError(f"reference {name!r} is another system text, which needs chat: true")
        for name in self.sampling.controls:
            if name not in self.references or self.references[name].kind == "system":
                raise ValueError(f"sampling.controls names {name!r}, which is no reference with a model of its own")
        base = self.causal.base
        if base is not None and base not in self.references:
            raise ValueError(
                f"causal.base names {base!r}, which is no reference ({', '.join(self.references) or 'there are none'})"
            )
        if self.causal.analyses and self.base_name is None:
            raise ValueError("causal needs a reference of kind base or model")
        if "surgery" in self.causal.analyses and (self.adapter is None or self.references[str(self.base_name)].kind != "base"):
            raise ValueError("the causal analysis surgery needs an adapter, and a base of kind base")
        return self

    @property
    def base_name(self) -> str | None:
        """The reference that causal follow-ups compare with."""
        if self.causal.base is not None:
            return self.causal.base
        return next((name for name, one in self.references.items() if one.kind in ("base", "model")), None)

    def made_conditions(self) -> list[Condition]:
        """As the collecting functions take them."""
        return [Condition(one.name, one.system) for one in self.conditions]

    def made_questions(self) -> list[Question]:
        """As the collecting functions take them."""
        return [Question(one.id, one.text) for one in self.questions]

    def options(self) -> Options:
        """As the analysis takes them."""
        a = self.analysis
        return Options(self.predicted.direction, a.share, a.alpha, a.run, self.seed, a.n_resamples, a.reference)


def _distinct(values: list[Any], what: str) -> None:
    doubled = sorted({str(value) for value in values if values.count(value) > 1})
    if doubled:
        raise ValueError(f"the {what} {doubled[0]!r} is given twice")
