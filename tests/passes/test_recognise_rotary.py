"""Rotary embedding written out in primitive operators is recognised in all its forms."""

import pytest
from graph_texts import check

INPUTS = "%x: f32[2, 3, N, 8], %c: f32[1, 1, N, 4], %s: f32[1, 1, N, 4]"
FULL = "%x: f32[2, 3, N, 8], %c: f32[N, 8], %s: f32[N, 8]"


def part(start: int, size: int, of: str = "%x", rank: int = 4) -> str:
    zeros = ", ".join(["0"] * (rank - 1))
    ones = ", ".join(["1"] * rank)
    sizes = "2, 3, N" if rank == 4 else "2, 3, N, 4"
    return (f"slice({of}) {{starts = ({zeros}, {start}), sizes = ({sizes}, {size}), "
            f"steps = ({ones})}}")


def turned(a: str, b: str, sizes: str = "2, 3, N, 4") -> str:
    """%re and %im of the pairs (a, b)."""
    return f"""
        %ac: f32[{sizes}] = mul({a}, %c)
        %bs: f32[{sizes}] = mul({b}, %s)
        %re: f32[{sizes}] = sub(%ac, %bs)
        %as: f32[{sizes}] = mul({a}, %s)
        %bc: f32[{sizes}] = mul(%c, {b})
        %im: f32[{sizes}] = add(%as, %bc)"""


def rotary(inputs: str, size: int, interleaved: bool = False) -> str:
    flag = ", interleaved = true" if interleaved else ""
    return f"""({inputs}) {{
        %y: f32[2, 3, N, 8] = rotary(%x, %c, %s) {{size = {size}{flag}}}
        return %y
    }}"""


@pytest.mark.parametrize("flipped", [False, True])
def test_halves_turned_by_a_concat(flipped):
    """x * cos + concat(-x2, x1) * sin, with angles for every element."""
    order = "%xc, %rs" if not flipped else "%rs, %xc"
    check("recognise", f"""({FULL}) {{
        %xc: f32[2, 3, N, 8] = mul(%x, %c)
        %a: f32[2, 3, N, 4] = {part(0, 4)}
        %b: f32[2, 3, N, 4] = {part(4, 4)}
        %m: f32[2, 3, N, 4] = neg(%b)
        %r: f32[2, 3, N, 8] = concat(%m, %a) {{axis = 3}}
        %rs: f32[2, 3, N, 8] = mul(%r, %s)
        %y: f32[2, 3, N, 8] = add({order})
        return %y
    }}""", rotary(FULL, 8))


def test_angles_repeated_for_both_halves():
    check("recognise", f"""({INPUTS}) {{
        %cc: f32[1, 1, N, 8] = concat(%c, %c) {{axis = 3}}
        %ss: f32[1, 1, N, 8] = concat(%s, %s) {{axis = 3}}
        %xc: f32[2, 3, N, 8] = mul(%x, %cc)
        %a: f32[2, 3, N, 4] = {part(0, 4)}
        %b: f32[2, 3, N, 4] = {part(4, 4)}
        %m: f32[2, 3, N, 4] = neg(%b)
        %r: f32[2, 3, N, 8] = concat(%m, %a) {{axis = 3}}
        %rs: f32[2, 3, N, 8] = mul(%r, %ss)
        %y: f32[2, 3, N, 8] = add(%xc, %rs)
        return %y
    }}""", rotary(INPUTS, 8))


def test_halves_turned_apart():
    check("recognise", f"""({INPUTS}) {{
        %a: f32[2, 3, N, 4] = {part(0, 4)}
        %b: f32[2, 3, N, 4] = {part(4, 4)}
        {turned("%a", "%b")}
        %y: f32[2, 3, N, 8] = concat(%re, %im) {{axis = 3}}
        return %y
    }}""", rotary(INPUTS, 8))


SHORT = "%x: f32[2, 3, N, 8], %c: f32[1, 1, N, 2], %s: f32[1, 1, N, 2]"


def test_part_of_the_elements_in_three_pieces():
    check("recognise", f"""({SHORT}) {{
        %a: f32[2, 3, N, 2] = {part(0, 2)}
        %b: f32[2, 3, N, 2] = {part(2, 2)}
        %p: f32[2, 3, N, 4] = {part(4, 4)}
        {turned("%a", "%b", "2, 3, N, 2")}
        %y: f32[2, 3, N, 8] = concat(%re, %im, %p) {{axis = 3}}
        return %y
    }}""", rotary(SHORT, 4))


def test_part_of_the_elements_turned_by_a_concat():
    inputs = FULL.replace("[N, 8]", "[N, 4]")
    check("recognise", f"""({inputs}) {{
        %t: f32[2, 3, N, 4] = {part(0, 4)}
        %p: f32[2, 3, N, 4] = {part(4, 4)}
        %tc: f32[2, 3, N, 4] = mul(%t, %c)
        %a: f32[2, 3, N, 2] = {part(0, 2, "%t")}
        %b: f32[2, 3, N, 2] = {part(2, 2, "%t")}
        %m: f32[2, 3, N, 2] = neg(%b)
        %r: f32[2, 3, N, 4] = concat(%m, %a) {{axis = 3}}
        %rs: f32[2, 3, N, 4] = mul(%r, %s)
        %q: f32[2, 3, N, 4] = add(%tc, %rs)
        %y: f32[2, 3, N, 8] = concat(%q, %p) {{axis = 3}}
        return %y
    }}""", rotary(inputs, 4))


STACKED = """
        %re1: f32[2, 3, N, 4, 1] = reshape(%re) {shape = (2, 3, N, 4, 1)}
        %im1: f32[2, 3, N, 4, 1] = reshape(%im) {shape = (2, 3, N, 4, 1)}
        %w: f32[2, 3, N, 4, 2] = concat(%re1, %im1) {axis = 4}"""
AS_STACK = """
        %t: f32[2, 3, N, 8] = rotary(%x, %c, %s) {size = 8, interleaved = true}
        %w: f32[2, 3, N, 4, 2] = reshape(%t) {shape = (2, 3, N, 4, 2)}"""
ENDING = """
        %y: f32[2, 3, N, 8] = reshape(%w) {shape = (2, 3, N, 8)}
        return %y
    }"""


def test_pairs_by_an_axis_of_two():
    check("recognise", f"""({INPUTS}) {{
        %z: f32[2, 3, N, 4, 2] = reshape(%x) {{shape = (2, 3, N, 4, 2)}}
        %a1: f32[2, 3, N, 4, 1] = {part(0, 1, "%z", 5)}
        %b1: f32[2, 3, N, 4, 1] = {part(1, 1, "%z", 5)}
        %a: f32[2, 3, N, 4] = reshape(%a1) {{shape = (2, 3, N, 4)}}
        %b: f32[2, 3, N, 4] = reshape(%b1) {{shape = (2, 3, N, 4)}}
        {turned("%a", "%b")}{STACKED}{ENDING}""", f"""({INPUTS}) {{
        %z: f32[2, 3, N, 4, 2] = reshape(%x) {{shape = (2, 3, N, 4, 2)}}
        %x1: f32[2, 3, N, 8] = reshape(%z) {{shape = (2, 3, N, 8)}}
        {AS_STACK.replace("%x", "%x1")}{ENDING}""")


def test_pairs_by_gathers_of_an_axis_of_two():
    gathers = "".join(f"""%i{k}: i64[] = constant {{value = {k}}}
        %{n}: f32[2, 3, N, 4] = gather(%z, %i{k}) {{axis = 4}}
        """ for k, n in enumerate("ab"))
    check("recognise", f"""({INPUTS}) {{
        %z: f32[2, 3, N, 4, 2] = reshape(%x) {{shape = (2, 3, N, 4, 2)}}
        {gathers}{turned("%a", "%b")}{STACKED}{ENDING}""", f"""({INPUTS}) {{
        %z: f32[2, 3, N, 4, 2] = reshape(%x) {{shape = (2, 3, N, 4, 2)}}
        %x1: f32[2, 3, N, 8] = reshape(%z) {{shape = (2, 3, N, 8)}}
        {AS_STACK.replace("%x", "%x1")}{ENDING}""")


EVERY_OTHER = "\n".join(f"""%{n}: f32[2, 3, N, 4] = slice(%x) {{starts = (0, 0, 0, {k}),
    sizes = (2, 3, N, 4), steps = (1, 1, 1, 2)}}""" for k, n in enumerate("ab"))


def test_pairs_by_every_other_element():
    check("recognise", f"({INPUTS}) {{{EVERY_OTHER}{turned('%a', '%b')}{STACKED}{ENDING}",
          f"({INPUTS}) {{{AS_STACK}{ENDING}")


def test_pairs_turned_by_a_stack():
    """x * cos + stack(-x2, x1) * sin, with each angle twice (GPT-J)."""
    angles = "\n".join(f"""%{n}1: f32[1, 1, N, 4, 1] = reshape(%{n}) {{shape = (1, 1, N, 4, 1)}}
        %{n}2: f32[1, 1, N, 4, 2] = expand(%{n}1) {{shape = (1, 1, N, 4, 2)}}
        %{n}3: f32[1, 1, N, 8] = reshape(%{n}2) {{shape = (1, 1, N, 8)}}""" for n in "cs")
    check("recognise", f"""({INPUTS}) {{{EVERY_OTHER}
        {angles}
        %re: f32[2, 3, N, 4] = neg(%b)
        {STACKED.replace("%im)", "%a)")}
        %r: f32[2, 3, N, 8] = reshape(%w) {{shape = (2, 3, N, 8)}}
        %xc: f32[2, 3, N, 8] = mul(%x, %c3)
        %rs: f32[2, 3, N, 8] = mul(%r, %s3)
        %y: f32[2, 3, N, 8] = add(%xc, %rs)
        return %y
    }}""", rotary(INPUTS, 8, True))


def test_a_slice_of_a_longer_row():
    inputs = INPUTS.replace("N, 8]", "N, 20]")
    check("recognise", f"""({inputs}) {{
        %a: f32[2, 3, N, 4] = {part(5, 4)}
        %b: f32[2, 3, N, 4] = {part(9, 4)}
        {turned("%a", "%b")}
        %y: f32[2, 3, N, 8] = concat(%re, %im) {{axis = 3}}
        return %y
    }}""", f"""({inputs}) {{
        %z: f32[2, 3, N, 8] = {part(5, 8)}
        %y: f32[2, 3, N, 8] = rotary(%z, %c, %s) {{size = 8}}
        return %y
    }}""")


@pytest.mark.parametrize("change", [
    ("sub(%ac, %bs)", "add(%ac, %bs)"),  # turned the wrong way
    ("mul(%c, %b)", "mul(%c, %a)"),  # an element twice
    ("mul(%a, %s)", "mul(%a, %c)"),  # an angle twice
    ("concat(%re, %im)", "concat(%im, %re)"),
    ("return %y", "return %y, %re"),
])
def test_others_stay(change):
    text = f"""({INPUTS}) {{
        %a: f32[2, 3, N, 4] = {part(0, 4)}
        %b: f32[2, 3, N, 4] = {part(4, 4)}
        {turned("%a", "%b")}
        %y: f32[2, 3, N, 8] = concat(%re, %im) {{axis = 3}}
        return %y
    }}"""
    assert change[0] in text
    check("recognise", text.replace(*change))
