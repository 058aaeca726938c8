"""Counterfactual negatives, written offline by a language model or a rule.

    tasks.py          what is to be written: one task an item and modality
    backends.py       who answers: the protocol of a language model
    backend_openai.py  any server of OpenAI's chat completions, with
                      chat_protocol.py, pacing.py and request_log.py
    backend_transformers.py  a model in this process: image_text_model.py
    cost.py           what the requests have cost
    pictures.py       what models are shown
    prompts.py        the three templates of prompts.toml
    replies.py        what a reply must be to be accepted, with masked.py:
                      a description and the places of its masks
    contrast.py       when two values are the same in other words
    writer.py         describe -> mask -> complete, with bounded retries
    attributes.py     the writer without a model, with what it knows of the
                      catalogue (seen.py), finds in texts (mining.py), and
                      does to them (edits.py)
    ledger.py         records on disk: resumable, sharded
    merging.py        shards of a set in one file, and its manifest
    writers.py        who writes, by name
    pipeline.py       many tasks at a time, and how to stop
    counterfactuals.py  the pipeline that ties them together
    encode.py         texts -> vectors in the dataset directory
    inspect.py        a page to look at, and its figures

Nothing here imports jax: generation runs where the language model runs.
"""
