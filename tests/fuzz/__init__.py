"""Hostile input: files, flags, workdirs and caches that nobody meant to write, and the verbs that must bear them.

    python -m tests.fuzz --minutes 60       random cases for an hour, and how many succeeded, were refused, failed

A fuzzer draws cases and runs each as a user would, through a verb's `main`. Whatever the case, it succeeds or is
refused in one line with exit code 2, and nothing of a file is executed. tests/test_fuzz.py runs some of the cases of
each, always the same.

    outcome.py    what came of running a verb
    ground.py     what cases start from: texts, a config, a tokenizer, a complete run, a cache
    contents.py   contents of files: text, JSON, CSV, Parquet, damage
    fuzzers.py    the fuzzers
"""
