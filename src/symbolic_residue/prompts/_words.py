"""The word lists of ``perturb``: all our own, all English, all in lower case but for the fillers."""

from __future__ import annotations

__all__ = ["ABBREVIATIONS", "ENGLISH", "FILLERS", "LOWERABLE", "PRONOUNS", "STOP", "SYNONYMS"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((word, other) for word, _, other in (pair.partition(">") for pair in text.split()))


FILLERS: tuple[str, ...] = (
    "Well, ",
    "As it happens, ",
    "By the way, ",
    "To be clear, ",
    "You see, ",
    "Now then, ",
    "Just so you know, ",
    "For what it is worth, ",
    "Incidentally, ",
    "As a side note, ",
    "Anyway, ",
    "To put it simply, ",
    "So, ",
    "Let me add: ",
)  # fmt: ski
"""Phrases without content, for the start of a sentence."""

SYNONYMS = _pairs(
    """
    big>large large>big huge>enormous enormous>huge quickly>rapidly rapidly>quickly swiftly>quickly rapid>quick begin>start
    begins>starts began>started commences>begins buy>purchase buys>purchases bought>purchased purchased>bought buying>purchasing
    purchasing>buying automobile>car automobiles>cars perhaps>maybe maybe>perhaps often>frequently frequently>often
    seldom>rarely rarely>seldom almost>nearly nearly>almost sad>unhappy beautiful>lovely lovely>beautiful sofa>couch
    couch>sofa movie>film movies>films kids>children children>kids mom>mother mum>mother dad>father reply>answer
    replied>answered replies>answers assist>help assisted>helped assists>helps attempt>try attempted>tried attempts>tries
    difficult>hard easy>simple rich>wealthy wealthy>rich error>mistake errors>mistakes mistake>error mistakes>errors
    essential>vital vital>essential fortunate>lucky lucky>fortunate fortunately>luckily luckily>fortunately gift>present
    gifts>presents garbage>trash trash>garbage physician>doctor physicians>doctors lawyer>attorney lawyers>attorneys
    attorney>lawyer attorneys>lawyers infants>babies airplane>plane airplanes>planes bicycle>bike bicycles>bikes bike>bicycle
    bikes>bicycles photo>photograph photos>photographs photograph>photo photographs>photos phone>telephone phones>telephones
    telephone>phone telephones>phones fridge>refrigerator refrigerator>fridge exam>examination exams>examinations
    advertisement>ad advertisements>ads entire>whole although>though until>till amongst>among toward>towards towards>toward
    beneath>under afterwards>afterward afterward>afterwards everybody>everyone everyone>everybody anybody>anyone
    anyone>anybody somebody>someone someone>somebody constantly>continually continually>constantly certainly>surely
    surely>certainly definitely>certainly suddenly>abruptly abruptly>suddenly silently>quietly immediately>instantly
    instantly>immediately usually>generally generally>usually entirely>completely completely>entirely totally>completely
    extremely>very numerous>many obtain>get obtained>got obtains>gets receive>get received>got receives>gets require>need
    requires>needs utilize>use utilized>used utilizes>uses construct>build constructed>built constructs>builds reside>live
    resides>lives resided>lived discover>find discovered>found discovers>finds choose>select chooses>selects chose>selected
    chosen>selected repair>fix repaired>fixed repairs>fixes repairing>fixing halted>stopped shout>yell shouted>yelled
    shouts>yells shouting>yelling yell>shout yelled>shouted yelling>shouting strange>odd weird>strange peculiar>strange
    bizarre>strange ancient>old elderly>old foolish>silly silly>foolish clever>smart intelligent>smart brave>courageous
    courageous>brave afraid>scared tired>weary weary>tired sleepy>drowsy drowsy>sleepy incorrect>wrong annual>yearly
    yearly>annual famous>renowned renowned>famous dangerous>hazardous hazardous>dangerous boring>dull delicious>tasty
    tasty>delicious trousers>pants sweater>pullover pullover>sweater cab>taxi cabs>taxis taxi>cab taxis>cabs truck>lorry
    trucks>lorries lorry>truck lorries>trucks apartment>flat apartments>flats vacation>holiday vacations>holidays
    highway>motorway motorway>highway luggage>baggage baggage>luggage journey>trip journeys>trips stated>said remarked>said
    glanced>looked stared>gazed gazed>stared wandered>roamed roamed>wandered leaped>jumped wept>cried permitted>allowed
    allowed>permitted
    """
)
"""Pairs ``(word, other)``: ``word`` may be replaced by ``other``. Directed, since many words have a second sense."""

LOWERABLE = _words(
    """
    the a an in on at it he she they we you this that these those there his her its our their my your when if as after
    before while because although once one two three some many most all each every no not what who where why how
    please
    """
)
"""Words that may follow a filler or a semicolon in lower case; a name must keep its capital."""

STOP = (LOWERABLE - _words("one two three")) | _words(
    """
    and or but so for of to from by with about into over under out up down off is are was were be been being am do
    does did has have had will would can could may might shall should must i me him them us mine than then too very
    just only also
    """
)
"""Words that carry no content; numbers do."""

ENGLISH = _words(
    """
    the is was are were of and to it that for with you he she they this not have has be at as by from what how which
    """
)
"""Words frequent in any English text and rare in others."""

PRONOUNS = _words("he she it they this that these those his her its their him them such so then therefore")
"""Words at the start of a sentence that may stand for something in the sentence before."""

ABBREVIATIONS = _words("mr mrs ms dr st prof vs etc fig no inc ltd jr sr e.g i.e a.m p.m u.s")
"""Words before a period that ends no sentence (without that period)."""
