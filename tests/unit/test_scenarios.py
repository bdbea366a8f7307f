"""The table of faults in the documentation is made from the tests that show them."""

import ast

from tests.faults.scenarios import PAGE, ROOT, SCENARIOS, page


def test_the_page_has_the_table() -> None:
    assert page(PAGE.read_text()) == PAGE.read_text(), "run python -m tests.faults.scenarios"


def test_every_row_has_its_own_test() -> None:
    proofs = [one.proof for one in SCENARIOS]
    assert len(set(proofs)) == len(proofs) >= 20
    for proof in proofs:
        file, _, name = proof.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {one.name for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}
