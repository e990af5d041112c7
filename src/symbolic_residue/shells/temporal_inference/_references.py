"""Three texts of this project's own, one a genre, that get the same shifts as a control: nothing in them hangs on one span."""

from __future__ import annotations

__all__ = ["REFERENCES", "Genre"]

from typing import Literal

Genre = Literal["narrative", "factual", "list"]

REFERENCES: dict[str, str] = {
    "narrative": (
        "The ferry was late that evening, and Ines sat on a crate with her coat buttoned up. A boy sold her a paper cone of nuts. She ate them slowly and "
        "counted the lights on the far shore. When the horn sounded at last, the people stood up, took their bags, and pushed toward the rail. Nobody spoke. "
        "The water was black and calm, and the old pilot lifted one hand to greet them before he turned the wheel."
    ),
    "factual": (
        "A lighthouse has a lamp, a lens and a tower. The lens gathers the light of the lamp into a narrow beam, which can be seen from many miles away. "
        "Each tower has its own pattern of flashes, so that sailors know where they are. In former times keepers lived beside the lamp and trimmed it by hand; "
        "today most lamps are electric and are watched from an office on land. Fog still hides the beam, so a horn is sounded as well."
    ),
    "list": (
        "Things to bring to the hut: a rope, two blankets, matches in a dry tin, a pot with a lid, salt, flour, oil, a sharp knife, candles, a map of the "
        "valley, one lamp, spare socks, soap, a small axe, string, needles, a bucket, tea, sugar, dried apples, a jar of honey, a towel, bandages, a whistle, "
        "gloves, a pencil, some paper, a compass, cheese, bread and onions."
    ),
}
