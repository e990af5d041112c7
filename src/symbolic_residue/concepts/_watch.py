"""Every token of a text scored against the concepts' directions, while the text is generated.

1. The score of a token is of the row that *reads* it: ``resid_post.L`` at the token's own position. A generation's step reads the row that chose its token,
   which is the row of the token before; so a token's score comes one step after it, and one step more is run than tokens are asked for.
2. ``z = (x · v − mean) / sd`` with the mean and sd of neutral tokens (``_watch_reference``). Prompt tokens are scored too, and marked.
3. Beside each z, at the same token: the share of directions of permuted labels, each by its own reference, that reach it.
4. The first token and those of a chat template have no score (the attention sink is no text). A token that the model never read (the last one of a full
   context) has none either. An end token is no part of the text.
5. A track is a concept in one layer: those named, or each ranked concept's layer of the quality report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from symbolic_residue.concepts._record import read_record
from symbolic_residue.concepts._study import ConceptRun
from symbolic_residue.concepts._watch_reference import counted_positions, LayerReference
from symbolic_residue.concepts._watch_verdict import reaches, THRESHOLD
from symbolic_residue.errors import ConfigError, PromptError, ReadError
from symbolic_residue.instrument import collate, continuation, stream

if TYPE_CHECKING:
    from symbolic_residue.instrument import Instrument
    from symbolic_residue.prompts import Prompt

__all__ = ["Track", "WatchedText", "WatchedToken", "Watcher", "choose_tracks", "watch"]

Array = NDArray[np.float64]


class Track(NamedTuple):
    """A concept in one layer."""

    concept: str
    layer: int


@dataclass(frozen=True, eq=False)
class WatchedToken:
    """One token.

    Attributes:
        position: in its text, from 0.
        id: of the vocabulary; text: what it shows.
        generated: or of the prompt.
        z: ``[track]``; None for a token without a score.
        reached: ``[track]``: share of the controls with at least this z at this token.
    """

    position: int
    id: int
    text: str
    generated: bool
    z: Array | None
    reached: Array | None


@dataclass(eq=False)
class WatchedText:
    """A prompt and what was generated after it.

    Attributes:
        prompt: number of the prompt; draw: of its draws.
        tokens: prompt and generated, in order.
        text: the generated text.
        stop: why it ended: ``eos``, ``length``, ``context full`` or ``interrupted``.
        control_mean: ``[track, control]``: mean z of the controls over the generated tokens with a score.
        control_share: ``[track]``: mean over the controls of the share of those tokens with z ≥ ``THRESHOLD``.
    """

    prompt: int
    draw: int
    tokens: list[WatchedToken] = field(default_factory=list)
    text: str = ""
    stop: str = "interrupted"
    control_mean: Array | None = None
    control_share: Array | None = None

    def generated_z(self) -> Array:
        """``[token, track]``: generated tokens with a score."""
        found = [one.z for one in self.tokens if one.generated and one.z is not None]
        width = next((len(one.z) for one in self.tokens if one.z is not None), 0)
        return np.stack(found) if found else np.zeros((0, width))


def choose_tracks(run: ConceptRun, concepts: Sequence[str] | None = None, layers: Sequence[int] | None = None) -> tuple[Track, ...]:
    """What is watched.

    Args:
        run: of :func:`open_concept_run`.
        concepts: which; None is all that are ranked (with ``layers``: all).
        layers: every concept in each of these; None is each concept's layer of the quality report.

    Raises:
        ConfigError: an unknown concept or layer, or no layer and no quality report to take it from.
    """
    known = run.directions.concepts
    if concepts is not None and (unknown := [c for c in concepts if c not in known]):
        raise ConfigError(f"There is no concept {unknown[0]!r}.", todo=f"Concepts: {', '.join(known)}.")
    named = tuple(dict.fromkeys(concepts)) if concepts is not None else known
    if layers is not None:
        if wrong := [i for i in layers if i not in run.directions.layers]:
            raise ConfigError(
                f"There are no directions of layer {wrong[0]}.", todo=f"Layers: {', '.join(map(str, run.directions.layers))}."
            )
        return tuple(Track(concept, layer) for layer in dict.fromkeys(layers) for concept in named)
    report = read_record(run.folder, "quality.json")
    if report is None:
        raise ConfigError(
            "No layer was named, and there is no quality report to take it from.",
            todo=f"Name layers (--layers), or make the report: residue concepts report {run.folder}",
        )
    tracks = []
    for concept in named:
        one = report["concepts"][concept]
        if one["chosen"]["layer"] is not None and (one["ranked"] or concepts is not None):
            tracks.append(Track(concept, int(one["chosen"]["layer"])))
        elif concepts is not None:
            raise ConfigError(
                f"The quality report names no layer for {concept!r}.", why=str(one["chosen"]["rule"]), todo="Name layers."
            )
    if not tracks:
        raise ConfigError("No concept is ranked in the quality report.", todo="Name layers and concepts.")
    return tuple(tracks)


class Watcher:
    """Directions, controls and references of some tracks, ready to score rows.

    Args:
        run: whose directions.
        tracks: of :func:`choose_tracks`.
        references: of :func:`watch_reference`, of the tracks' layers.

    Raises:
        ConfigError: no track, or a concept for which no reference could be made.
    """

    def __init__(self, run: ConceptRun, tracks: Sequence[Track], references: dict[int, LayerReference]) -> None:
        if not tracks:
            raise ConfigError("There is nothing to watch.", todo="Name a concept and a layer.")
        self.tracks, self.references, self.folder = tuple(tracks), references, run.folder
        self.layers = tuple(sorted({track.layer for track in tracks}))
        self.at = [run.directions.concepts.index(track.concept) for track in tracks]
        for track, c in zip(tracks, self.at, strict=True):
            reference = references[track.layer]
            if not np.isfinite(reference.scores[:, c]).all() or not (reference.control_sd[c] > 0).all():
                raise ConfigError(
                    f"{track.concept!r} cannot be watched.",
                    why="Without one scenario no direction of it is left, so neutral tokens have no scores to compare with.",
                    todo="Give it tellings in more scenarios, or leave it out (--concepts).",
                )
        self._directions = {
            i: run.directions.vectors[i][[c for t, c in zip(tracks, self.at, strict=True) if t.layer == i]].astype(np.float64)
            for i in self.layers
        }
        self._places = {i: [k for k, t in enumerate(tracks) if t.layer == i] for i in self.layers}

    @property
    def n_controls(self) -> int:
        """Controls of a track."""
        return self.references[self.layers[0]].control.shape[1]

    def neutral(self) -> list[Array]:
        """Of each scenario ``[token, track]``: z of its neutral tokens, by the other scenarios."""
        by_layer = {i: self.references[i].neutral_z() for i in self.layers}
        n = self.references[self.layers[0]].n_units
        return [np.stack([by_layer[t.layer][u][:, c] for t, c in zip(self.tracks, self.at, strict=True)], axis=1) for u in range(n)]

    def score(self, hidden: dict[int, Array]) -> tuple[Array, Array]:
        """z of rows.

        Args:
            hidden: layer → ``[row, d_model]``: ``resid_post`` of the rows that read the tokens.

        Returns:
            ``[row, track]`` of the directions and ``[row, track, control]`` of their controls.

        Raises:
            ReadError: activations that are not finite.
        """
        n = len(next(iter(hidden.values())))
        z, control = np.zeros((n, len(self.tracks))), np.zeros((n, len(self.tracks), self.n_controls))
        for i in self.layers:
            h, reference, places = np.asarray(hidden[i], dtype=np.float64), self.references[i], self._places[i]
            if not np.isfinite(h).all():
                raise ReadError(f"resid_post.{i} is not finite.", todo="Look for overflow: load the model in float32 or bfloat16.")
            at = [self.at[k] for k in places]
            z[:, places] = (h @ self._directions[i].T - reference.mean[at]) / reference.sd[at]
            raw = np.einsum("rd,tkd->rtk", h, reference.control[at], optimize=True)
            control[:, places] = (raw - reference.control_mean[at]) / reference.control_sd[at]
        return z, control


@dataclass(eq=False)
class _Running:
    """One sequence under way."""

    text: WatchedText
    prompt: Prompt
    ids: list[int] = field(default_factory=list)
    sums: Array | None = None
    hits: Array | None = None
    n: int = 0

    def count(self, control: Array) -> None:
        """Controls ``[track, control]`` of a generated token."""
        self.sums = control if self.sums is None else self.sums + control
        hit = (control >= THRESHOLD).mean(-1)
        self.hits = hit if self.hits is None else self.hits + hit
        self.n += 1

    def finish(self, tokenizer: Any) -> WatchedText:
        self.text.text = continuation(tokenizer, self.prompt.ids, self.ids)
        if self.n and self.sums is not None and self.hits is not None:
            self.text.control_mean, self.text.control_share = self.sums / self.n, self.hits / self.n
        return self.text


def watch(
    instrument: Instrument,
    watcher: Watcher,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 40,
    draws: int = 1,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop_ids: Sequence[int] | None = None,
    batch_size: int = 8,
    on_token: Callable[[int, WatchedToken], None] | None = None,
) -> list[WatchedText]:
    """Generate after each prompt and score every token as it is read.

    Args:
        instrument: the model of the directions.
        watcher: what to score with.
        prompts: as the model reads them.
        max_new_tokens: at most so many a text.
        draws: texts a prompt; more than one needs a temperature.
        temperature, top_k, top_p, stop_ids: as for ``instrument.generate``.
        seed: draw ``j`` of prompt ``i`` is drawn with ``seed + i · draws + j``, whatever the batch.
        batch_size: sequences at a time.
        on_token: called with the text's number (``prompt · draws + draw``) and each of its tokens in order.

    Returns:
        ``draws`` texts a prompt, in order. After Ctrl-C those so far, the last ones with ``stop="interrupted"``.

    Raises:
        ConfigError: options out of range; several draws without a temperature.
        PromptError: no prompt, or one that fills the context.
        ReadError: activations that are not finite.
    """
    if not prompts:
        raise PromptError("There is no prompt to go on from.")
    if max_new_tokens < 1 or draws < 1 or batch_size < 1:
        raise ConfigError("max_new_tokens, draws and batch_size are whole numbers from 1 up.")
    if draws > 1 and temperature == 0:
        raise ConfigError(f"{draws} draws without a temperature are the same text.", todo="Give a temperature above 0.")
    limit = instrument.parts.max_context
    if long := [i for i, p in enumerate(prompts) if limit is not None and len(p) >= limit]:
        raise PromptError(
            f"Prompt {long[0]} has {len(prompts[long[0]])} tokens and leaves no room in the model's context of {limit}.",
            todo="Shorten the text.",
        )
    pairs = [(i, j) for i in range(len(prompts)) for j in range(draws)]
    found: list[WatchedText] = []
    for start in range(0, len(pairs), batch_size):
        some = [_Running(WatchedText(i, j), prompts[i]) for i, j in pairs[start : start + batch_size]]
        tell = None if on_token is None else lambda k, token, start=start: on_token(start + k, token)
        steps = stream(
            instrument,
            collate([one.prompt.ids for one in some], side="left"),
            max_new_tokens=max_new_tokens + 1,
            temperature=temperature, top_k=top_k, top_p=top_p,
            seed=[seed + start + k for k in range(len(some))] if temperature > 0 else None,
            stop_ids=stop_ids,
            reads=tuple(f"resid_post.{i}" for i in watcher.layers),
            prompt_rows=True,
        )  # fmt: skip
        stopped = False
        try:
            _follow(steps, some, watcher, instrument, max_new_tokens, tell)
        except KeyboardInterrupt:
            stopped = True
        finally:
            steps.close()
        found += [one.finish(instrument.loaded.tokenizer) for one in some if one.text.tokens]
        if stopped:
            if not found:
                raise KeyboardInterrupt
            break
    return found


def _follow(
    steps: Any,
    some: list[_Running],
    watcher: Watcher,
    instrument: Instrument,
    most: int,
    tell: Callable[[int, WatchedToken], None] | None,
) -> None:
    """Score the rows of each step; the row of a step reads the token of the step before."""
    tokenizer = instrument.loaded.tokenizer
    special = set(tokenizer.all_special_ids)
    width = max(len(one.prompt) for one in some)
    waiting: list[int | None] = [None] * len(some)

    def add(k: int, token: WatchedToken) -> None:
        some[k].text.tokens.append(token)
        if tell is not None:
            tell(k, token)

    for step in steps:
        hidden = {i: step.trace[f"resid_post.{i}"].double().cpu().numpy() for i in watcher.layers}
        chosen = step.ids.tolist()
        for k, one in enumerate(some):
            if step.number == 0:
                lead = width - len(one.prompt)
                z, control = watcher.score({i: h[k, lead:] for i, h in hidden.items()})
                counted = set(counted_positions(one.prompt))
                for at, (token, text) in enumerate(zip(one.prompt.ids, one.prompt.tokens, strict=True)):
                    scored = at in counted
                    reached = reaches(control[at], z[at]).mean(-1) if scored else None
                    add(k, WatchedToken(at, token, text, False, z[at] if scored else None, reached))
            elif waiting[k] is not None:
                token = int(waiting[k])  # type: ignore[arg-type]
                z, control = watcher.score({i: h[k] for i, h in hidden.items()})
                scored = token not in special
                if scored:
                    one.count(control[0])
                reached = reaches(control[0], z[0]).mean(-1) if scored else None
                one.ids.append(token)
                place = len(one.prompt) + len(one.ids) - 1
                add(k, WatchedToken(place, token, _shown(tokenizer, token), True, z[0] if scored else None, reached))
            waiting[k] = None
            stop = step.stops[k]
            if stop is None:
                waiting[k] = chosen[k]
            elif one.text.stop == "interrupted" and chosen[k] >= 0:
                one.text.stop = stop.reason
                if stop.reason == "context full" and len(one.ids) < most:  # chosen, and never read
                    one.ids.append(chosen[k])
                    place = len(one.prompt) + len(one.ids) - 1
                    add(k, WatchedToken(place, chosen[k], _shown(tokenizer, chosen[k]), True, None, None))


def _shown(tokenizer: Any, token: int) -> str:
    return tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
