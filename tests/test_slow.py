"""The list of slow tests in conftest.py."""


def test_every_expression_in_the_list_matches_a_test(unmatched: list[str]) -> None:
    assert not unmatched
