r"""Generate: answers to texts, or the probabilities of given ones, from a run or from released weights.

    python -m t5lite.generate --checkpoint runs/tiny --input 'The <extra_id_0> sat on the mat.'
    python -m t5lite.generate --checkpoint hf:flan-t5-base --input 'Translate to German: the cat' --num_beams 4
    python -m t5lite.generate --checkpoint runs/tiny_lm --input 'Return the' --temperature 0.8 --stop '\n\n'
    python -m t5lite.generate --checkpoint runs/task --input_file questions.jsonl --json > answers.jsonl
    python -m t5lite.generate --checkpoint runs/task --score --input 'the sea' --target 'a noun' --json
    python -m t5lite.generate --checkpoint runs/tiny --interactive

A text a line, from --input, --input_file or standard input; in a .jsonl file (or with --jsonl) an object a line, whose
columns inputs, targets and prefix are read and whose other fields its answer keeps. One answer a line, in the same
order, with line breaks within it as \n. A network that was fine-tuned on pairs answers; one pre-trained with span
corruption fills in the blanks; a language model goes on. An encoder puts the likeliest piece in place of each [MASK] of
a text, or says the label of a text, or the tag of each word. On a terminal a single answer appears as it is made.

Specials are generated only where training had them in targets, sentinels only where the text has a blank.
"""

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5lite import cli
from t5lite.answers import BATCH_SIZE, Generator, Options, Request
from t5lite.checks import LENGTH, STEPS, in_range
from t5lite.decoding.settings import EARLY_STOPPING, Settings
from t5lite.errors import UserError
from t5lite.training import hosts
from t5lite.understanding import Reader

BLANK = re.compile(r" ?<extra_id_\d+>")
NEW = "/new"


def filled(text: str, answer: str) -> str:
    """`text` with its blanks filled from an answer that names each before what belongs there."""
    names = BLANK.findall(answer)
    parts = dict(zip((name.strip() for name in names), BLANK.split(answer)[1:], strict=True))
    return BLANK.sub(lambda found: parts.get(found[0].strip(), found[0]), text)


def _read(arguments: argparse.Namespace, columns: Mapping[str, str]) -> list[Request]:
    """The requests, in their order. Raises UserError for what is no text, or no object with the columns."""
    place = "--input" if arguments.input is not None else arguments.input_file or "standard input"
    try:
        if arguments.input is not None:
            lines = [arguments.input]
        else:
            source = sys.stdin if arguments.input_file is None else arguments.input_file.open(encoding="utf-8")
            with source:
                lines = [line.rstrip("\r\n") for line in source]
        for line in lines:
            line.encode()  # arguments and standard input may hold bytes that are not UTF-8 as half surrogate pairs
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {place}: {error}") from error
    is_json = arguments.jsonl or (arguments.input_file is not None and arguments.input_file.suffix == ".jsonl")
    if is_json and arguments.input is None:
        requests = [
            _from_json(line, f"{place}, line {number}", columns) for number, line in enumerate(lines, 1) if line
        ]
    else:
        requests = [Request(line) for line in lines]
    given = {name: value for name, value in (("prefix", arguments.prefix), ("target", arguments.target)) if value}
    requests = [dataclasses.replace(request, **given) for request in requests]
    if arguments.score and (lacking := next((r for r in requests if r.target is None), None)) is not None:
        raise UserError(
            f"--score needs a target for {lacking.input!r}: --target, or a .jsonl with {columns['targets']}"
        )
    return requests


def _from_json(line: str, where: str, columns: Mapping[str, str]) -> Request:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON ({error})") from error
    if not isinstance(said, dict):
        raise UserError(f"{where}: should be an object, is {type(said).__name__}")
    name = columns["inputs"] if columns["inputs"] in said else columns["text"]
    read = {"input": said.get(name), "target": said.get(columns["targets"]), "prefix": said.get("prefix", "")}
    for field, value in read.items():
        if not isinstance(value, str) and not (value is None and field == "target"):
            wanted = f"{columns['inputs']} or {columns['text']}" if field == "input" else field
            raise UserError(f"{where}: {wanted} should be a text, is {json.dumps(value)[:60]}")
    used = {name, columns["targets"], "prefix", *read}
    return Request(**read, fields={key: value for key, value in said.items() if key not in used})


def _lines(answer: Mapping[str, Any], arguments: argparse.Namespace) -> Iterator[str]:
    """How an answer is printed. Of several each keeps to its line; a single one may have as many as it wants."""
    if arguments.json:
        yield json.dumps(answer)
    elif arguments.score:
        yield f"{answer['logprob']:.6f}"
    elif "answers" in answer:
        for each in answer["answers"]:
            yield f"{each['score']:.4f}\t" + each["output"].replace("\n", "\\n")
    else:
        single = arguments.input is not None
        yield answer["output"] if single else answer["output"].replace("\n", "\\n")


def _stream(generator: Generator, request: Request, options: Options) -> str:
    """Print the answer as it comes, and return it."""
    said = ""
    for part in generator.stream(request, options):
        print(part, end="", flush=True)
        said += part
    print()
    return said


def _converse(generator: Generator, options: Options) -> None:
    """Answer what is typed, a line at a time, to its end. A language model goes on from all that was said."""
    goes_on = not generator.objective.closes_inputs and generator.objective.architecture == "decoder"
    reader = Reader(generator) if generator.objective.architecture == "encoder" else None
    hint = f"; {NEW} begins anew" if goes_on else ""
    print(f"a line to answer{hint}; Ctrl-D ends", file=sys.stderr)
    said = ""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip() == NEW or not line.strip():
            said = "" if line.strip() else said
            continue
        said = f"{said}\n{line}" if goes_on and said else line
        try:
            if reader is not None:
                print(next(reader.answers([Request(line)]))["output"])
            elif BLANK.search(line):
                print(filled(line, next(generator.answers([Request(line)], options))["output"]))
            else:
                said += _stream(generator, Request(said), options)
        except UserError as error:  # a text too long, or one without a blank: the next may be better
            print(f"t5lite: {error}", file=sys.stderr)
            said = ""


def _add_settings(parser: argparse.ArgumentParser) -> None:
    usual, many = Settings(), in_range(int, 0, STEPS)
    number = lambda least, most: in_range(float, least, most)
    for name, kind, text in (
        ("max_new_tokens", in_range(int, 1, LENGTH), "of an answer"),
        ("temperature", number(0, 1e6), "0: the likeliest token, always"),
        ("top_k", many, "sample from the k likeliest tokens; 0: from all"),
        ("top_p", number(0, 1), "sample from the fewest tokens of this probability"),
        ("min_p", number(0, 1), "sample from tokens with at least so much of the likeliest's probability"),
        ("repetition_penalty", number(0, 1e6), "above 1, what was said already becomes less likely"),
        ("num_beams", in_range(int, 1, 2**10), "hypotheses that a beam search follows"),
        ("length_penalty", number(-1e6, 1e6), "a beam's score is its log-probability / length ** this"),
        ("num_return", in_range(int, 1, 2**10), "answers to each text, the best first"),
    ):
        default = getattr(usual, name)
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: {default})")
    known = {str(value).lower(): value for value in EARLY_STOPPING}
    parser.add_argument(
        "--early_stopping",
        type=lambda text: known.get(text.lower(), text),
        default=usual.early_stopping,
        help="of beams: true, false or never (default: false)",
    )


def _options(arguments: argparse.Namespace) -> Options:
    fields = [field.name for field in dataclasses.fields(Settings)]
    stop = tuple(text.replace("\\n", "\n") for text in arguments.stop or ())
    settings = Settings(**{name: getattr(arguments, name) for name in fields})
    if settings.num_beams > 1 and stop:
        raise UserError("--stop does not go with --num_beams: beams change as they go on")
    if "" in stop:
        raise UserError("--stop: an empty text ends everything")
    return Options(settings, stop, tuple(arguments.suppress or ()), arguments.seed)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("generate", __doc__)
    cli.add_checkpoint(parser)
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--input", help="one text")
    texts.add_argument("--input_file", type=Path, help="a file with a text a line; default: standard input")
    texts.add_argument("--interactive", action="store_true", help="answer what is typed")
    parser.add_argument("--jsonl", action="store_true", help="standard input, or a file of another name, is .jsonl")
    parser.add_argument("--prefix", help="what every answer begins with")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="an answer ends before it; may be repeated")
    parser.add_argument(
        "--suppress", action="append", metavar="TEXT", help="a token that is not generated; may be repeated"
    )
    parser.add_argument("--score", action="store_true", help="the log-probability of given targets, not answers")
    parser.add_argument("--target", help="with --score: the target of every text")
    _add_settings(parser)
    parser.add_argument("--seed", type=in_range(int, 0, STEPS), default=0)
    parser.add_argument("--batch_size", type=in_range(int, 1, 2**16), default=BATCH_SIZE, help="texts at a time")
    parser.add_argument("--tensor", type=in_range(int, 1, 2**10), default=1, help="devices that share the model")
    parser.add_argument("--json", action="store_true", help="an object a text, with tokens and log-probabilities")
    cli.add_hosts(parser)
    return parser


@cli.verb
def main(argv: Sequence[str]) -> None:
    """Answer each text."""
    arguments = _parser().parse_args(argv)
    options = _options(arguments)
    if arguments.target is not None and not arguments.score:
        raise UserError("--target is what --score scores; give both")
    with cli.jax_started(arguments):
        generator = Generator(arguments.checkpoint, arguments.step, arguments.average, arguments.tensor)
        if arguments.interactive:
            _converse(generator, options)
            return
        read = _read(arguments, generator.columns) if hosts.is_primary() else ()
        requests = [Request(**fields) for fields in hosts.from_primary([dataclasses.asdict(each) for each in read])]
        encodes = generator.objective.architecture == "encoder"
        if arguments.score and encodes:
            raise UserError("--score: an encoder has no targets to score")
        alone = arguments.input is not None and not (arguments.json or arguments.score or encodes)
        if alone and sys.stdout.isatty() and options.settings.streams == 1 and hosts.count() == 1:
            _stream(generator, requests[0], options)
            return
        if arguments.score:
            answers = generator.scores(requests, arguments.batch_size)
        elif encodes:
            answers = Reader(generator).answers(requests, arguments.batch_size)
        else:
            answers = generator.answers(requests, options, arguments.batch_size)
        for answer in answers:
            for line in _lines(answer, arguments):
                print(line, flush=True)


if __name__ == "__main__":
    main()
