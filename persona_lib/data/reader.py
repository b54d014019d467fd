"""The reader of answers (``oracle``): which value of an ``everyday`` dimension a text shows, by rule.

Rules read what a small model really writes: word counts, list lines, contractions, figures with units,
questions at the end, and families of words. They see one text and nothing else: not the persona, not the
policy, not the other answer. A text that shows neither value, or both alike, shows None. How often they are
right, on written and on generated answers, stands in ``figures/everyday/reader.csv``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING

from persona_lib.data.everyday import DIMENSIONS, Wish
from persona_lib.texts import repetition

if TYPE_CHECKING:
    import pandas as pd


# --- The reader of answers (``oracle``): which value of an ``everyday`` dimension a text shows, by rule ---
# Rules read what a small model really writes: word counts, list lines, contractions, figures with units,
# questions at the end, and families of words. They see one text and nothing else: not the persona, not the
# policy, not the other answer. A text that shows neither value, or both alike, shows None. How often they
# are right, on written and on generated answers, stands in ``figures/everyday/reader.csv``.


BRIEF_WORDS, THOROUGH_WORDS = 42, 53  # up to, from; in between a text is neither
MARGIN = 2  # points by which one value must lead
STRONG, WEAK, MOST_WEAK = 2, 1, 6  # points of a word of either kind; most that weak words of a value can add
# Read with a precision below .85 on generated answers, or in fewer than five (figures/everyday/reader.csv).
UNREADABLE = ("initiative", "budget", "pace", "risk", "company", "table")
TECHNICAL = 1.5  # figures and terms together, from

# Words, by value: those that say it by themselves, and those that point to it. Parts of regular expressions,
# read from the start of a word to its end.
WORDS: dict[str, tuple[str, str]] = {
    "warm": (
        r"don't (?:worry|panic|fret|despair|be (?:hard|afraid|shy)|feel (?:bad|guilty|shy)|blame yourself)"
        r"|no worries|(?:you've|you have)(?: so| totally)? got this|you can do (?:it|this)"
        r"|you're doing \w+|hang in there|well done|good for you|way to go|congrat\w+|good luck|good job"
        r"|poor (?:you|thing)|you poor|lucky you|be (?:kind|gentle) (?:to|with) yourself"
        r"|(?:so|very|really) (?:glad|happy|proud|excited|pleased|sorry)|i feel for you|i hope|i promise"
        r"|i'm here|trust me|no wonder|you deserve|we've all|not alone|can't wait"
        r"|you'll (?:love|be (?:fine|great|amazed|glad|so|proud)|enjoy)|of course (?:you|it|we)|have fun"
        r"|my friend|(?:great|good|lovely|wonderful) (?:question|idea|choice)"
        r"|(?:hi|hey|hello|aw+|oh|ooh|ouch|wow|yay)(?=[ ,!])",
        r"lov(?:e|ed|ely|ing)|happ(?:y|ily)|joy\w*|fun|enjoy\w*|glad\w*|proud|smil\w+|laugh\w*|cheer\w*"
        r"|hugs?|cuddles?|wonderful\w*|amazing\w*|fantastic\w*|awesome|brilliant\w*|gorgeous|super|yummy"
        r"|cosy|cozy|sweet|honestly|promise|totally|absolutely|definitely|of course|excit\w+|heaps|loads"
        r"|pop|grab|kids|dad|mum|mom|let's|a bit|thanks|thank you",
    ),
    "formal": (
        r"(?:is|are|be) (?:\w+ )?(?:advis(?:able|ed)|recommended|suggested|customary|prudent|appropriate"
        r"|essential|imperative|necessary|preferable|permitted|required|beneficial|acceptable|avoided|consulted)"
        r"|advisable|it is (?:possible|best|important|crucial|vital|also|entirely|wise|worth|better)|one's"
        r"|one (?:may|might|should|must|can|could|ought)|ought to|furthermore|moreover|therefore|thus"
        r"|hence|thereby|thereafter|accordingly|consequently|nevertheless|nonetheless|likewise|upon"
        r"|prior to|subsequent\w*|in addition|in order to|with regard to|regarding|provided that"
        r"|in accordance|in due course|as follows|suffices?|sufficient\w*|prudent|[ei]nquire|whilst|kindly"
        r"|please note|the following|may (?:i|one)"
        r"|should (?:\w+ ){1,4}(?:prove|persist|remain|require|wish|arise|occur|continue|fail)",
        r"(?:may|should|can|must|will|could|might) (?:\w+ )?be|(?:is|are|was|were) (?:\w+ly )?\w+ed"
        r"|generally|however|although|usually|require\w*|ensur\w+|obtain\w*|purchas\w+|select\w*|assist\w*"
        r"|consider\w*|maintain\w*|measures?|beneficial|presumably|commence\w*|retain\w*|remainder"
        r"|entirely|rather than|individuals?|persons?|results?|indicat\w+|determin\w+|facilitat\w+"
        r"|provide[sd]?|additional\w*|consult\w*|merely|whether|depend\w* (?:up)?on|proceed\w*|request\w*"
        r"|by means of",
    ),
    "cheap": (
        r"(?<!-)free(?! (?:from|time|evening|weekend|hour|day|afternoon|morning|hand|to|up|of (?!charge)))"
        r"|second[- ]hand|cheap\w*|inexpensive\w*|affordabl\w+|low[- ]cost|budget\w*|bargains?|thrift\w*"
        r"|frugal\w*|discount\w*|coupons?|charity shops?|flea markets?|borrow\w*|hand-me-downs?|salvaged"
        r"|upcycl\w+|pennies|for nothing|next to nothing|a penny|costs? (?:\w+ )?(?:nothing|little|less)"
        r"|at (?:no|little) (?:extra )?cost|no (?:extra )?(?:cost|purchase|spending)"
        r"|sav(?:es?|ing) (?:\w+ )?(?:money|cash)|less money|small change"
        r"|(?:without|before|avoid|instead of|rather than|not|n't) (?:\w+ )?(?:spend|buy|pay)(?:ing)?"
        r"|already (?:own|have)|(?:you've|you have) (?:already )?got"
        r"|what(?:ever)? you (?:already )?(?:own|have)|giv(?:e|en|ing) (?:\w+ )?away|do it yourself|diy"
        r"|on (?:offer|sale|a budget)|marked down|own brands?|off-peak|hostels?",
        r"old|leftover\w*|reus\w+|recycl\w+|scraps?|cardboard|jars?|swap\w*|trad(?:e|ing)|neighbou?rs?"
        r"|library|libraries|home-?made|from home|basic|used|spare|refill\w*|repair\w*|cupboards?|drawer"
        r"|reduced|lowest|donat\w+|rags?|supermarket|tap water|outgrown|empty|worn|save",
    ),
    "premium": (
        r"invest(?:s|ing|ment)?|luxur\w+|(?<!the )premium|high-(?:end|quality|resolution)|high quality"
        r"|deluxe|bespoke|top[- ](?:quality|tier|grade|rated|end|model|brand|notch|of the (?:line|range))"
        r"|made[- ]to[- ]measure|custom|designer|boutique|first[- ]class|five-star|splurge"
        r"|(?:spoil|treat) (?:yoursel\w+|everyone|them)|money well spent"
        r"|worth (?:every (?:penny|cent)|the (?:money|investment|price|extra|cost))|costs? more"
        r"|pay(?:ing)? (?:more|extra|for)|spend (?:more|on|most)|specialists?|professional\w*|experts?"
        r"|hir(?:e|ed|ing)|private|flagship|artisan\w*|craftsm\w+|hand-?(?:made|sewn|finished)|finest"
        r"|exclusive|expensive|upscale|gourmet|grand|caterers?|the best|quality|upgrad\w+",
        r"finer?|best|proper|solid|leather|silk|linen|oak|marble|silver|crystal|handsome\w*|beautiful\w*"
        r"|elegant\w*|superb|excellent|brand|warranty|fitted|install(?:er|ed)|deliver(?:y|ed)|book|order"
        r"|hotel|spa|restaurant|coach|suite|paid|electric|robot|lifetime|lasts?|for years|decades"
        r"|well-made|sturdy|comfort\w*|consultant",
    ),
    "quick": (
        r"quick\w*|fast(?:er|est)?|instant\w*|immediate\w*|right (?:now|away)|straight away|at once"
        r"|tonight|today|this (?:\w+ )?(?:minute|morning|afternoon|evening|hour|instant|day|weekend)"
        r"|the (?:\w+ )?same (?:day|evening)|(?:with)?in (?:the|an|half an) hour"
        r"|(?:with)?in (?:no time|minutes|seconds|a flash)|by tomorrow|asap|express|sprint"
        r"|in (?:one|a|a single) (?:day|go|afternoon|morning|evening|sitting)"
        r"|(?:one|two|three|five|ten|fifteen|twenty|thirty|sixty|few|\d+)[ -](?:minutes?|seconds?)"
        r"|shortcuts?|speed\w*|rapid\w*|swift\w*|ready-made|shop-bought|be done"
        r"|done (?:in|before|by|within)",
        r"hour|tomorrow|done|skip\w*|grab|hurry|brisk|microwave|straight|ready|timer"
        r"|before (?:lunch|supper|dinner|bed\w*)|by (?:noon|lunch|bedtime)|in one|intensive|now",
    ),
    "patient": (
        r"slow\w*|gradual\w*|patien\w+|little by little|bit by bit|step by step|over time"
        r"|tak(?:e|es|ing) (?:\w+ )?time|own time|in (?:small )?(?:stages?|steps)|no (?:rush|hurry)"
        r"|without (?:rush|hurry)ing|don't (?:rush|hurry)"
        r"|(?:over|for|after|within|several|few|couple of|two|three|four|five|six|ten|first) (?:\w+ ){0,3}"
        r"(?:weeks|months|seasons|years|winters|days)"
        r"|(?:a|per|each|every|one|the) (?:few )?(?:month|fortnight|season|year|term)|overnight"
        r"|one at a time|long (?:run|term|game)|long-term|wait(?:ing)?|unhurried|settle[sd]?"
        r"|matur(?:e|ing)|ripen",
        r"weeks?|months?|seasons?|years?|days|gentl[ey]|rest(?:s|ed|ing)?"
        r"|(?:each|every) (?:day|week|evening|morning)|weekly|daily|habits?|grow\w*|later|stead(?:y|ily)"
        r"|regular\w*|next (?:year|spring|winter|summer)|longer|soak\w*|build up|practi[sc]e|calm\w*",
    ),
    "cautious": (
        r"test(?:s|ed|ing)?|trial|try (?:\w+ ){1,6}(?:first|before)|back-?ups?|safe(?:r|st|ly|ty)?"
        r"|careful\w*|cauti\w+|cushion|in case|reserve|insurance|guarantee\w*"
        r"|well-(?:known|tried|tested|proven|established)|proven|reputable|reliabl\w+|trusted|established"
        r"|return (?:period|window|policy)|before you|beforehand|start small"
        r"|small (?:scale|group|test|amounts?|sums?|steps?)|hold off|be sure|consult\w*|precaution\w*"
        r"|prudent|risks?|risky|research|(?:free|be) cancell\w+|in writing|copies|fallback|ease into"
        r"|second opinion",
        r"first|confirm\w*|before|small|photos?|familiar|slow\w*|one at a time|compare|limit\w*|perhaps"
        r"|gloves|hardy|advice|protect\w*|secure\w*|prepared?|allerg\w+|look up|keep|copy|check\w*"
        r"|avoid\w*|ensure|make sure|reviews?|spare|worr(?:y|ied)|gradual\w*",
    ),
    "bold": (
        r"go (?:for it|all in|all the way|big|wild|ahead|flat out|the whole)|all in"
        r"|dive (?:in|straight|right)|jump(?: in)?|leap\w*|dar(?:e|ed|es|ing)|bold\w*|brave\w*|wild\w*"
        r"|adventur\w*|plunge|risk it|take (?:the|a) (?:risk|chance)|gambl\w+"
        r"|throw (?:yourself|away|off|out|in)|nobody expects|trust your \w+|gut feeling|instincts?"
        r"|fearless\w*|in one (?:go|sweep|stroke|leap)|single stroke|all at once|never look(?:ed)? back"
        r"|don't (?:hedge|hesitate|overthink)|do it|just (?:see|go|do it)|spontane\w+"
        r"|(?:no|without a) (?:\S+ )?(?:plan|practice|script|notes)|thrill\w*"
        r"|half[- ](?:hearted|measures?)|experiment\w*|something (?:different|new|unusual|completely \w+)"
        r"|unusual|surprises?|story|stories|say yes|why not|embrace|challenge yourself|from scratch"
        r"|grab it|be the (?:first|one)|(?:skip|forget) (?:the|a|any|all) (?:[\w-]+ ){0,3}[\w-]+",
        r"now|tonight|today|straight|never|everything|big|bigger|huge|crazy|mad|ridiculous|gloriously"
        r"|nobody|odd|new|entire|whole|decisive|clean break|strangers?|chaos|worst|freedom|ride|unknown",
    ),
    "alone": (
        r"alone|by yoursel(?:f|ves)|by (?:him|her)self|on (?:your|one's|their) own|solo|solitary|solitude"
        r"|nobody|no[- ]one|without (?:a )?(?:company|companions?|an audience)|private\w*|only you"
        r"|(?:for|to) yourself|your own (?:time|company)|own (?:\w+ )?(?:pace|speed|rhythm|thoughts)"
        r"|me[- ]time|self-study|in (?:peace|silence|private)|undisturbed|for one|single-handed"
        r"|independent\w*",
        r"quiet\w*|silen\w+|peace\w*|headphones|ear(?:phones|buds?)|phone off|door|your own|notebook|book"
        r"|diary|podcast|audiobook|journal|meditat\w+|corner",
    ),
    "together": (
        r"together|friends?|neighbou?rs?|groups?|teams?|(?:team|class|flat|house|play)?mates?|everyone"
        r"|everybody|each other|one another|colleagues?|co-?workers?|company|companions?|partners?"
        r"|budd(?:y|ies)|clubs?|classes|community|party|invit\w+|join\w*|gather\w*|shar(?:e|ed|ing)"
        r"|tak(?:e|ing) turns|others|other (?:people|parents)|guests?|crowd|gang|circle|choir|crew"
        r"|social\w*|meet(?:s|ing)?|pair up|as a pair|cousins|find people|go with people|loved ones"
        r"|volunteers?",
        r"family|parents|grandparents|children|swap\w*|someone|somebody|each of you|each person|both"
        r"|all of you|people|chat\w*|class|household|sister|brother|members|between you|host\w*",
    ),
    "abstains": (
        r"(?:alcohol[- ]free|non-?alcoholic|zero-proof|virgin|vegan|vegetarian|veggie|plant[- ]based"
        r"|meat-?free|meatless)(?: (?:\w+ )?[\w-]+)?|vegans|vegetarians"
        r"|(?:without|instead of|no) (?:any )?(?:meat|fish|alcohol|spirits|wine|beer)"
        r"|mocktails?|sober|teetotal|(?:ginger|root) (?:beer|ale)|tofu|tempeh|seitan|jackfruit|aquafaba"
        r"|nutritional yeast|(?:cashew|oat|soya?|almond|coconut) (?:cream|milk)|soft drinks?|sodas?"
        r"|kombucha",
        r"lentils?|chickpeas?|hou?mm?us|falafels?|beans?|lemonades?|juices?|cordials?|teas?"
        r"|sparkling water|tonic|squash|punch|fizz|cauliflower|aubergines?|eggplants?|mushrooms?"
        r"|vegetables?|veg|veggies|artichokes?|peppers?|nuts|walnuts|tahini|guacamole|avocados?|cocoa"
        r"|smoothies?|olive[- ]oil|peas|couscous|quinoa|vine leaves|ayran|elderflower|hibiscus|pulses|dal"
        r"|sweetcorn|corn|spinach|miso|coffee|hot chocolate",
    ),
    "indulges": (
        r"wines?|beers?|gins?|whiske?y|rum|vodka|prosecco|champagne|cocktails?|sangria|ros[ée]|vermouth"
        r"|campari|negronis?|sherry|port|brandy|lagers?|ales?|cider|tequila|bourbon|liqueurs?|spritz"
        r"|pimm's|chianti|burgundy|toddy|toddies|bottle of (?:red|white)|buck's fizz|bloody mary"
        r"|margaritas?|mojitos?|martinis?|pub|booze|spirits|alcohol(?:ic)?|bacon|beef|steaks?|sirloins?"
        r"|chicken|ham|sausages?|pork|lamb|chorizo|salami|salmon|prawns?|shrimps?|fish|tuna|trout|mackerel"
        r"|meat\w*|turkey|duck|pepperoni|prosciutto|ribs|brisket|burgers?|hot dogs?|kebabs?|\w+wurst"
        r"|black pudding|drippings|veal|mince|crab|lobster|oysters?|anchov\w+|snails",
        r"cheese",
    ),
}
# What a text says just before words that it turns down.
DENIED = re.compile(
    r"\b(?:no|not|never|\w+n't|without|(?<!n't )(?<!not )(?:skip\w*|forget|drop)|dispense with|instead of"
    r"|rather than|hardly) (?:(?:the|a|an|any|all|your) )?(?:(?!to |only |just |forget )[\w-]+ )?$",
    re.I,
)
LIST_LINE = re.compile(r"(?m)^\s*(?:(?:step )?\d{1,2}[.):]|[-*•](?![-*]))\s*\S", re.I)
INLINE_STEP = re.compile(r"(?:^|[\s:])(?:step )?(\d)[.):]\s+(?=[A-Za-z])", re.I)
SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)]?\s+|\n+")
CONTRACTION = re.compile(
    r"\b\w+(?:n't|'(?:ll|re|ve|m|d))\b|\b(?:it|that|there|here|what|who|let|he|she)'s\b", re.I
)
OWN_QUESTION = re.compile(r"\b(?:i|my|me)\b", re.I)
QUESTION_TO_USER = re.compile(
    r"\b(?:you|your|yours|(?:may|might|could|can) (?:i|one)(?: also)? (?:ask|enquire|know))\b", re.I
)
REQUEST = re.compile(
    r"\b(?:let me know|tell me)(?: a (?:bit|little))? (?:more|what|how|which|where|when|whether|about)", re.I
)
NUMBER = r"\d+(?:[.,]\d+)?"
UNITS = (
    r"%|°|percent|per cent|degrees|[µnmck]?m|m[²³]|[µmk]?g|[mdc]?l|kcal|[kmg]?hz|dbm?|k?w|k?wh|v|lux|bar"
    r"|psi|rpm|dpi|[kmg]b|mp|bits?|lit(?:re|er)s?|grams?|kilos?|(?:centi|milli|kilo)?met(?:re|er)s?"
    r"|inch(?:es)?|feet|ft|oz|lbs?|cups?|teaspoons?|tablespoons?|tbsp|tsp|microns?|km/h|cd|words? per minute"
)
TIMES = r"seconds?|minutes?|mins?|hours?|days?|weeks?|months?|years?|s"
FIGURE = re.compile(rf"{NUMBER}[ -]?(?:{UNITS})(?!\w)", re.I)
LOOSE_FIGURE = re.compile(
    rf"{NUMBER}[ -](?:{TIMES})(?!\w)|\d[:/]\d|[a-z]/\d|O\(\w+\)|\b\d{{2,}}\b|\d[ -][a-z]", re.I
)
TERM = re.compile(
    r"\b(?!(?:TV|DIY|OK|UK|US|USA|ID)\b)[A-Z]{2,}\d*\b|\b(?i:ratios?|humidity|torque|emulsi\w+|proteins?|enzym\w+"
    r"|thermo\w+|ambient|coefficients?|aperture|oxid\w+|viscosity|density|voltage|wattage|calibrat\w+|parameters?"
    r"|bandwidth|frequenc\w+|latency|encrypt\w+|authenticat\w+|entropy|algorithms?|variance|compounding|liquidity"
    r"|exponential|carbohydrates?|glyc\w+|circadian|melatonin|caffeine|hydrat\w+|nitrogen|calcium|ammoni\w+|starch"
    r"|conduction|condensation|compression|insulation|moisture|bacteria\w*|coagulat\w+|dilution|quadratic|thresholds?"
    r"|valves?|gradients?|protocols?|firmware|nutrients?|solub\w+|acidity|alkalin\w+|metabol\w+|hormon\w+)\b"
)


def words(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return re.findall(r"[a-z]+(?:['’][a-z]+)?", text.lower())


def lead(first: float, second: float, values: tuple[str, str], margin: float = MARGIN) -> str | None:
    """Return the value with more evidence, None if it leads by less than ``margin``."""
    if abs(first - second) < margin:
        return None
    return values[0] if first > second else values[1]


@cache
def pattern(words: str) -> re.Pattern[str]:
    """Compile a family of words and phrases, matched as whole words."""
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.I)


def spans(words: str, text: str) -> list[tuple[int, int]]:
    """Return where a text has the words of a family, except after a word that turns them down."""
    places = [match.span() for match in pattern(words).finditer(text)]
    return [(start, end) for start, end in places if not DENIED.search(text[max(0, start - 40) : start])]


def outside(places: list[tuple[int, int]], longer: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the places that are not part of a longer one ("trial" in "skip the trial")."""
    return [(i, j) for i, j in places if not any(k <= i and j <= m and j - i < m - k for k, m in longer)]


def points(value: str, other: str, text: str) -> int:
    """Return the evidence for a value: different words, but not those inside a phrase of the other."""
    strong, weak = (spans(words, text) for words in WORDS[value])
    rival = spans(WORDS[other][0], text)
    said = {text[i:j].lower() for i, j in outside(strong, rival)}
    hinted = {text[i:j].lower() for i, j in weak if not any(i < m and k < j for k, m in [*strong, *rival])}
    return STRONG * len(said) + min(MOST_WEAK, WEAK * len(hinted))


def read_words(dimension: str, text: str) -> str | None:
    """Weigh the words of the two values of a dimension of content."""
    first, second = DIMENSIONS[dimension]
    return lead(points(first, second, text), points(second, first, text), (first, second))


def read_table(text: str) -> str | None:
    """Read food and drink: meat, fish and alcohol count double, since vegetables stand beside them too."""
    abstains, indulges = points("abstains", "indulges", text), points("indulges", "abstains", text)
    return lead(abstains, 2 * indulges, DIMENSIONS["table"])


def read_length(text: str) -> str | None:
    """Brief up to BRIEF_WORDS words, thorough from THOROUGH_WORDS on."""
    n = len(text.split())
    return "brief" if n <= BRIEF_WORDS else "thorough" if n >= THOROUGH_WORDS else None


def read_format(text: str) -> str | None:
    """Two numbered or bulleted lines or more, or the numbers 1, 2, 3 within a line, are steps."""
    inline = "".join(INLINE_STEP.findall(text))
    return "steps" if len(LIST_LINE.findall(text)) >= 2 or "123" in inline else "prose"


def read_tone(text: str) -> str | None:
    """Encouragement, exclamation marks and contractions are warm; set phrases without any of them formal."""
    warm, formal = points("warm", "formal", text), points("formal", "warm", text)
    contractions, marks = len(CONTRACTION.findall(text)), text.count("!")
    if warm or marks:  # contractions alone are not warm
        warm += STRONG * (min(3, marks) + min(2, contractions))
    if not contractions:
        formal += STRONG
    return lead(warm, formal, DIMENSIONS["tone"], 2 * MARGIN)


def read_detail(text: str) -> str | None:
    """Figures with units, other figures and technical terms are technical; hardly any of them is plain."""
    units = FIGURE.findall(text)
    loose = LOOSE_FIGURE.findall(FIGURE.sub(" ", text))
    score = len(units) + (len(loose) + len(set(TERM.findall(text)))) / 2
    return "technical" if score >= TECHNICAL else "plain" if score < TECHNICAL / 2 else None


def read_initiative(text: str) -> str | None:
    """Ask back is a question to the user in the last two sentences; a question of another kind is neither."""
    last = [part for part in SENTENCE.split(text.strip()) if part.strip()][-2:]
    questions = [part for part in last if "?" in part]
    if any(QUESTION_TO_USER.search(part) or not OWN_QUESTION.search(part) for part in questions):
        return "asks"
    if any(REQUEST.search(part) for part in last):
        return "asks"
    return None if questions else "decides"


STYLE: dict[str, Callable[[str], str | None]] = {
    "length": read_length,
    "format": read_format,
    "tone": read_tone,
    "detail": read_detail,
    "initiative": read_initiative,
    "table": read_table,
}


def shows(dimension: str, text: str) -> str | None:
    """Return which of the two values of a dimension a text shows; None for neither, or both alike."""
    text = text.replace("’", "'").strip()
    if not text:
        return None
    return STYLE[dimension](text) if dimension in STYLE else read_words(dimension, text)


def fit(wish: Wish, text: str) -> int:
    """Return how well a text fits a wish: +1 for each value that it shows, -1 for each other value.

    The dimensions of ``UNREADABLE`` decide nothing.
    """
    verdicts = ((shows(name, text), value) for name, value in wish if name not in UNREADABLE)
    return sum(0 if shown is None else 1 if shown == value else -1 for shown, value in verdicts)


def reader_table(texts: Iterable[tuple[str, str, str]]) -> pd.DataFrame:
    """Return how often the reader is right, by dimension, from (dimension, true value, text).

    The true value of a text that shows neither is "neither". ``n`` texts have a value; the reader sees one in
    ``read`` texts, rightly in ``right``. ``precision`` is right / read, ``recall`` right / n. The last row,
    "all", adds the others up.
    """
    import pandas as pd

    seen = [(dimension, truth, shows(dimension, text)) for dimension, truth, text in texts]
    rows = [
        (
            dimension,
            sum(truth != "neither" for _, truth, _ in found),
            sum(verdict is not None for *_, verdict in found),
            sum(truth == verdict for _, truth, verdict in found),
        )
        for dimension in DIMENSIONS
        if (found := [line for line in seen if line[0] == dimension])
    ]
    rows.append(("all", *(sum(row[column] for row in rows) for column in (1, 2, 3))))
    table = pd.DataFrame(rows, columns=["dimension", "n", "read", "right"])
    return table.assign(precision=table["right"] / table["read"], recall=table["right"] / table["n"])


# --- Quality of an answer by rule ---
# Each part lies in [0, 1] and ``quality`` is their mean, so that answers have a graded scale with spread.
# It reads English answers to everyday questions. It cannot see a wrong fact, bad advice or sentences in the
# wrong order: the calibration (``evaluation.calibration``) shows what it finds and what it misses.


STEM = 5  # letters of a word that count as its stem
COMMON = frozenset(
    """
    about after again also anything because before being best better could does doing dont every from
    getting give going good have help here idea ideas just keep know like little make many more most
    much need never only other over people please really should some something still take tell than that
    their them then there these they thing things think this those time want well were what when where
    which while will with without would your
    """.split()  # noqa: SIM905
)
ENOUGH_WORDS, ENOUGH_STEMS = 20, 3


def stems(text: str) -> set[str]:
    """Return the stems of a text's words of four letters or more, without the commonest."""
    found = re.findall(r"[a-z]{4,}", text.lower().replace("'", "").replace("’", ""))
    return {word[:STEM] for word in found if word not in COMMON}


def on_subject(prompt: str, text: str) -> float:
    """Return how far the answer takes up the question's words: 1 with ENOUGH_STEMS shared stems (or all)."""
    asked = stems(prompt)
    return min(1.0, len(asked & stems(text)) / max(1, min(ENOUGH_STEMS, len(asked))))


def finished(text: str) -> float:
    """Return 1 for a text that ends like a sentence or a list line, 0 for one that breaks off."""
    lines = text.strip().splitlines() or [""]
    listed = re.match(r"\s*(?:\d+[.)]|[-*•])\s", lines[-1])
    return float(
        bool(re.search(r"[.!?)\"”']$", lines[-1]))
        or bool(listed and len(lines) > 2 and len(lines[-1].split()) > 2)
    )


def quality(prompt: str, text: str) -> float:
    """Return the quality of an answer in [0, 1]; 0 for an empty one."""

    if not text.strip():
        return 0.0
    substance = min(1.0, len(text.split()) / ENOUGH_WORDS)
    return (on_subject(prompt, text) + finished(text) + 1 - repetition(text.lower()) + substance) / 4
