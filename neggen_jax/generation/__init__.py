"""Counterfactual negatives, written offline by a language model or a rule.

Data flows from room to room, one way:

    values/      what a catalogue's attributes are worth: which values mean the
                 same, which were seen together, which a text tells
    tasks.py     what is to be written: one task an item and modality
    backends/    who answers: a server of OpenAI's protocol, or a model of
                 Transformers in this process
    cost.py      what the requests have cost
    writers/     a task -> a record: the three prompts of a language model and
                 the checks of its replies, or a rule without a model
    records.py   what is written: one line of JSON
    sets/        many tasks at a time, resumable and sharded; records merged in
                 one file, and encoded
    inspection/  a page to look at, and its figures

Nothing here imports jax: generation runs where the language model runs.
"""
