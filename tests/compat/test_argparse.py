from argparse import ArgumentParser

from pneumonia_hf.compat.argparse import list_flags


def test_flags_of_a_parser_are_listed_in_order():
    parser = ArgumentParser(add_help=False)
    parser.add_argument("--one", "-o", type=int)
    parser.add_argument("--two")
    assert [flag.dest for flag in list_flags(parser)] == ["one", "two"]
    assert list_flags(parser)[0].type is int
