"""Measures on a bazaar whether the causal effect has found the causes.

    python launch/generate.py --data=DIR --backend=attributes --probe
    python launch/causes.py --workdir=DIR --encode

The run is one of configs/neggen.py. Its counterfactuals and the probes must
have been encoded by one encoder, which --encode sees to. Writes causes.json
and plots/causes.png into its workdir; neggen_jax/causes.py says what is in
them.
"""

from absl import flags

from neggen_jax import command

_WORKDIR = flags.DEFINE_string("workdir", None, "Of a run that was trained.")
_SET = flags.DEFINE_string(
    "set", "", "Of probes; by default the run's own if it has any, or probes."
)
_DATA = flags.DEFINE_string("data", None, "Where the dataset is now.")
_ENCODE = flags.DEFINE_bool(
    "encode", False, "Encode the probes anew, as the run's set was encoded."
)
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["train", "valid", "test"], "Whose choices to explain."
)


def main(argv: list[str]) -> None:
    """Calls the measurement."""
    del argv
    from neggen_jax import causes

    found = causes.report(
        _WORKDIR.value,
        _SET.value,
        data=_DATA.value,
        split=_SPLIT.value,
        encode=_ENCODE.value,
    )
    print(f"AUC of causes, 0.5 is chance; {found['split']}")
    print(f"  {'':<18}{'by item':<26}by user")
    for name in found["statistics"]:
        cells = [found["auc"][question][name] for question in found["auc"]]
        print(f"  {name:<18}{_shown(cells[0]):<26}{_shown(cells[1])}".rstrip())
    print("score of each attribute")
    for probe in found["probes"]:
        told = f"{probe['attribute']} ({probe['modality']})"
        kind = "cause" if probe["causal"] else "-"
        print(f"  {told:<24}{kind:<8}{_shown(probe['score'])}")


def _shown(value: dict) -> str:
    if not value["n"]:
        return "none"
    return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


if __name__ == "__main__":
    flags.mark_flag_as_required("workdir")
    command.run(main)
