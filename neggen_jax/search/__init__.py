"""Search of hyper-parameters, on valid alone.

Stands before `launch/train.py`, of which every trial is a run; nothing here
trains. Test is read once, for what valid has chosen.

spec.py     what is asked for: a TOML file, checked
study.py    Optuna's study: what to try next, what to stop, what was found
finals.py   the best few again, over several seeds; and the choice
page.py     what a search leaves: study.md, best.json
plots.py    its figure
"""
