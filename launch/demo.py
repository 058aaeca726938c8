"""Trains and compares encoders on the built-in catalogue.

python launch/demo.py --output=demo
"""

from absl import flags

from neggen_jax import command

_OUTPUT = flags.DEFINE_string("output", "demo", "Directory of everything.")


def main(argv: list[str]) -> None:
    """Calls the demo."""
    del argv
    from neggen_jax import demo

    demo.run(_OUTPUT.value)


if __name__ == "__main__":
    command.run(main)
