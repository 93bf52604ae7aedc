"""Facts of the miniature's world: questions of one word, and the true answers, of one word too.

Every answer is unique within its table, so a wrong answer is always another key's answer: of the same kind and
plausible.
"""


def _table(pairs: str) -> dict[str, str]:
    """Mapping of `"key answer, key answer"`."""
    return dict(pair.split() for pair in pairs.split(","))  # two words each


CAPITALS = _table("""
    France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, Egypt Cairo, Peru Lima,
    Cuba Havana, Kenya Nairobi, Norway Oslo, Sweden Stockholm, Finland Helsinki, Poland Warsaw,
    Austria Vienna, Greece Athens, Turkey Ankara, Ireland Dublin, Portugal Lisbon, Hungary Budapest,
    Russia Moscow, China Beijing, India Delhi, Iran Tehran, Iraq Baghdad, Syria Damascus, Lebanon Beirut,
    Jordan Amman, Canada Ottawa, Chile Santiago, Ecuador Quito, Ghana Accra, Nigeria Abuja,
    Senegal Dakar, Morocco Rabat, Vietnam Hanoi, Thailand Bangkok, Nepal Kathmandu, Belgium Brussels,
    Denmark Copenhagen, Qatar Doha
""")

OPPOSITES = _table("""
    hot cold, big small, up down, fast slow, old young, rich poor, light dark, wet dry, hard soft,
    high low, open closed, early late, full empty, happy sad, strong weak, long short, thick thin,
    clean dirty, loud quiet, near far, left right, first last, true false, wide narrow, deep shallow,
    smooth rough, sharp blunt, cheap costly, safe risky, brave timid, win lose, buy sell, push pull,
    give take, love hate, day night, north south, east west, war peace, laugh cry
""")

SPANISH = _table("""
    dog perro, cat gato, house casa, water agua, bread pan, book libro, sun sol, moon luna, milk leche,
    fire fuego, table mesa, chair silla, door puerta, window ventana, street calle, city ciudad,
    tree árbol, flower flor, fish pescado, horse caballo, red rojo, green verde, white blanco,
    black negro, hand mano, head cabeza, eye ojo, mouth boca, boy niño, girl niña, friend amigo,
    king rey, queen reina, sea mar, sky cielo, snow nieve, cheese queso, apple manzana, shoe zapato,
    week semana
""")

PAST_TENSES = _table("""
    go went, see saw, take took, come came, know knew, think thought, find found, tell told, feel felt,
    leave left, bring brought, begin began, keep kept, hold held, write wrote, stand stood, hear heard,
    mean meant, meet met, run ran, pay paid, sit sat, speak spoke, lie lay, lead led, grow grew,
    fall fell, send sent, build built, draw drew, break broke, spend spent, rise rose, drive drove,
    wear wore, choose chose, eat ate, fly flew, swim swam, sing sang
""")

_WORDS = """
    acorn anchor badge barrel basket beaver button candle carrot castle clover copper desert dragon
    engine feather ferry garden ginger hammer harbor island jacket kettle ladder lantern magnet mirror
    needle orchid parrot pepper pillow rocket saddle spider ticket tunnel velvet wagon
"""
SORTED_WORDS = tuple(_WORDS.split())  # in alphabetical order
