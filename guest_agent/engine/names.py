"""Names for containers nobody named: a quality and a person of science or the sea, as Docker users expect."""

from __future__ import annotations

import random

_QUALITIES = """
able admiring agile amber ample apt ardent azure balmy blithe bold brave breezy bright brisk buoyant
calm candid careful cheerful clever coastal cosy courteous crisp curious daring deft dreamy eager
earnest easy elated epic fair faithful fearless fervent festive fleet focused fond frosty gallant
gentle gifted glad golden graceful gracious hardy hearty helpful honest hopeful humble inspired
intrepid jolly jovial keen kind laughing lively loyal lucid lucky marine mellow merry mindful modest
nifty nimble noble patient peaceful placid plucky practical proud quick quiet quirky radiant ready
relaxed resolute robust romantic rustic salty serene sharp silent sincere snug sober steady stoic
sturdy sunny sure swift tender thrifty tidal tidy trusting upbeat valiant vibrant vigilant vivid
warm wary willing windy wise witty wizardly wonderful zealous zen
""".split()  # noqa: SIM905
_PEOPLE = """
abel agnesi allen amundsen anning archimedes babbage banach bardeen barents bartik battuta bell
bering bernoulli bohr boole bose boyle brahmagupta cabot cannon cartwright carver chandrasekhar
chang chebyshev clarke columbus cook copernicus cousteau cray curie darwin davinci dias diffie
dijkstra dirac drake earhart easley einstein elion engelbart eriksson euclid euler faraday fermat
fermi feynman flinders franklin galileo galois gama gauss germain goldberg goodall gould hamilton
hawking heisenberg heyrovsky hodgkin hoover hopper hubble hudson hypatia jackson jemison johnson
joliot kalam kapitsa kepler khorana kowalevski lamarr lamport leakey leavitt lehmann lewin liskov
lovelace lumiere magellan maxwell mayer mcclintock meitner mendel mendeleev mirzakhani morse nansen
napier nash newton nightingale nobel noether northcutt noyce pare pascal pasteur payne peary perlman
pike poincare polo ptolemy raman ramanujan ride ritchie rosalind rubin saha sammet sanderson
shackleton shannon shaw slocum snyder solomon spence swanson tasman tesla tharp thompson torvalds
turing varahamihira vespucci villani volhard wescoff wilbur wiles wing wozniak wright yalow yonath
zheng
""".split()  # noqa: SIM905


def random_name(attempt: int) -> str:
    """A name such as brisk_hopper; from the second attempt on with a digit behind it."""
    name = f"{random.choice(_QUALITIES)}_{random.choice(_PEOPLE)}"
    return f"{name}{random.randrange(10)}" if attempt else name
