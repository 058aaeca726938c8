"""Trains and compares encoders on the built-in catalogue.

python launch/demo.py --output=demo
"""

from absl import app, flags

from neggen_jax.errors import reported

_OUTPUT = flags.DEFINE_string("output", "demo", "Directory of everything.")


def main(argv: list[str]) -> None:
    """Calls the demo."""
    del argv
    with reported():
        from neggen_jax import demo

        demo.run(_OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
